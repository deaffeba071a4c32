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
    /// The decoder needs more memory than allowed, for more than the pixels.
    #[error("the {format} picture cannot be decoded in {max_alloc} bytes")]
    Memory {
        /// The picture's format.
        format: &'static str,
        /// [`Limits::max_alloc`].
        max_alloc: u64,
    },
    /// The bytes end before the picture does.
    #[error("the {format} picture is truncated")]
    Truncated {
        /// The picture's format.
        format: &'static str,
    },
    /// The bytes are damaged.
    #[error("the {format} picture cannot be decoded")]
    Decode {
        /// The picture's format.
        format: &'static str,
        /// The decoder's reason.
        #[source]
        source: image::ImageError,
    },
    /// A picture cannot be brought to a size, because it or the result would have no pixels or too many.
    #[error("cannot resize {} x {} pixels to {} x {}: sides are 1 to 65535 pixels", from.0, from.1, to.0, to.1)]
    Resize {
        /// Width and height of the picture.
        from: (u32, u32),
        /// Width and height asked for.
        to: (u32, u32),
    },
    /// A blur's radius is negative, too large or not a number.
    #[error("blur radius: got {radius}, expected 0 to {max} pixels")]
    Radius {
        /// What was asked for.
        radius: f64,
        /// The largest radius.
        max: f64,
    },
    /// A mask has no pixel that is repainted.
    #[error("the mask marks no pixel")]
    EmptyMask,
    /// Pictures that belong together differ in size.
    #[error("the {what} is {} x {} pixels, expected {} x {}", found.0, found.1, expected.0, expected.1)]
    Size {
        /// Which picture.
        what: &'static str,
        /// Its width and height.
        found: (u32, u32),
        /// Width and height of the original picture.
        expected: (u32, u32),
    },
}
