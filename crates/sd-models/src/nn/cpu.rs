//! Kernels of the CPU for f32 activations: one pass over memory where tensor operations take several.
//!
//! Sums run in f64 over eight lanes, inside one task: their order, and so their bits, do not depend on the
//! number of threads.

use candle_core::cpu::erf::erf_f32;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, Error, InplaceOp2, InplaceOp3, Layout, Result, Shape,
    WithDType, bail,
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

/// The elements of a contiguous tensor, to be changed.
fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => Err(Error::RequiresContiguous { op: "cpu kernel" }.bt()),
    }
}

/// Group normalisation of `[batch, channels, ..]` by weight and bias `[channels]`, then SiLU if asked.
pub(super) struct GroupNorm {
    pub(super) groups: usize,
    pub(super) eps: f64,
    pub(super) silu: bool,
}

/// How the values of one channel change.
#[derive(Clone, Copy)]
struct Affine {
    mean: f32,
    scale: f32,
    bias: f32,
    silu: bool,
}

impl Affine {
    fn of(self, v: f32) -> f32 {
        let v = (v - self.mean) * self.scale + self.bias;
        if self.silu { silu(v) } else { v }
    }
}

impl GroupNorm {
    /// Values of a group and of one of its channels, for `[batch, channels, ..]`, which is not empty.
    fn sizes(&self, layout: &Layout) -> Result<[usize; 2]> {
        let [batch, channels, ..] = *layout.dims() else {
            bail!(
                "group_norm of {:?}, expected [batch, channels, ..]",
                layout.shape()
            )
        };
        let pixels = layout.shape().elem_count() / (batch * channels);
        Ok([channels / self.groups * pixels, pixels])
    }

    /// What becomes of the channels of group `i`, counted through the batch, whose `values` these are.
    fn channels<'a>(
        &'a self,
        i: usize,
        values: &[f32],
        weight: &'a [f32],
        bias: &'a [f32],
    ) -> impl Iterator<Item = Affine> + 'a {
        let (mean, scale) = moments(values, self.eps);
        let channels = weight.len() / self.groups;
        let first = i % self.groups * channels;
        (first..first + channels).map(move |channel| Affine {
            mean,
            scale: scale * weight[channel],
            bias: bias[channel],
            silu: self.silu,
        })
    }
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
        if x.is_empty() {
            return Ok((CpuStorage::F32(Vec::new()), x_layout.shape().clone()));
        }
        let [group, pixels] = self.sizes(x_layout)?;
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(group)
            .zip(x.par_chunks(group))
            .enumerate()
            .with_min_len(TASK.div_ceil(group))
            .for_each(|(i, (out, x))| {
                let planes = out.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
                for (affine, (out, x)) in self.channels(i, x, weight, bias).zip(planes) {
                    for (out, &v) in out.iter_mut().zip(x) {
                        *out = affine.of(v);
                    }
                }
            });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

impl InplaceOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let x = slice_mut(x, x_layout)?;
        let weight = slice::<f32>(weight, weight_layout)?;
        let bias = slice::<f32>(bias, bias_layout)?;
        if x.is_empty() {
            return Ok(());
        }
        let [group, pixels] = self.sizes(x_layout)?;
        x.par_chunks_mut(group)
            .enumerate()
            .with_min_len(TASK.div_ceil(group))
            .for_each(|(i, x)| {
                let channels = self.channels(i, x, weight, bias);
                for (affine, x) in channels.zip(x.chunks_exact_mut(pixels)) {
                    x.iter_mut().for_each(|v| *v = affine.of(*v));
                }
            });
        Ok(())
    }
}

/// `x += y`, of one shape.
pub(super) struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add_to"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let (x, y) = (slice_mut(x, x_layout)?, slice::<f32>(y, y_layout)?);
        x.par_chunks_mut(TASK)
            .zip(y.par_chunks(TASK))
            .for_each(|(x, y)| {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            });
        Ok(())
    }
}

/// `bias [width]` added to every row of `[.., width]`.
pub(super) struct AddBias;

impl InplaceOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let (x, bias) = (slice_mut(x, x_layout)?, slice::<f32>(bias, bias_layout)?);
        let width = bias.len();
        if width == 0 {
            return Ok(());
        }
        x.par_chunks_mut(width)
            .with_min_len(TASK.div_ceil(width))
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(v, bias)| *v += bias));
        Ok(())
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
