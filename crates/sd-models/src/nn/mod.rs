//! The layers all networks are made of, and the one place that picks a kernel.
//!
//! Every layer keeps its weights in the dtype they were loaded in and computes in the dtype of its input:
//! f32 on the CPU ([`activation_dtype`]), the weights' own dtype on a GPU. Weights widen where they are used, except those in bf16
//! on the CPU, which are multiplied as they are ([`Compute`]).
//!
//! On the CPU all layers run the operators of [`sd_ops`]: a sample's result has the same bits whatever the other samples of
//! its batch are and however many threads compute it. Elsewhere they are Candle's tensor operations.

mod activation;
mod attention;
mod conv;
mod ledger;
mod linear;
mod norm;
mod resnet;
mod transformer;
mod weight;
mod widen;

#[cfg(test)]
mod tests;

pub use activation::{gelu, quick_gelu};
pub(crate) use attention::replay as replay_attention;
pub use attention::{AttentionOptions, AttentionSlice, Mask, attention};
pub use conv::{Conv2d, ConvConfig};
pub(crate) use ledger::{Ledger, elements};
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use resnet::{Downsample, ResnetBlock, Upsample};
pub use transformer::{Attention, KeysValues, Projection, Transformer2d, TransformerConfig};
pub use weight::Compute;

use candle_core::{DType, Device, Result, Tensor};

/// The dtype that activations have on `device` when the weights are stored as `weights`.
pub fn activation_dtype(device: &Device, weights: DType) -> DType {
    if device.is_cpu() { DType::F32 } else { weights }
}

/// `weight` in the dtype of `like`.
fn widened(weight: &Tensor, like: &Tensor) -> Result<Tensor> {
    if weight.dtype() == like.dtype() {
        return Ok(weight.clone());
    }
    if weight.device().is_cpu() && like.dtype() == DType::F32 {
        return weight.contiguous()?.apply_op1_no_bwd(&widen::Widen);
    }
    weight.to_dtype(like.dtype())
}

/// Whether the operators of [`sd_ops`] apply to `x`.
fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// `x + y` in the memory of `x`, where that is ours to change: there must be no other handle to its data.
pub(crate) fn sum(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if on_cpu(&x) && x.is_contiguous() && x.shape() == y.shape() && y.dtype() == DType::F32 {
        sd_ops::add_in_place(&x, &y.contiguous()?)?;
        return Ok(x);
    }
    x + y
}

/// `[batch, rows, columns]` to a contiguous `[batch, columns, rows]`.
pub(crate) fn transpose(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) {
        return sd_ops::transpose(x);
    }
    x.transpose(1, 2)?.contiguous()
}

/// `[batch, a, ..]` and `[batch, b, ..]` as `[batch, a + b, ..]`.
pub(crate) fn concat(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if on_cpu(x) && on_cpu(y) {
        return sd_ops::concat(x, y);
    }
    Tensor::cat(&[x, y], 1)
}
