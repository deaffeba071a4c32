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
mod linear;
mod norm;
mod resnet;
mod transformer;

#[cfg(test)]
mod tests;

pub use activation::{geglu, gelu, quick_gelu};
pub use attention::{Mask, attention};
pub use conv::{Conv2d, ConvConfig};
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

/// `f` of every sample `[1, ..]` of `x`, joined again; one call for the whole batch on a GPU.
fn each_sample(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let batch = x.dim(0)?;
    if batch == 1 || !x.device().is_cpu() {
        return f(x);
    }
    let samples = (0..batch).map(|i| f(&x.narrow(0, i, 1)?));
    Tensor::cat(&samples.collect::<Result<Vec<_>>>()?, 0)
}
