//! Two-dimensional convolution.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use sd_ops::Window;

use super::{on_cpu, widened};

/// The shape of a square [`Conv2d`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvConfig {
    /// Side of the kernel.
    pub kernel: usize,
    /// Step of the kernel.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
}

impl ConvConfig {
    /// 1x1: a linear layer on the channels.
    pub const POINT: Self = Self {
        kernel: 1,
        stride: 1,
        padding: 0,
    };
    /// 3x3, output of the input's size.
    pub const SAME: Self = Self {
        kernel: 3,
        stride: 1,
        padding: 1,
    };
}

/// A convolution: weight `[outputs, inputs, kernel, kernel]`, bias `[outputs]` unless it is made without.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvConfig,
}

impl Conv2d {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(inputs: usize, outputs: usize, config: ConvConfig, vb: VarBuilder) -> Result<Self> {
        let bias = Some(vb.get(outputs, "bias")?);
        let conv = Self::without_bias(inputs, outputs, config, vb)?;
        Ok(Self { bias, ..conv })
    }

    /// Reads `weight`; nothing is added.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn without_bias(
        inputs: usize,
        outputs: usize,
        config: ConvConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get((outputs, inputs, config.kernel, config.kernel), "weight")?;
        Ok(Self {
            weight,
            bias: None,
            config,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    ///
    /// # Errors
    /// `x` has another number of channels or dimensions, or is smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = widened(&self.weight, x)?;
        let bias = self
            .bias
            .as_ref()
            .map(|bias| widened(bias, x))
            .transpose()?;
        let ConvConfig {
            stride, padding, ..
        } = self.config;
        if on_cpu(x) {
            return sd_ops::conv2d(x, &weight, bias.as_ref(), Window { stride, padding });
        }
        let y = self.checked(x)?.conv2d(&weight, padding, stride, 1, 1)?;
        match bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
            None => Ok(y),
        }
    }

    /// `x`, if the kernel fits into it: Candle's size arithmetic wraps around otherwise.
    fn checked<'a>(&self, x: &'a Tensor) -> Result<&'a Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let ConvConfig {
            kernel, padding, ..
        } = self.config;
        if height.min(width) + 2 * padding < kernel {
            candle_core::bail!(
                "a {kernel}x{kernel} convolution does not fit into {height}x{width}"
            );
        }
        Ok(x)
    }
}
