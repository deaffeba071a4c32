//! Group and layer normalisation.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;
use sd_ops::NormedChannels;

use super::{Ledger, elements, on_cpu, widened};

/// Group normalisation (Wu 2018): weight and bias `[channels]`.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// `groups` does not divide `channels`; a tensor is missing or of another shape.
    pub fn new(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            candle_core::bail!("{}: {channels} channels in {groups} groups", vb.prefix());
        }
        let weight = vb.get(channels, "weight")?;
        Ok(Self {
            weight,
            bias: vb.get(channels, "bias")?,
            groups,
            eps,
        })
    }

    /// The normalised `x`, `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// `x` has another number of channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, false)
    }

    /// `silu(self.forward(x))`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, true)
    }

    /// The memory of [`forward`](Self::forward) and [`forward_silu`](Self::forward_silu).
    pub(crate) fn replay(&self, memory: &mut Ledger, x: &[usize]) {
        memory.hold(x);
        if memory.is_gpu() {
            // The tensor operations, in f32: the input, centred, squared, and so on.
            memory.pass_bytes(elements(x).saturating_mul(4 * size_of::<f32>() as u64));
        }
    }

    /// The memory of [`silu_in_place`](Self::silu_in_place), which holds the result where it held `x`.
    pub(crate) fn replay_in_place(&self, memory: &mut Ledger, x: &[usize]) {
        if memory.is_gpu() {
            self.replay(memory, x);
            memory.release(x);
        }
    }

    /// [`forward_silu`](Self::forward_silu) in the memory of `x`: there must be no other handle to its data.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn silu_in_place(&self, x: Tensor) -> Result<Tensor> {
        if !on_cpu(&x) || !x.is_contiguous() {
            return self.forward_silu(&x);
        }
        self.check(&x)?;
        let (weight, bias) = (widened(&self.weight, &x)?, widened(&self.bias, &x)?);
        self.operator(true).forward_in_place(&x, &weight, &bias)?;
        Ok(x)
    }

    /// What [`forward_silu`](Self::forward_silu) makes of each channel of a contiguous `x` on the CPU.
    pub(super) fn silu_of_channels(&self, x: &Tensor) -> Result<NormedChannels> {
        self.check(x)?;
        let (weight, bias) = (widened(&self.weight, x)?, widened(&self.bias, x)?);
        self.operator(true).channels(x, &weight, &bias)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        if x.rank() < 3 || x.dim(1)? != self.weight.dim(0)? {
            candle_core::bail!(
                "group norm of {:?} applied to {:?}",
                self.weight.shape(),
                x.shape()
            );
        }
        Ok(())
    }

    fn operator(&self, silu: bool) -> sd_ops::GroupNorm {
        sd_ops::GroupNorm {
            groups: self.groups,
            eps: self.eps,
            silu,
        }
    }

    fn run(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        self.check(x)?;
        if on_cpu(x) {
            let (weight, bias) = (widened(&self.weight, x)?, widened(&self.bias, x)?);
            return self
                .operator(silu)
                .forward(&x.contiguous()?, &weight, &bias);
        }
        let y = self.tensors(x)?;
        if silu { y.silu() } else { Ok(y) }
    }

    /// The normalisation in tensor operations, computed in f32: for devices without a kernel of ours.
    pub(super) fn tensors(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels) = (x.dim(0)?, x.dim(1)?);
        let groups = x.to_dtype(DType::F32)?.reshape((batch, self.groups, ()))?;
        let normed = standardised(&groups, self.eps)?.reshape((batch, channels, ()))?;
        let parameter = |p: &Tensor| p.to_dtype(DType::F32)?.reshape((1, channels, 1));
        normed
            .broadcast_mul(&parameter(&self.weight)?)?
            .broadcast_add(&parameter(&self.bias)?)?
            .reshape(x.shape())?
            .to_dtype(x.dtype())
    }
}

/// Layer normalisation (Ba 2016): weight and bias `[width]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or `width` is 0.
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        if width == 0 {
            candle_core::bail!("{}: layer norm of width 0", vb.prefix());
        }
        let weight = vb.get(width, "weight")?;
        Ok(Self {
            weight,
            bias: vb.get(width, "bias")?,
            eps,
        })
    }

    /// `[.., width]`, every row normalised.
    ///
    /// # Errors
    /// The last dimension is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dim(D::Minus1)? != self.weight.dim(0)? {
            candle_core::bail!(
                "layer norm of {:?} applied to {:?}",
                self.weight.shape(),
                x.shape()
            );
        }
        if on_cpu(x) {
            let (weight, bias) = (widened(&self.weight, x)?, widened(&self.bias, x)?);
            return sd_ops::layer_norm(x, &weight, &bias, self.eps);
        }
        self.tensors(x)
    }

    /// The normalisation in tensor operations, computed in f32: for devices without a kernel of ours.
    pub(super) fn tensors(&self, x: &Tensor) -> Result<Tensor> {
        standardised(&x.to_dtype(DType::F32)?, self.eps)?
            .broadcast_mul(&self.weight.to_dtype(DType::F32)?)?
            .broadcast_add(&self.bias.to_dtype(DType::F32)?)?
            .to_dtype(x.dtype())
    }
}

/// The last dimension shifted and scaled to mean 0 and variance 1, in two passes: the single pass
/// `E[x^2] - E[x]^2` loses the variance of values far from 0.
fn standardised(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}
