//! Two-dimensional convolution.

use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use sd_ops::{
    Window,
    bf16::{self, Beside},
};

use super::{Compute, GroupNorm, Ledger, sum, weight::Weight, widened};

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
    weight: Weight,
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
            weight: Weight::conv(weight)?,
            bias: None,
            config,
        })
    }

    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    ///
    /// # Errors
    /// `x` has another number of channels or dimensions, or is smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.convolve(x, self.bias(x)?)
    }

    /// The bias in the dtype of `like`.
    fn bias(&self, like: &Tensor) -> Result<Option<Tensor>> {
        let bias = self.bias.as_ref();
        bias.map(|bias| widened(bias, like)).transpose()
    }

    /// [`forward`](Self::forward) plus `shift`, `[batch, outputs]`, at every pixel.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or `shift` has another shape.
    pub(super) fn forward_shifted(&self, x: &Tensor, shift: &Tensor) -> Result<Tensor> {
        self.convolve(x, self.shifted(x, Some(shift))?)
    }

    /// The bias plus `shift`, in the dtype of `like`.
    fn shifted(&self, like: &Tensor, shift: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (self.bias(like)?, shift) {
            (Some(bias), Some(shift)) => Ok(Some(shift.broadcast_add(&bias)?)),
            (bias, shift) => Ok(shift.cloned().or(bias)),
        }
    }

    /// Whether [`forward_fused`](Self::forward_fused) takes fewer passes over memory than its parts.
    pub(super) fn fuses(&self) -> bool {
        matches!(self.weight, Weight::Bf16(_))
    }

    /// The same where only memory is asked for.
    pub(crate) fn fuses_in(&self, memory: &Ledger) -> bool {
        !memory.is_gpu() && self.weight.compute() == Compute::Bf16
    }

    /// [`forward`](Self::forward) of `silu(norm(x))`, plus `shift`, `[batch, outputs]`, at every pixel, plus `residual`, of the
    /// result's shape.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or one of them has another shape.
    pub(crate) fn forward_fused(
        &self,
        norm: &GroupNorm,
        x: &Tensor,
        shift: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let bias = self.shifted(x, shift)?;
        if let Weight::Bf16(weight) = &self.weight {
            let x = x.contiguous()?;
            let norm = norm.silu_of_channels(&x)?;
            let beside = Beside {
                norm: Some(&norm),
                residual,
            };
            return bf16::conv2d_with(&x, weight, bias.as_ref(), self.window(), beside);
        }
        let y = self.convolve(&norm.forward_silu(x)?, bias)?;
        match residual {
            Some(residual) => sum(y, residual),
            None => Ok(y),
        }
    }

    /// [`forward`](Self::forward) of `silu(norm(x))`, for which it may overwrite `x`: there must be no other handle to its data.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn forward_normed(&self, norm: &GroupNorm, x: Tensor) -> Result<Tensor> {
        if self.fuses() {
            return self.forward_fused(norm, &x, None, None);
        }
        self.forward(&norm.silu_in_place(x)?)
    }

    /// The memory of [`forward_normed`](Self::forward_normed), which lets go of `x`.
    pub(crate) fn replay_normed(
        &self,
        memory: &mut Ledger,
        norm: &GroupNorm,
        x: [usize; 4],
    ) -> [usize; 4] {
        if !self.fuses_in(memory) {
            norm.replay_in_place(memory, &x);
        }
        let y = self.replay(memory, x);
        memory.release(&x);
        y
    }

    /// [`forward`](Self::forward) of `x` with every pixel repeated in both directions, up to a height and a width that are twice
    /// as many or one less, for convolutions of stride 1.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(super) fn forward_doubled(&self, x: Tensor, size: [usize; 2]) -> Result<Tensor> {
        let (bias, padding) = (self.bias(&x)?, self.config.padding);
        match &self.weight {
            Weight::Bf16(weight) => {
                return bf16::conv2d_doubled(&x, size, weight, bias.as_ref(), padding);
            }
            Weight::Conv(weight) => {
                return sd_ops::conv2d_doubled(&x, size, weight, bias.as_ref(), padding);
            }
            _ => (),
        }
        let repeated = x.upsample_nearest2d(size[0], size[1])?;
        drop(x);
        self.forward(&repeated)
    }

    /// The convolution plus `bias`, `[outputs]` or `[batch, outputs]`.
    fn convolve(&self, x: &Tensor, bias: Option<Tensor>) -> Result<Tensor> {
        let window = self.window();
        let weight = match &self.weight {
            Weight::Bf16(weight) => return bf16::conv2d(x, weight, bias.as_ref(), window),
            Weight::Conv(weight) => return sd_ops::conv2d(x, weight, bias.as_ref(), window),
            Weight::Stored(weight) => widened(weight, x)?,
            Weight::Linear(weight) => bail!("{weight:?} is not of a convolution"),
        };
        let Window { stride, padding } = window;
        let y = self.checked(x)?.conv2d(&weight, padding, stride, 1, 1)?;
        match bias {
            Some(bias) => y.broadcast_add(&bias.reshape(((), self.weight.dim(0), 1, 1))?),
            None => Ok(y),
        }
    }

    fn window(&self) -> Window {
        let ConvConfig {
            stride, padding, ..
        } = self.config;
        Window { stride, padding }
    }

    pub(crate) fn weights_dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The memory of [`forward`](Self::forward).
    pub(crate) fn replay(&self, memory: &mut Ledger, x: [usize; 4]) -> [usize; 4] {
        let [batch, inputs, height, width] = x;
        let ConvConfig {
            kernel,
            stride,
            padding,
        } = self.config;
        let side = |side: usize| {
            side.saturating_add(2 * padding).saturating_sub(kernel) / stride.max(1) + 1
        };
        let outputs = self.weight.dim(0);
        let y = [batch, outputs, side(height), side(width)];
        memory.hold(&y);
        if memory.is_gpu() {
            memory.pass_bytes(self.weight.widened(memory));
            // Candle lays out what the kernel sees at every pixel, and transposes the product.
            let [_, _, height, width] = y;
            let columns = [batch, height, width, inputs * kernel * kernel + outputs];
            memory.pass(&columns);
        } else {
            let window = self.window();
            let weight = [outputs, inputs, kernel, kernel];
            let scratch = match self.weight.compute() {
                Compute::F32 => sd_ops::conv2d_scratch(x, weight, self.weight.dtype(), window),
                Compute::Bf16 => bf16::conv2d_scratch(x, weight, window),
            };
            // Sizes that do not fit fail in `forward`, before they take anything.
            memory.pass_bytes(scratch.unwrap_or(0));
        }
        y
    }

    /// `x`, if the kernel fits into it: Candle's size arithmetic wraps around otherwise.
    fn checked<'a>(&self, x: &'a Tensor) -> Result<&'a Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let ConvConfig {
            kernel, padding, ..
        } = self.config;
        if height.min(width) + 2 * padding < kernel {
            bail!("a {kernel}x{kernel} convolution does not fit into {height}x{width}");
        }
        Ok(x)
    }
}
