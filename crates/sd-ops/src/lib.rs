//! CPU operators that Candle lacks, for any [Candle](candle_core) project.
//!
//! [`conv2d`], [`attention`], [`linear`] and the norms take f32 tensors in Candle's own layout; those of [`bf16`] multiply in 16
//! bits. A sample's result has the same bits whatever the other samples of its batch are and however many threads compute it. The
//! instructions are the best of the machine that runs the program, AVX-512 or AVX2 with FMA on x86-64, AMX for bf16, whatever the
//! build was told.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sd_ops::{ConvWeight, Window, conv2d};
//!
//! let x = Tensor::ones((1, 3, 8, 8), DType::F32, &Device::Cpu)?;
//! let weight = ConvWeight::new(&Tensor::ones((5, 3, 3, 3), DType::F32, &Device::Cpu)?)?;
//! let y = conv2d(&x, &weight, None, Window { stride: 2, padding: 1 })?;
//! assert_eq!(y.dims(), [1, 5, 4, 4]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod activation;
mod attention;
pub mod bf16;
mod buffer;
mod conv;
mod convert;
mod isa;
mod layout;
mod linear;
mod math;
mod norm;
mod product;
mod recycler;
mod strip;
mod sum;
mod tasks;
mod transpose;

pub use activation::{gelu, quick_gelu};
pub use attention::{attention, attention_scratch};
pub use conv::{ConvWeight, Window, conv2d, conv2d_doubled, conv2d_scratch};
pub use convert::tensor_from_bytes;
pub use layout::{concat, transpose};
pub use linear::{LinearWeight, linear, linear_geglu};
pub use norm::{GroupNorm, NormedChannels, layer_norm};
pub use recycler::Recycler;
pub use sum::add_in_place;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use half::f16;

/// The elements of a contiguous f32 tensor on the CPU.
fn values<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => slice(storage, layout),
        _ => bail!("expected tensors on the CPU"),
    }
}

/// What is made of the elements of a tensor of f32 or f16 on the CPU.
fn from_numbers<T>(
    x: &Tensor,
    of_f32: impl FnOnce(&[f32]) -> T,
    of_f16: impl FnOnce(&[f16]) -> T,
) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            Ok(of_f32(&values[start..end]))
        }
        (Storage::Cpu(CpuStorage::F16(values)), Some((start, end))) => {
            Ok(of_f16(&values[start..end]))
        }
        _ => bail!(
            "a weight of {:?} on {:?}, expected F32 or F16 on the CPU",
            x.dtype(),
            x.device()
        ),
    }
}

/// The elements of a contiguous f32 tensor.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice()?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// The elements of a contiguous f32 tensor, to be changed.
fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("expected a contiguous tensor of F32, got {layout:?}"),
    }
}
