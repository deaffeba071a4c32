//! Residual blocks and changes of resolution.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::{Conv2d, ConvConfig, GroupNorm, Linear};

/// Two normalised convolutions beside a shortcut (diffusers' `ResnetBlock2D`).
#[derive(Debug, Clone)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Reads the weights. `time_embed_dim` is the width of the time embedding, `None` in the autoencoder;
    /// `norm` is the number of groups and the epsilon.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(
        inputs: usize,
        outputs: usize,
        time_embed_dim: Option<usize>,
        norm: (usize, f64),
        vb: VarBuilder,
    ) -> Result<Self> {
        let (groups, eps) = norm;
        Ok(Self {
            norm1: GroupNorm::new(groups, inputs, eps, vb.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, ConvConfig::SAME, vb.pp("conv1"))?,
            time_emb_proj: time_embed_dim
                .map(|width| Linear::new(width, outputs, vb.pp("time_emb_proj")))
                .transpose()?,
            norm2: GroupNorm::new(groups, outputs, eps, vb.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, ConvConfig::SAME, vb.pp("conv2"))?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(inputs, outputs, ConvConfig::POINT, vb.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// `[batch, inputs, h, w]` to `[batch, outputs, h, w]`. `time` is `silu` of the time embedding
    /// `[batch, time_embed_dim]`: all blocks of a network share it.
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(projection), Some(time)) = (&self.time_emb_proj, time) {
            h = h.broadcast_add(&projection.forward(time)?.unsqueeze(2)?.unsqueeze(3)?)?;
        }
        let h = self.conv2.forward(&self.norm2.forward_silu(&h)?)?;
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x)? + h,
            None => x + h,
        }
    }
}

/// Halves the resolution by a convolution of stride 2.
#[derive(Debug, Clone)]
pub struct Downsample {
    conv: Conv2d,
    padding: usize,
}

impl Downsample {
    /// Reads `conv`. With `padding` 0 one row and column of zeros are added below and to the right, as the
    /// autoencoder's encoder does.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(channels: usize, padding: usize, vb: VarBuilder) -> Result<Self> {
        let config = ConvConfig {
            kernel: 3,
            stride: 2,
            padding,
        };
        Ok(Self {
            conv: Conv2d::new(channels, channels, config, vb.pp("conv"))?,
            padding,
        })
    }

    /// `[batch, channels, h, w]` to `[batch, channels, h', w']`: half, rounded up with padding 1 and down with
    /// padding 0.
    ///
    /// # Errors
    /// `x` has another number of channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.padding > 0 {
            return self.conv.forward(x);
        }
        let x = x
            .pad_with_zeros(D::Minus1, 0, 1)?
            .pad_with_zeros(D::Minus2, 0, 1)?;
        self.conv.forward(&x)
    }
}

/// Raises the resolution by repeating pixels, then convolves.
#[derive(Debug, Clone)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Reads `conv`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(channels, channels, ConvConfig::SAME, vb.pp("conv"))?,
        })
    }

    /// `[batch, channels, h, w]` to `[batch, channels, height, width]`; twice the input unless `size` is given.
    ///
    /// # Errors
    /// `x` has another number of channels.
    pub fn forward(&self, x: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let (height, width) = size.unwrap_or((2 * height, 2 * width));
        self.conv.forward(&x.upsample_nearest2d(height, width)?)
    }
}
