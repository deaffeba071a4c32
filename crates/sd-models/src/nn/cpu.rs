//! Kernels of the CPU for f32 activations: one pass over memory where tensor operations take several.
//!
//! Sums run in f64 over eight lanes, inside one task: their order, and so their bits, do not depend on the
//! number of threads.

use candle_core::cpu::erf::erf_f32;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, Error, Layout, Result, Shape, WithDType, bail,
};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Elements a task should have at least, so that it outweighs its scheduling.
const TASK: usize = 1 << 14;

/// The elements of a contiguous tensor.
fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => Err(Error::RequiresContiguous { op: "cpu kernel" }.bt()),
    }
}

/// `sum of f(v)`.
fn sum(values: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| f(v)).sum();
    let mut lanes = [0f64; 8];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// Mean and `1 / sqrt(variance + eps)`, in two passes: a single one loses the variance of values far from 0.
fn moments(values: &[f32], eps: f64) -> (f32, f32) {
    let count = values.len() as f64;
    let mean = sum(values, f64::from) / count;
    let variance = sum(values, |v| (f64::from(v) - mean).powi(2)) / count;
    (mean as f32, (variance + eps).sqrt().recip() as f32)
}

fn silu(v: f32) -> f32 {
    v / (1. + (-v).exp())
}

fn gelu(v: f32) -> f32 {
    0.5 * v * (1. + erf_f32(v * std::f32::consts::FRAC_1_SQRT_2))
}

/// Group normalisation of `[batch, channels, ..]` by weight and bias `[channels]`, then SiLU if asked.
pub(super) struct GroupNorm {
    pub(super) groups: usize,
    pub(super) eps: f64,
    pub(super) silu: bool,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice::<f32>(x, x_layout)?;
        let weight = slice::<f32>(weight, weight_layout)?;
        let bias = slice::<f32>(bias, bias_layout)?;
        let [batch, channels, ..] = *x_layout.dims() else {
            bail!(
                "group_norm of {:?}, expected [batch, channels, ..]",
                x_layout.shape()
            )
        };
        if x.is_empty() {
            return Ok((CpuStorage::F32(Vec::new()), x_layout.shape().clone()));
        }
        let channels_a_group = channels / self.groups;
        let pixels = x.len() / (batch * channels);
        let group = channels_a_group * pixels;
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(group)
            .zip(x.par_chunks(group))
            .enumerate()
            .with_min_len(TASK.div_ceil(group))
            .for_each(|(i, (out, x))| {
                let (mean, scale) = moments(x, self.eps);
                let first = i % self.groups * channels_a_group;
                let planes = out.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
                for (channel, (out, x)) in (first..).zip(planes) {
                    let (scale, bias) = (scale * weight[channel], bias[channel]);
                    let normed = |v: f32| (v - mean) * scale + bias;
                    for (out, &v) in out.iter_mut().zip(x) {
                        *out = if self.silu {
                            silu(normed(v))
                        } else {
                            normed(v)
                        };
                    }
                }
            });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Layer normalisation of the rows of `[.., width]` by weight and bias `[width]`.
pub(super) struct LayerNorm {
    pub(super) eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice::<f32>(x, x_layout)?;
        let weight = slice::<f32>(weight, weight_layout)?;
        let bias = slice::<f32>(bias, bias_layout)?;
        let width = weight.len();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len(TASK.div_ceil(width))
            .for_each(|(out, x)| {
                let (mean, scale) = moments(x, self.eps);
                for (((out, &v), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                    *out = (v - mean) * scale * weight + bias;
                }
            });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// `[.., 2 * width]`, seen as hidden and gate side by side, to `hidden * gelu(gate)`: `[.., width]`.
pub(super) struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice::<f32>(x, layout)?;
        let mut dims = layout.dims().to_vec();
        let width = match dims.last_mut() {
            Some(last) if *last > 0 && *last % 2 == 0 => {
                *last /= 2;
                *last
            }
            _ => bail!(
                "geglu of {:?}, expected an even last dimension",
                layout.shape()
            ),
        };
        let mut out = vec![0f32; x.len() / 2];
        out.par_chunks_mut(width)
            .zip(x.par_chunks(2 * width))
            .with_min_len(TASK.div_ceil(width))
            .for_each(|(out, x)| {
                let (hidden, gate) = x.split_at(width);
                for ((out, &hidden), &gate) in out.iter_mut().zip(hidden).zip(gate) {
                    *out = hidden * gelu(gate);
                }
            });
        Ok((CpuStorage::F32(out), dims.into()))
    }
}

/// f16 or bf16 to f32.
pub(super) struct Widen;

impl CustomOp1 for Widen {
    fn name(&self) -> &'static str {
        "widen"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn widen<T: WithDType>(x: &[T], convert: impl Fn(&[T], &mut [f32]) + Sync) -> CpuStorage {
            let mut out = vec![0f32; x.len()];
            out.par_chunks_mut(TASK)
                .zip(x.par_chunks(TASK))
                .for_each(|(out, x)| convert(x, out));
            CpuStorage::F32(out)
        }
        let out = match x {
            CpuStorage::F16(_) => widen(slice::<half::f16>(x, layout)?, |x, out| {
                x.convert_to_f32_slice(out)
            }),
            CpuStorage::BF16(_) => widen(slice::<half::bf16>(x, layout)?, |x, out| {
                x.convert_to_f32_slice(out)
            }),
            _ => bail!("only f16 and bf16 widen"),
        };
        Ok((out, layout.shape().clone()))
    }
}
