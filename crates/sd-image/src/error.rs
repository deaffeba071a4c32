//! Everything that can be wrong with a picture or a mask.

use crate::Limits;

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Text is neither base64 nor a `data:` URI with base64.
    #[error("the picture is neither base64 nor a data URI with base64")]
    Base64(#[source] base64::DecodeError),
    /// The bytes are of no format this crate reads.
    #[error("the picture is neither PNG nor JPEG nor WebP")]
    Format,
    /// The picture is larger than allowed.
    #[error(
        "the picture has {width} x {height} pixels ({num_bytes} bytes), allowed are {} a side, {} pixels and {} bytes",
        limits.max_side, limits.max_pixels, limits.max_alloc
    )]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes of the decoded pixels.
        num_bytes: u64,
        /// What is allowed.
        limits: Limits,
    },
    /// The bytes are damaged.
    #[error("the {format} picture cannot be decoded")]
    Decode {
        /// `PNG`, `JPEG` or `WebP`.
        format: &'static str,
        /// The decoder's reason.
        #[source]
        source: image::ImageError,
    },
}
