//! Pictures in and out of Stable Diffusion: safe decoding, Pillow's resizing and blur, masks.
//!
//! ```no_run
//! use sd_image::{Limits, Picture};
//!
//! let picture = Picture::from_bytes(std::fs::read("photo.jpg")?);
//! let photo = picture.decode(&Limits::default())?.rgb;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod decode;
mod error;
mod picture;

pub use decode::{Decoded, Limits};
pub use error::{Error, Result};
pub use image::{GrayImage, RgbImage};
pub use picture::Picture;
