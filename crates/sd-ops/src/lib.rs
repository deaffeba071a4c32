//! CPU operators that Candle lacks, for any [Candle](candle_core) project.
//!
//! [`conv2d`] convolves and [`attention`] attends to f32 tensors in Candle's own layout. A sample's result has the same
//! bits whatever the other samples of its batch are and however many threads compute it.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sd_ops::{Window, conv2d};
//!
//! let x = Tensor::ones((1, 3, 8, 8), DType::F32, &Device::Cpu)?;
//! let weight = Tensor::ones((5, 3, 3, 3), DType::F32, &Device::Cpu)?;
//! let y = conv2d(&x, &weight, None, Window { stride: 2, padding: 1 })?;
//! assert_eq!(y.dims(), [1, 5, 4, 4]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod attention;
mod conv;
mod exp;
mod strip;

pub use attention::{attention, attention_scratch};
pub use conv::{Window, conv2d, conv2d_scratch};

use candle_core::{Layout, Result, Storage, bail};

/// The elements of a contiguous f32 tensor on the CPU.
fn values<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(&storage.as_slice()?[start..end]),
        _ => bail!("expected contiguous tensors on the CPU"),
    }
}
