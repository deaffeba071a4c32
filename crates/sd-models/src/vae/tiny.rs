//! A small decoder for previews (diffusers' `AutoencoderTiny`, published as TAESD).

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;
use sd_config::TinyVaeConfig;

use super::check_latents;
use crate::nn::{Conv2d, ConvConfig, activation_dtype};
use crate::{Component, Error};

/// The first tensor of every tiny decoder.
pub(crate) const FIRST_TENSOR: &str = "decoder.layers.0.weight";

/// A decoder of few plain convolutions, which makes an approximate picture in a fraction of the autoencoder's time and
/// memory. Pictures of a batch are decoded one by one.
#[derive(Debug, Clone)]
pub struct TinyDecoder {
    dtype: DType,
    latent_channels: usize,
    scaling_factor: f64,
    /// In the order of diffusers' `decoder.layers`, of which some have no weights.
    layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
enum Layer {
    Conv(Conv2d),
    Relu,
    Block(Block),
    /// Repeats each pixel so many times, each way.
    Upsample(usize),
}

impl TinyDecoder {
    /// Reads the weights, named as diffusers names them or as the original file does, in the builder's dtype. Those of
    /// an encoder are left alone.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or `config` contradicts itself.
    pub fn new(vb: VarBuilder, config: &TinyVaeConfig) -> crate::Result<Self> {
        let dtype = activation_dtype(vb.device(), vb.dtype());
        let layers = layers(vb.pp("decoder.layers"), config);
        Ok(Self {
            dtype,
            latent_channels: config.latent_channels,
            scaling_factor: config.scaling_factor,
            layers: layers.map_err(Error::candle(Component::TinyVae))?,
        })
    }

    /// Pictures `[batch, 3, height, width]`, f32, about -1..1, of scaled latents
    /// `[batch, latent_channels, height / 8, width / 8]`.
    ///
    /// # Errors
    /// [`Error::Input`] if `latents` has another shape; [`Error::Candle`] if the device fails.
    pub fn decode(&self, latents: &Tensor) -> crate::Result<Tensor> {
        check_latents(Component::TinyVae, latents, self.latent_channels)?;
        let _span = tracing::debug_span!("tiny_vae_decode").entered();
        let pictures = || {
            let one = |i| self.forward(&latents.narrow(0, i, 1)?);
            let all = (0..latents.dim(0)?).map(one).collect::<Result<Vec<_>>>()?;
            Tensor::cat(&all, 0)
        };
        pictures().map_err(Error::candle(Component::TinyVae))
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = (latents.to_dtype(self.dtype)? / self.scaling_factor)?;
        // A soft clamp to -3..3.
        let mut x = ((latents / 3.)?.tanh()? * 3.)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        // The network's pictures are 0..1.
        x.to_dtype(DType::F32)?.affine(2., -1.)
    }
}

/// diffusers' `DecoderTiny`: stages of residual blocks, an upsampling between every two.
fn layers(vb: VarBuilder, config: &TinyVaeConfig) -> Result<Vec<Layer>> {
    let Some(&width) = config.decoder_block_out_channels.first() else {
        candle_core::bail!("decoder_block_out_channels is empty")
    };
    let first = Conv2d::new(config.latent_channels, width, ConvConfig::SAME, vb.pp(0))?;
    let mut layers = vec![Layer::Conv(first), Layer::Relu];
    let stages = config.num_decoder_blocks.len();
    for (stage, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        for _ in 0..blocks {
            layers.push(Layer::Block(Block::new(width, vb.pp(layers.len()))?));
        }
        if stage + 1 < stages {
            layers.push(Layer::Upsample(config.upsampling_scaling_factor));
            let vb = vb.pp(layers.len());
            let conv = Conv2d::without_bias(width, width, ConvConfig::SAME, vb)?;
            layers.push(Layer::Conv(conv));
        }
    }
    let vb = vb.pp(layers.len());
    let last = Conv2d::new(width, config.out_channels, ConvConfig::SAME, vb)?;
    layers.push(Layer::Conv(last));
    Ok(layers)
}

impl Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Relu => x.relu(),
            Self::Block(block) => block.forward(x),
            Self::Upsample(factor) => {
                let (_, _, height, width) = x.dims4()?;
                x.upsample_nearest2d(factor * height, factor * width)
            }
        }
    }
}

/// Three convolutions beside a shortcut (diffusers' `AutoencoderTinyBlock`).
#[derive(Debug, Clone)]
struct Block([Conv2d; 3]);

impl Block {
    fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        let conv = |index: usize| {
            let vb = vb.pp("conv").pp(index);
            Conv2d::new(channels, channels, ConvConfig::SAME, vb)
        };
        Ok(Self([conv(0)?, conv(2)?, conv(4)?]))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self([first, second, third]) = self;
        let h = first.forward(x)?.relu()?;
        let h = second.forward(&h)?.relu()?;
        (third.forward(&h)? + x)?.relu()
    }
}
