//! Room around a picture, to be painted.

use image::{GrayImage, Luma, RgbImage};

use crate::{Error, Limits, Result};

/// Pixels to add on each side of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Margins {
    /// Columns to the left.
    pub left: u32,
    /// Rows above.
    pub top: u32,
    /// Columns to the right.
    pub right: u32,
    /// Rows below.
    pub bottom: u32,
}

/// A larger picture, whose margins repeat the original's edges, and its mask: white on the margins, black on the original.
///
/// # Errors
/// [`Error::TooLarge`] if the larger picture is beyond the limits, [`Error::Resize`] if the original has no pixels.
pub fn outpaint(
    picture: &RgbImage,
    margins: Margins,
    limits: &Limits,
) -> Result<(RgbImage, GrayImage)> {
    let (width, height) = picture.dimensions();
    let wider = width
        .saturating_add(margins.left)
        .saturating_add(margins.right);
    let higher = height
        .saturating_add(margins.top)
        .saturating_add(margins.bottom);
    if width == 0 || height == 0 {
        return Err(Error::Resize {
            from: (width, height),
            to: (wider, higher),
        });
    }
    limits.check((wider, higher), u64::from(wider) * u64::from(higher) * 3)?;

    let nearest = |at: u32, margin: u32, side: u32| at.saturating_sub(margin).min(side - 1);
    let larger = RgbImage::from_fn(wider, higher, |x, y| {
        *picture.get_pixel(
            nearest(x, margins.left, width),
            nearest(y, margins.top, height),
        )
    });
    let columns = margins.left..margins.left + width;
    let rows = margins.top..margins.top + height;
    let mask = GrayImage::from_fn(wider, higher, |x, y| {
        let original = columns.contains(&x) && rows.contains(&y);
        Luma([if original { 0 } else { 255 }])
    });
    Ok((larger, mask))
}
