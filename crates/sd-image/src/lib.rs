//! Pictures in and out of Stable Diffusion: safe decoding, Pillow's resizing and blur, masks.
//!
//! ```no_run
//! use sd_image::{Limits, Picture};
//!
//! let picture = Picture::from_bytes(std::fs::read("photo.jpg")?);
//! let photo = picture.decode(&Limits::default())?.rgb;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blur;
mod decode;
mod error;
mod fit;
mod jpeg;
mod mask;
mod outpaint;
mod overlay;
mod picture;
mod resize;
mod webp;

pub use blur::gaussian_blur;
pub use decode::{Decoded, Limits};
pub use error::{Error, Result};
pub use fit::{ResizeMode, check_fit, fit};
pub use image::{GrayImage, RgbImage};
pub use mask::{Region, binarize, crop_region, invert, luma};
pub use outpaint::{Margins, outpaint};
pub use overlay::overlay;
pub use picture::Picture;
pub use resize::{Filter, resize};
