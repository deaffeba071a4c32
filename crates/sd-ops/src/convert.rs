//! Stored numbers as tensors: Candle's own conversion runs on one thread.

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::buffer::room;
use crate::isa::vectorized;

/// Numbers at a time.
const CHUNK: usize = 1024;

/// A tensor of `dtype` on the CPU of the little-endian numbers in `bytes`, each of them f32, f16 or bf16. What `dtype` does not hold
/// is rounded to nearest, ties to even.
///
/// # Errors
/// `bytes` are not as many as `shape` takes; another dtype.
pub fn tensor_from_bytes(
    bytes: &[u8],
    stored: DType,
    shape: &[usize],
    dtype: DType,
) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    if count.checked_mul(stored.size_in_bytes()) != Some(bytes.len()) {
        bail!("{} bytes for {shape:?} of {stored:?}", bytes.len());
    }
    let read = match stored {
        DType::F32 => read_f32,
        DType::F16 => read_f16,
        DType::BF16 => read_bf16,
        other => bail!("numbers stored as {other:?}, expected F32, F16 or BF16"),
    };
    let size = stored.size_in_bytes();
    match dtype {
        DType::F32 => tensor(shape, chunks(bytes, size, 0f32, read)),
        DType::F16 => tensor(
            shape,
            chunks(bytes, size, f16::ZERO, |from, to| {
                let mut wide = [0.; CHUNK];
                let wide = &mut wide[..to.len()];
                read(from, wide);
                to.convert_from_f32_slice(wide);
            }),
        ),
        DType::BF16 => tensor(
            shape,
            chunks(bytes, size, bf16::ZERO, |from, to| {
                let mut wide = [0.; CHUNK];
                read(from, &mut wide[..to.len()]);
                vectorized!(round(&wide, to));
            }),
        ),
        other => bail!("numbers read as {other:?}, expected F32, F16 or BF16"),
    }
}

fn tensor<T: WithDType>(shape: &[usize], values: Vec<T>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Converts numbers of `size` bytes, on all threads.
fn chunks<T: Copy + Send + Sync>(
    bytes: &[u8],
    size: usize,
    zero: T,
    convert: impl Fn(&[u8], &mut [T]) + Sync,
) -> Vec<T> {
    /// Fewer are converted sooner than threads are woken.
    const SHARED: usize = 64 * CHUNK;
    let count = bytes.len() / size;
    if count < SHARED {
        let mut numbers = vec![zero; count];
        let chunks = numbers.chunks_mut(CHUNK).zip(bytes.chunks(CHUNK * size));
        chunks.for_each(|(to, bytes)| convert(bytes, to));
        return numbers;
    }
    let chunk = |bytes: &[u8]| {
        let mut to = [zero; CHUNK];
        convert(bytes, &mut to[..bytes.len() / size]);
        to
    };
    let mut chunks: Vec<[T; CHUNK]> = room(count.div_ceil(CHUNK));
    bytes
        .par_chunks(CHUNK * size)
        .map(chunk)
        .collect_into_vec(&mut chunks);
    let mut numbers = chunks.into_flattened();
    numbers.truncate(count);
    numbers
}

fn read_f32(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

fn read_f16(bytes: &[u8], out: &mut [f32]) {
    let mut bits = [0u16; CHUNK];
    let bits = &mut bits[..out.len()];
    for (bits, bytes) in bits.iter_mut().zip(bytes.as_chunks().0) {
        *bits = u16::from_le_bytes(*bytes);
    }
    bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
}

fn read_bf16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

#[inline(always)]
fn round(from: &[f32], to: &mut [bf16]) {
    for (to, v) in to.iter_mut().zip(from) {
        *to = bf16::from_f32(*v);
    }
}
