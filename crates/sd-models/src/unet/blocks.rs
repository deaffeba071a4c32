//! The blocks of the U: residual layers, each followed by a transformer where the block has attention.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use sd_config::{BlockAttention, UnetBlock, UnetConfig};

use crate::nn::{
    Downsample, Ledger, Projection, ResnetBlock, Transformer2d, TransformerConfig, Upsample, concat,
};

/// What all layers of a call see beside the picture.
pub(super) struct Context<'a> {
    /// `silu` of the time embedding, `[batch, time_embed_dim]`.
    pub(super) time: &'a Tensor,
    /// `[batch, m, context_dim]`.
    pub(super) text: &'a Tensor,
}

/// Builds the layers of one block, named as diffusers names them.
struct Layers<'a> {
    config: &'a UnetConfig,
    vb: VarBuilder<'a>,
}

impl Layers<'_> {
    fn resnet(&self, i: usize, inputs: usize, outputs: usize) -> Result<ResnetBlock> {
        let UnetConfig {
            norm_num_groups,
            norm_eps,
            ..
        } = *self.config;
        let time_embed_dim = Some(self.config.time_embed_dim());
        let vb = self.vb.pp("resnets").pp(i);
        ResnetBlock::new(
            inputs,
            outputs,
            time_embed_dim,
            (norm_num_groups, norm_eps),
            vb,
        )
    }

    /// `count` transformers, or none if the block has no attention.
    fn transformers(
        &self,
        attention: Option<BlockAttention>,
        channels: usize,
        count: usize,
    ) -> Result<Vec<Transformer2d>> {
        let Some(BlockAttention {
            heads,
            depth,
            context_dim,
        }) = attention
        else {
            return Ok(Vec::new());
        };
        let config = TransformerConfig {
            channels,
            heads,
            depth,
            context_dim,
            norm_num_groups: self.config.norm_num_groups,
            projection: match self.config.use_linear_projection {
                true => Projection::Linear,
                false => Projection::Conv,
            },
        };
        let vb = self.vb.pp("attentions");
        (0..count)
            .map(|i| Transformer2d::new(&config, vb.pp(i)))
            .collect()
    }
}

/// A block of the way down.
#[derive(Debug, Clone)]
pub(super) struct DownBlock {
    resnets: Vec<ResnetBlock>,
    pub(super) attentions: Vec<Transformer2d>,
    downsampler: Option<Downsample>,
}

impl DownBlock {
    pub(super) fn new(config: &UnetConfig, block: &UnetBlock, vb: VarBuilder) -> Result<Self> {
        let outputs = block.out_channels;
        let layers = Layers {
            config,
            vb: vb.clone(),
        };
        let inputs = |i| if i == 0 { block.in_channels } else { outputs };
        Ok(Self {
            resnets: (0..block.layers)
                .map(|i| layers.resnet(i, inputs(i), outputs))
                .collect::<Result<_>>()?,
            attentions: layers.transformers(block.attention, outputs, block.layers)?,
            downsampler: block
                .resample
                .then(|| Downsample::new(outputs, 1, vb.pp("downsamplers").pp(0)))
                .transpose()?,
        })
    }

    /// The memory of [`forward`](Self::forward) for an `x` that is among the `skips`, as is the result.
    pub(super) fn replay(
        &self,
        memory: &mut Ledger,
        mut x: [usize; 4],
        text: &[usize; 3],
        skips: &mut Vec<[usize; 4]>,
    ) -> [usize; 4] {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.replay(memory, x);
            replay_transformer(memory, self.attentions.get(i), x, text);
            skips.push(x);
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.replay(memory, x);
            skips.push(x);
        }
        x
    }

    /// Adds the result of every layer to `skips`; the last one is the block's.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        context: &Context,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, Some(context.time))?;
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, context.text)?;
            }
            skips.push(x.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// The block at the bottom.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    first: ResnetBlock,
    pub(super) rest: Vec<(Transformer2d, ResnetBlock)>,
}

impl MidBlock {
    pub(super) fn new(config: &UnetConfig, block: &UnetBlock, vb: VarBuilder) -> Result<Self> {
        let channels = block.out_channels;
        let layers = Layers { config, vb };
        let transformers = layers.transformers(block.attention, channels, 1)?;
        let rest = transformers
            .into_iter()
            .enumerate()
            .map(|(i, transformer)| Ok((transformer, layers.resnet(i + 1, channels, channels)?)));
        Ok(Self {
            first: layers.resnet(0, channels, channels)?,
            rest: rest.collect::<Result<_>>()?,
        })
    }

    /// The memory of [`forward`](Self::forward).
    pub(super) fn replay(&self, memory: &mut Ledger, x: [usize; 4], text: &[usize; 3]) {
        let mut x = self.first.replay(memory, x);
        for (attention, resnet) in &self.rest {
            attention.replay(memory, x, text);
            let y = resnet.replay(memory, x);
            memory.release(&x);
            memory.release(&x);
            x = y;
        }
    }

    pub(super) fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let mut x = self.first.forward(x, Some(context.time))?;
        for (attention, resnet) in &self.rest {
            x = resnet.forward(&attention.forward(&x, context.text)?, Some(context.time))?;
        }
        Ok(x)
    }
}

/// A block of the way up.
#[derive(Debug, Clone)]
pub(super) struct UpBlock {
    resnets: Vec<ResnetBlock>,
    pub(super) attentions: Vec<Transformer2d>,
    upsampler: Option<Upsample>,
}

impl UpBlock {
    pub(super) fn new(config: &UnetConfig, block: &UnetBlock, vb: VarBuilder) -> Result<Self> {
        let outputs = block.out_channels;
        let layers = Layers {
            config,
            vb: vb.clone(),
        };
        let inputs = |i| {
            let below = if i == 0 {
                block.prev_output_channels
            } else {
                outputs
            };
            let skip = if i + 1 == block.layers {
                block.in_channels
            } else {
                outputs
            };
            below + skip
        };
        Ok(Self {
            resnets: (0..block.layers)
                .map(|i| layers.resnet(i, inputs(i), outputs))
                .collect::<Result<_>>()?,
            attentions: layers.transformers(block.attention, outputs, block.layers)?,
            upsampler: block
                .resample
                .then(|| Upsample::new(outputs, vb.pp("upsamplers").pp(0)))
                .transpose()?,
        })
    }

    /// The memory of [`forward`](Self::forward), which lets go of `x`.
    pub(super) fn replay(
        &self,
        memory: &mut Ledger,
        mut x: [usize; 4],
        text: &[usize; 3],
        skips: &mut Vec<[usize; 4]>,
    ) -> [usize; 4] {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let Some(skip) = skips.pop() else {
                return x;
            };
            let [batch, channels, height, width] = skip;
            let both = [batch, x[1] + channels, height, width];
            memory.hold(&both);
            memory.release(&x);
            memory.release(&skip);
            x = resnet.replay_owned(memory, both);
            replay_transformer(memory, self.attentions.get(i), x, text);
        }
        let Some(upsampler) = &self.upsampler else {
            return x;
        };
        let size = skips.last().map(|&[_, _, height, width]| [height, width]);
        upsampler.replay(memory, x, size)
    }

    /// Takes one tensor a layer from the end of `skips`.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        context: &Context,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the up blocks have more layers than the down blocks")
            };
            x = concat(&x, &skip)?;
            x = resnet.forward_owned(x, Some(context.time))?;
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, context.text)?;
            }
        }
        let Some(upsampler) = &self.upsampler else {
            return Ok(x);
        };
        // An odd size was halved upwards: twice the half does not fit the next skip.
        let size = skips.last().map(|skip| skip.dims4()).transpose()?;
        upsampler.forward(x, size.map(|(_, _, height, width)| (height, width)))
    }
}

/// The memory of `x = transformer(x)`, if there is one.
fn replay_transformer(
    memory: &mut Ledger,
    transformer: Option<&Transformer2d>,
    x: [usize; 4],
    text: &[usize; 3],
) {
    if let Some(transformer) = transformer {
        transformer.replay(memory, x, text);
        memory.release(&x);
    }
}
