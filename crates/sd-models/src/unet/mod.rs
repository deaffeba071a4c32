//! The network that predicts the noise (diffusers' `UNet2DConditionModel`).

mod blocks;
mod embedding;
mod input;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use sd_config::UnetConfig;

use self::blocks::{Context, DownBlock, MidBlock, UpBlock};
use self::embedding::{AddEmbedding, ClassEmbedding, TimeEmbedding};
pub use self::input::{Added, Residuals, UnetInput};
use crate::nn::{AttentionSlice, Conv2d, ConvConfig, GroupNorm, Ledger, activation_dtype};
use crate::{Component, Error, Result};

/// The network that predicts the noise in latents, or their velocity, as the model was trained to.
#[derive(Debug, Clone)]
pub struct Unet {
    config: UnetConfig,
    dtype: DType,
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    class_embedding: Option<ClassEmbedding>,
    add_embedding: Option<AddEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Reads the weights, named as in diffusers, in the builder's dtype.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or `config` contradicts itself.
    pub fn new(vb: VarBuilder, config: &UnetConfig) -> Result<Self> {
        Self::build(vb, config).map_err(Error::candle(Component::Unet))
    }

    fn build(vb: VarBuilder, config: &UnetConfig) -> candle_core::Result<Self> {
        let Some(&first) = config.block_out_channels.first() else {
            candle_core::bail!("block_out_channels is empty")
        };
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let at = |name: &str| vb.pp(name);
        let down_blocks = config.down_blocks();
        let up_blocks = config.up_blocks();
        let path = |name: &str, i: usize| at(name).pp(i);
        Ok(Self {
            dtype: activation_dtype(vb.device(), vb.dtype()),
            conv_in: Conv2d::new(config.in_channels, first, ConvConfig::SAME, at("conv_in"))?,
            time_embedding: TimeEmbedding::new(config, first, at("time_embedding"))?,
            class_embedding: ClassEmbedding::new(config, first, at("class_embedding"))?,
            add_embedding: AddEmbedding::new(config, at("add_embedding"))?,
            down_blocks: (down_blocks.iter().enumerate())
                .map(|(i, block)| DownBlock::new(config, block, path("down_blocks", i)))
                .collect::<candle_core::Result<_>>()?,
            mid_block: (config.mid_block())
                .map(|block| MidBlock::new(config, &block, at("mid_block")))
                .transpose()?,
            up_blocks: (up_blocks.iter().enumerate())
                .map(|(i, block)| UpBlock::new(config, block, path("up_blocks", i)))
                .collect::<candle_core::Result<_>>()?,
            conv_norm_out: GroupNorm::new(groups, first, eps, at("conv_norm_out"))?,
            conv_out: Conv2d::new(first, config.out_channels, ConvConfig::SAME, at("conv_out"))?,
            config: config.clone(),
        })
    }

    /// What its weights are kept as.
    pub(crate) fn weights_dtype(&self) -> DType {
        self.conv_in.weights_dtype()
    }

    /// Sets how many queries attend at a time.
    pub fn set_attention_slice(&mut self, slice: AttentionSlice) {
        let down = self
            .down_blocks
            .iter_mut()
            .flat_map(|block| &mut block.attentions);
        let mid = self.mid_block.iter_mut().flat_map(|block| &mut block.rest);
        let up = self
            .up_blocks
            .iter_mut()
            .flat_map(|block| &mut block.attentions);
        for attention in down.chain(mid.map(|(attention, _)| attention)).chain(up) {
            attention.set_attention_slice(slice);
        }
    }

    /// The prediction `[batch, out_channels, height, width]`, f32.
    ///
    /// # Errors
    /// [`Error::Input`] if an input is missing, has no place in this model, or is of another shape;
    /// [`Error::Candle`] if the device fails.
    pub fn forward(&self, input: &UnetInput) -> Result<Tensor> {
        self.forward_observed(input, &mut |_, _| ())
    }

    /// [`forward`](Self::forward) that shows intermediate results: `temb` (the embedding that all blocks
    /// share, before its activation), `conv_in`, `down.0` and so on (each block's output), `mid`, `up.0` and
    /// so on.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_observed(
        &self,
        input: &UnetInput,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.check(input)?;
        let _span = tracing::debug_span!("unet", batch = input.timesteps.len()).entered();
        self.run(input, observe)
            .map_err(Error::candle(Component::Unet))
    }

    fn run(
        &self,
        input: &UnetInput,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> candle_core::Result<Tensor> {
        let time = self.embed(input)?;
        observe("temb", &time);
        let text = input.encoder_hidden_states.to_dtype(self.dtype)?;
        let context = Context {
            time: &time.silu()?,
            text: &text,
        };

        let mut x = input.sample.to_dtype(self.dtype)?;
        if self.config.center_input_sample {
            x = x.affine(2., -1.)?;
        }
        x = self.conv_in.forward(&x)?;
        observe("conv_in", &x);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let _span = tracing::trace_span!("down", i).entered();
            x = block.forward(x, &context, &mut skips)?;
            observe(&format!("down.{i}"), &x);
        }
        if let Some(residuals) = input.residuals {
            for (skip, residual) in skips.iter_mut().zip(residuals.down) {
                *skip = (&*skip + residual.to_dtype(self.dtype)?)?;
            }
        }
        if let Some(block) = &self.mid_block {
            let _span = tracing::trace_span!("mid").entered();
            x = block.forward(&x, &context)?;
            observe("mid", &x);
        }
        if let Some(residuals) = input.residuals {
            x = (x + residuals.mid.to_dtype(self.dtype)?)?;
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            let _span = tracing::trace_span!("up", i).entered();
            x = block.forward(x, &context, &mut skips)?;
            observe(&format!("up.{i}"), &x);
        }
        let y = self
            .conv_out
            .forward_fused(&self.conv_norm_out, &x, None, None)?;
        y.to_dtype(DType::F32)
    }

    /// The memory of [`forward`](Self::forward) for samples of `[height, width]` latents and so many tokens.
    pub(crate) fn replay(
        &self,
        memory: &mut Ledger,
        samples: usize,
        [height, width]: [usize; 2],
        tokens: usize,
    ) {
        let text = [samples, tokens, self.config.cross_attention_dim.get(0)];
        let latents = [samples, self.config.in_channels, height, width];
        let mut x = self.conv_in.replay(memory, latents);
        let mut skips = vec![x];
        for block in &self.down_blocks {
            x = block.replay(memory, x, &text, &mut skips);
        }
        match &self.mid_block {
            Some(block) => block.replay(memory, x, &text),
            // A second handle to the last skip, which is one block's worth of difference.
            None => memory.hold(&x),
        }
        for block in &self.up_blocks {
            x = block.replay(memory, x, &text, &mut skips);
        }
        if !self.conv_out.fuses_in(memory) {
            self.conv_norm_out.replay(memory, &x);
            memory.release(&x);
        }
        let y = self.conv_out.replay(memory, x);
        for gone in [x, y] {
            memory.release(&gone);
        }
    }

    /// The embedding that all blocks share, `[batch, time_embed_dim]`.
    fn embed(&self, input: &UnetInput) -> candle_core::Result<Tensor> {
        let timesteps = input
            .timesteps
            .iter()
            .map(|&t| t as f32)
            .collect::<Vec<_>>();
        let device = input.sample.device();
        let mut embedding = self
            .time_embedding
            .forward(&timesteps, input.timestep_cond, device)?;
        if let (Some(class), Some(labels)) = (&self.class_embedding, input.class_labels) {
            embedding = (embedding + class.forward(labels, self.dtype)?)?;
        }
        if let (Some(add), Some(added)) = (&self.add_embedding, &input.added) {
            embedding = (embedding + add.forward(added, self.dtype)?)?;
        }
        Ok(embedding)
    }
}
