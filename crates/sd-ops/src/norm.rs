//! Group and layer normalisation.
//!
//! Means and variances are sums in f64 of one task each: their bits depend neither on the batch nor on the threads.

use candle_core::{CpuStorage, CustomOp3, Device, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{buffer::unwritten, isa::vectorized, math::silu, slice, slice_mut, values};

/// Elements a task should have at least, so that it outweighs its scheduling.
const TASK: usize = 1 << 14;
/// Elements whose mean and variance are taken while they are in a core's first cache.
const CHUNK: usize = 4096;

/// Group normalisation (Wu 2018) of `[batch, channels, ..]` by weight and bias `[channels]`, all contiguous, f32 and on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm {
    /// A divisor of the channels.
    pub groups: usize,
    /// What is added to the variance.
    pub eps: f64,
    /// Whether `x * sigmoid(x)` follows.
    pub silu: bool,
}

impl GroupNorm {
    /// The normalised `x`. No gradient is recorded.
    ///
    /// # Errors
    /// A tensor is of another shape, layout, dtype or device.
    pub fn forward(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        self.check(x, weight, bias)?;
        x.apply_op3_no_bwd(weight, bias, self)
    }

    /// [`forward`](Self::forward) in the memory of `x`: all tensors that share it change.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_in_place(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
        self.check(x, weight, bias)?;
        x.inplace_op3(weight, bias, self)
    }

    /// What [`forward`](Self::forward) makes of each channel, for an operator that reads `x` to do on its way.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn channels(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<NormedChannels> {
        self.check(x, weight, bias)?;
        let [storage, weight, bias] = [x, weight, bias].map(Tensor::storage_and_layout);
        let x = values(&storage.0, storage.1)?;
        let (weight, bias) = (values(&weight.0, weight.1)?, values(&bias.0, bias.1)?);
        let channels = weight.len() / self.groups;
        let group = (x.len() / (storage.1.dims()[0] * self.groups).max(1)).max(1);
        let moments: Vec<_> = x
            .par_chunks(group)
            .with_min_len(TASK.div_ceil(group))
            .map(|x| vectorized!(moments(x, self.eps)))
            .collect();
        let affines = moments.iter().enumerate().flat_map(|(i, &[mean, scale])| {
            let first = i % self.groups * channels;
            (first..first + channels).map(move |channel| Affine {
                mean,
                scale: scale * weight[channel],
                bias: bias[channel],
            })
        });
        Ok(NormedChannels {
            affines: affines.collect(),
            silu: self.silu,
        })
    }

    fn check(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
        let fits = matches!(*x.dims(), [_, channels, ..]
            if weight.dims() == [channels] && bias.dims() == [channels]
                && self.groups > 0 && channels.is_multiple_of(self.groups));
        if !fits {
            let [x, weight, bias] = [x, weight, bias].map(Tensor::shape);
            bail!(
                "group norm in {} groups of {x:?} by {weight:?} and {bias:?}",
                self.groups
            );
        }
        Ok(())
    }

    /// Normalises `from` to `to`, or `to` itself.
    fn run(
        &self,
        from: Option<&[f32]>,
        to: &mut [f32],
        dims: &[usize],
        [weight, bias]: [&[f32]; 2],
    ) {
        if to.is_empty() {
            return;
        }
        let pixels: usize = dims[2..].iter().product();
        let channels = weight.len() / self.groups;
        let group = channels * pixels;
        to.par_chunks_mut(group)
            .enumerate()
            .with_min_len(TASK.div_ceil(group))
            .for_each(|(i, to)| {
                let from = from.map(|from| &from[i * group..][..group]);
                let [mean, scale] = vectorized!(moments(from.unwrap_or(to), self.eps));
                let first = i % self.groups * channels;
                for (i, to) in to.chunks_exact_mut(pixels).enumerate() {
                    let affine = Affine {
                        mean,
                        scale: scale * weight[first + i],
                        bias: bias[first + i],
                    };
                    let from = from.map(|from| &from[i * pixels..][..pixels]);
                    vectorized!(match (from, self.silu) {
                        (Some(from), true) => map(from, to, |v| silu(affine.of(v))),
                        (Some(from), false) => map(from, to, |v| affine.of(v)),
                        (None, true) => to.iter_mut().for_each(|v| *v = silu(affine.of(*v))),
                        (None, false) => to.iter_mut().for_each(|v| *v = affine.of(*v)),
                    });
                }
            });
    }
}

/// What a [`GroupNorm`] makes of the channels of a tensor.
#[derive(Debug, Clone)]
pub struct NormedChannels {
    /// Of each sample and channel.
    affines: Vec<Affine>,
    silu: bool,
}

impl NormedChannels {
    /// Of all samples.
    pub(crate) fn len(&self) -> usize {
        self.affines.len()
    }

    /// Values of a channel, of all samples', in their own place.
    #[inline(always)]
    pub(crate) fn apply(&self, channel: usize, values: &mut [f32]) {
        let affine = self.affines[channel];
        match self.silu {
            true => values.iter_mut().for_each(|v| *v = silu(affine.of(*v))),
            false => values.iter_mut().for_each(|v| *v = affine.of(*v)),
        }
    }
}

/// How the values of one channel change.
#[derive(Debug, Clone, Copy)]
struct Affine {
    mean: f32,
    scale: f32,
    bias: f32,
}

impl Affine {
    #[inline(always)]
    fn of(self, v: f32) -> f32 {
        (v - self.mean) * self.scale + self.bias
    }
}

#[inline(always)]
fn map(from: &[f32], to: &mut [f32], f: impl Fn(f32) -> f32) {
    for (to, v) in to.iter_mut().zip(from) {
        *to = f(*v);
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
        let x = slice(x, x_layout)?;
        let mut out = unwritten(x.len());
        let parameters = [slice(weight, weight_layout)?, slice(bias, bias_layout)?];
        self.run(Some(x), &mut out, x_layout.dims(), parameters);
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
        let parameters = [slice(weight, weight_layout)?, slice(bias, bias_layout)?];
        self.run(None, slice_mut(x, x_layout)?, x_layout.dims(), parameters);
        Ok(())
    }
}

/// Layer normalisation (Ba 2016) of the rows of `x [.., width]` by weight and bias `[width]`, all f32 on the CPU. No gradient is
/// recorded.
///
/// # Errors
/// `width` is 0, or a tensor is of another shape, dtype or device.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let fits = matches!(x.dims(), [.., width]
        if *width > 0 && weight.dims() == [*width] && bias.dims() == [*width]);
    if !fits {
        let [x, weight, bias] = [x, weight, bias].map(Tensor::shape);
        bail!("layer norm of {x:?} by {weight:?} and {bias:?}");
    }
    let [x, weight, bias] = [x.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let mut out = unwritten(x.elem_count());
    {
        let [x, weight, bias] = [&x, &weight, &bias].map(Tensor::storage_and_layout);
        let x = values(&x.0, x.1)?;
        let (weight, bias) = (values(&weight.0, weight.1)?, values(&bias.0, bias.1)?);
        let width = weight.len();
        out.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len(TASK.div_ceil(width))
            .for_each(|(out, x)| {
                vectorized!({
                    let [mean, scale] = moments(x, eps);
                    for (((out, v), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = (v - mean) * scale * weight + bias;
                    }
                });
            });
    }
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

/// `f` of the values, summed: in lanes, so that a compiler takes several at once.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    const LANES: usize = 32;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(*v));
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(*v));
    }
    lanes.iter().sum()
}

/// Mean and `1 / sqrt(variance + eps)`.
///
/// Each chunk is read twice: a single sum of squares loses the variance of values far from 0. Chunks are joined by their means
/// and sums of squared deviations (Chan 1979, eq. 2.1).
#[inline(always)]
fn moments(values: &[f32], eps: f64) -> [f32; 2] {
    let (mut count, mut mean, mut squares) = (0f64, 0f64, 0f64);
    for chunk in values.chunks(CHUNK) {
        let size = chunk.len() as f64;
        let chunk_mean = sum(chunk, |v| v) / size;
        let delta = chunk_mean - mean;
        squares += sum(chunk, |v| (v - chunk_mean) * (v - chunk_mean));
        squares += delta * delta * count * size / (count + size);
        count += size;
        mean += delta * size / count;
    }
    let variance = squares / count;
    [mean as f32, (variance + eps).sqrt().recip() as f32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::assert_same_bits;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..10_007)
            .map(|i| (i * 7919 % 2003) as f32 / 91.)
            .collect();
        assert_same_bits(|| moments(&x, 1e-5).to_vec());
    }
}
