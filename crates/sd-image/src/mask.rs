//! Masks: 255 where a picture is repainted, 0 where it is kept.

use image::{GrayImage, ImageBuffer, Luma, Pixel, RgbImage};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The brightness of a picture, as Pillow's `convert("L")` (ITU-R 601).
pub fn luma(picture: &RgbImage) -> GrayImage {
    ImageBuffer::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue] = picture.get_pixel(x, y).0.map(u32::from);
        let sum = red * 19_595 + green * 38_470 + blue * 7_471;
        Luma([((sum + 0x8000) >> 16) as u8])
    })
}

/// Turns what is at least half white to white and the rest to black.
pub fn binarize(mask: &mut GrayImage) {
    for pixel in mask.iter_mut() {
        *pixel = if *pixel >= 128 { 255 } else { 0 };
    }
}

/// Swaps white and black.
pub fn invert(mask: &mut GrayImage) {
    for pixel in mask.iter_mut() {
        *pixel = 255 - *pixel;
    }
}

/// A rectangle of pixels; `right` and `bottom` are the first beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Column after the last.
    pub right: u32,
    /// Row after the last.
    pub bottom: u32,
}

impl Region {
    /// Columns.
    pub fn width(&self) -> u32 {
        self.right.saturating_sub(self.left)
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.bottom.saturating_sub(self.top)
    }

    /// The part of a picture that lies in the region.
    pub fn crop<P: Pixel<Subpixel = u8> + 'static>(
        &self,
        picture: &ImageBuffer<P, Vec<u8>>,
    ) -> ImageBuffer<P, Vec<u8>> {
        image::imageops::crop_imm(picture, self.left, self.top, self.width(), self.height())
            .to_image()
    }
}

/// The smallest region that holds all of the mask that is not black with `padding` pixels around it, widened or heightened
/// to the shape of `width` x `height` as far as the mask reaches (diffusers: `VaeImageProcessor.get_crop_region`).
///
/// # Errors
/// [`Error::EmptyMask`] if all is black, [`Error::Resize`] if a side is 0.
pub fn crop_region(mask: &GrayImage, width: u32, height: u32, padding: u32) -> Result<Region> {
    crate::resize::check(mask.dimensions(), (width, height))?;
    let marked = || {
        mask.enumerate_pixels()
            .filter(|(_, _, pixel)| pixel.0 != [0])
    };
    let columns = || marked().map(|(x, _, _)| x);
    let rows = || marked().map(|(_, y, _)| y);
    let (Some(left), Some(right), Some(top), Some(bottom)) =
        (columns().min(), columns().max(), rows().min(), rows().max())
    else {
        return Err(Error::EmptyMask);
    };
    let columns = Span::padded(left, right, padding, mask.width());
    let rows = Span::padded(top, bottom, padding, mask.height());

    let ratio = f64::from(width) / f64::from(height);
    let (long, high) = (columns.len(), rows.len());
    let (columns, rows) = if long / high > ratio {
        (columns, rows.grown(long / ratio))
    } else {
        (columns.grown(high * ratio), rows)
    };
    Ok(Region {
        left: columns.start,
        top: rows.start,
        right: columns.end,
        bottom: rows.end,
    })
}

/// The pixels from `start` to before `end` of a line of `line`.
struct Span {
    start: u32,
    end: u32,
    line: u32,
}

impl Span {
    fn padded(first: u32, last: u32, padding: u32, line: u32) -> Self {
        Self {
            start: first.saturating_sub(padding),
            end: last.saturating_add(1).saturating_add(padding).min(line),
            line,
        }
    }

    fn len(&self) -> f64 {
        f64::from(self.end - self.start)
    }

    /// Grown to `len` pixels on both sides, by the odd one at the end; shifted, then cut, where the line ends.
    fn grown(self, len: f64) -> Self {
        let line = i64::from(self.line);
        // Twice the line takes all of it, wherever the span lies.
        let growth = ((len - self.len()) as i64).min(2 * line);
        let end = i64::from(self.end) + growth - growth / 2;
        let start = i64::from(self.start) - growth / 2 - (end - line).max(0);
        let end = end.min(line) - start.min(0);
        Self {
            // Both lie in 0..=line now.
            start: start.max(0) as u32,
            end: end.min(line) as u32,
            line: self.line,
        }
    }
}
