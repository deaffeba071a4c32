//! Activation functions, element by element.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::{buffer::unwritten, isa::vectorized, math, values};

/// Elements of a task.
const TASK: usize = 1 << 14;

/// The exact GELU `x Phi(x)`, by the error function (Hendrycks 2016, section 2), of f32 on the CPU. No gradient is recorded.
///
/// # Errors
/// The tensor is of another dtype or device.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    map(x, |x, out| vectorized!(each(x, out, math::gelu)))
}

/// `x sigmoid(1.702 x)`, the approximation of GELU in OpenAI's CLIP, of f32 on the CPU. No gradient is recorded.
///
/// # Errors
/// The tensor is of another dtype or device.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    const SCALE: f32 = 1.702;
    map(x, |x, out| {
        vectorized!(each(x, out, |v| math::silu(v * SCALE) / SCALE))
    })
}

fn map(x: &Tensor, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut out = unwritten(x.elem_count());
    {
        let (storage, layout) = x.storage_and_layout();
        let x = values(&storage, layout)?;
        out.par_chunks_mut(TASK)
            .zip(x.par_chunks(TASK))
            .for_each(|(out, x)| f(x, out));
    }
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

#[inline(always)]
fn each(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (out, v) in out.iter_mut().zip(x) {
        *out = f(*v);
    }
}
