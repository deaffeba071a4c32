//! Bringing a picture to the size of a request (diffusers: `VaeImageProcessor.resize`).

use image::imageops::replace;
use image::{ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};

use crate::resize::{check, resize_from};
use crate::{Filter, Result, resize};

/// What gives when a picture and the asked-for size differ in shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// The picture's proportions. In diffusers: `default`.
    #[default]
    #[serde(alias = "default")]
    Stretch,
    /// Nothing: the whole picture in the middle, the margins drawn out from its edges.
    Fill,
    /// The picture's margins, which are cut.
    Crop,
}

/// A picture brought to `width` x `height` with Lanczos' filter.
///
/// # Errors
/// [`Error::Resize`](crate::Error::Resize) if a side is 0, that of the picture inside its margins too.
pub fn fit<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    mode: ResizeMode,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    check(picture.dimensions(), (width, height))?;
    let ratio = f64::from(width) / f64::from(height);
    let picture_ratio = f64::from(picture.width()) / f64::from(picture.height());
    // The side that reaches from edge to edge; the other one follows.
    let whole_width = match mode {
        ResizeMode::Stretch => return resize(picture, width, height, Filter::Lanczos),
        ResizeMode::Fill => ratio < picture_ratio,
        ResizeMode::Crop => ratio > picture_ratio,
    };
    let (inner_width, inner_height) = if whole_width {
        (width, scaled(picture.height(), width, picture.width()))
    } else {
        (scaled(picture.width(), height, picture.height()), height)
    };
    let inner = resize(picture, inner_width, inner_height, Filter::Lanczos)?;

    let left = i64::from(width / 2) - i64::from(inner_width / 2);
    let top = i64::from(height / 2) - i64::from(inner_height / 2);
    let mut canvas = ImageBuffer::new(width, height);
    replace(&mut canvas, &inner, left, top);
    // Each margin repeats the edge, interpolated by Pillow's default filter from a box without extent. Where one side
    // is odd, the last row or column stays black.
    let margin = |edge: (u32, u32, u32, u32), width, height| {
        resize_from(&inner, edge, width, height, Filter::Bicubic)
    };
    if let (ResizeMode::Fill, Ok(top @ 1..)) = (mode, u32::try_from(top)) {
        let above = margin((0, 0, width, 0), width, top)?;
        let below = margin((0, inner_height, width, inner_height), width, top)?;
        replace(&mut canvas, &above, 0, 0);
        replace(&mut canvas, &below, 0, i64::from(top + inner_height));
    }
    if let (ResizeMode::Fill, Ok(left @ 1..)) = (mode, u32::try_from(left)) {
        let before = margin((0, 0, 0, height), left, height)?;
        let after = margin((inner_width, 0, inner_width, height), left, height)?;
        replace(&mut canvas, &before, 0, 0);
        replace(&mut canvas, &after, i64::from(left + inner_width), 0);
    }
    Ok(canvas)
}

/// `side * to / from`, rounded down. `from` is not 0; a result beyond u32 is too large for `resize` in any case.
fn scaled(side: u32, to: u32, from: u32) -> u32 {
    let scaled = u64::from(side) * u64::from(to) / u64::from(from);
    scaled.try_into().unwrap_or(u32::MAX)
}
