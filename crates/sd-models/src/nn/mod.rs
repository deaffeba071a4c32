//! The layers all networks are made of, and the one place that picks a kernel.
//!
//! Every layer keeps its weights in the dtype they were loaded in and computes in the dtype of its input:
//! f32 on the CPU ([`activation_dtype`]), the weights' own dtype on a GPU. Weights widen where they are used.
//!
//! On the CPU a sample's result has the same bits whatever the other samples of its batch are and however
//! many threads compute it. A matrix product sums in an order that depends on its number of rows, so
//! [`Linear`] and [`attention`] multiply sample by sample; reductions run inside one task each.

mod activation;
mod attention;
mod conv;
mod cpu;
mod ledger;
mod linear;
mod norm;
mod resnet;
mod transformer;

#[cfg(test)]
mod tests;

pub use activation::{geglu, gelu, quick_gelu};
pub(crate) use attention::replay as replay_attention;
pub use attention::{AttentionSlice, Mask, attention};
pub use conv::{Conv2d, ConvConfig};
pub(crate) use ledger::{Ledger, elements};
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
pub use resnet::{Downsample, ResnetBlock, Upsample};
pub use transformer::{Attention, KeysValues, Projection, Transformer2d, TransformerConfig};

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
        return weight.contiguous()?.apply_op1_no_bwd(&cpu::Widen);
    }
    weight.to_dtype(like.dtype())
}

/// Whether the kernels of [`cpu`] apply to `x`.
fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// `x + y` in the memory of `x`, where that is ours to change: there must be no other handle to its data.
pub(crate) fn sum(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if on_cpu(&x) && x.is_contiguous() && x.shape() == y.shape() && y.dtype() == DType::F32 {
        x.inplace_op2(&y.contiguous()?, &cpu::AddTo)?;
        return Ok(x);
    }
    x + y
}

/// `f` of every sample `[1, ..]` of `x`, joined again; one call for the whole batch on a GPU.
fn each_sample(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let batch = x.dim(0)?;
    if batch <= 1 || !x.device().is_cpu() {
        return f(x);
    }
    // Written where they belong, so that they never exist twice.
    let first = f(&x.narrow(0, 0, 1)?)?;
    let rows = first.dim(0)?;
    let mut dims = first.dims().to_vec();
    dims[0] = rows * batch;
    let all = Tensor::zeros(dims, first.dtype(), x.device())?;
    all.slice_set(&first, 0, 0)?;
    drop(first);
    for i in 1..batch {
        all.slice_set(&f(&x.narrow(0, i, 1)?)?, 0, i * rows)?;
    }
    Ok(all)
}
