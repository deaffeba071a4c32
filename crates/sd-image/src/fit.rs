//! Bringing a picture to the size of a request (diffusers: `VaeImageProcessor.resize`).

use image::imageops::replace;
use image::{ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};

use crate::resize::{check, resize_from, resize_part};
use crate::{Error, Filter, Result, resize};

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
/// As [`check_fit`].
pub fn fit<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    mode: ResizeMode,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let (inner_width, inner_height) = inner_size(picture.dimensions(), (width, height), mode)?;
    if mode == ResizeMode::Crop {
        // The cut margins are not made: they may be many times the picture.
        let (left, top) = (inner_width / 2 - width / 2, inner_height / 2 - height / 2);
        let size = (inner_width, inner_height);
        return Ok(resize_part(picture, size, (left, top), (width, height)));
    }
    let inner = resize(picture, inner_width, inner_height, Filter::Lanczos)?;
    if mode == ResizeMode::Stretch {
        return Ok(inner);
    }
    let (left, top) = (width / 2 - inner_width / 2, height / 2 - inner_height / 2);
    let mut canvas = ImageBuffer::new(width, height);
    replace(&mut canvas, &inner, left.into(), top.into());
    // Each margin repeats the edge, interpolated by Pillow's default filter from a box without extent. Where one side
    // is odd, the last row or column stays black.
    let margin = |edge: (u32, u32, u32, u32), width, height| {
        resize_from(&inner, edge, width, height, Filter::Bicubic)
    };
    if top > 0 {
        let above = margin((0, 0, width, 0), width, top)?;
        let below = margin((0, inner_height, width, inner_height), width, top)?;
        replace(&mut canvas, &above, 0, 0);
        replace(&mut canvas, &below, 0, i64::from(top + inner_height));
    }
    if left > 0 {
        let before = margin((0, 0, 0, height), left, height)?;
        let after = margin((inner_width, 0, inner_width, height), left, height)?;
        replace(&mut canvas, &before, 0, 0);
        replace(&mut canvas, &after, i64::from(left + inner_width), 0);
    }
    Ok(canvas)
}

/// Whether [`fit`] brings a picture of one size to another, widths first.
///
/// # Errors
/// [`Error::Resize`] if a side is 0, that of the picture inside its margins too, or a new one above 65535.
pub fn check_fit(from: (u32, u32), to: (u32, u32), mode: ResizeMode) -> Result<()> {
    inner_size(from, to, mode).map(|_| ())
}

/// The size of the whole picture, of which margins may be cut or to which they may be added.
fn inner_size(from: (u32, u32), to: (u32, u32), mode: ResizeMode) -> Result<(u32, u32)> {
    check(from, to)?;
    let ratio = f64::from(to.0) / f64::from(to.1);
    let picture_ratio = f64::from(from.0) / f64::from(from.1);
    // The side that reaches from edge to edge; the other one follows.
    let whole_width = match mode {
        ResizeMode::Stretch => return Ok(to),
        ResizeMode::Fill => ratio < picture_ratio,
        ResizeMode::Crop => ratio > picture_ratio,
    };
    let inner = if whole_width {
        (to.0, scaled(from.1, to.0, from.0))
    } else {
        (scaled(from.0, to.1, from.1), to.1)
    };
    if inner.0 == 0 || inner.1 == 0 {
        return Err(Error::Resize { from, to: inner });
    }
    Ok(inner)
}

/// `side * to / from`, rounded down; `from` is not 0. As `to` has 16 bits, only a side of more than that can exceed u32.
fn scaled(side: u32, to: u32, from: u32) -> u32 {
    let scaled = u64::from(side) * u64::from(to) / u64::from(from);
    scaled.try_into().unwrap_or(u32::MAX)
}
