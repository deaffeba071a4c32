//! Putting what was repainted into the original picture.

use image::imageops::replace;
use image::{GrayImage, RgbImage};

use crate::{Error, Region, ResizeMode, Result, fit};

/// The original picture with `repainted` laid over it where the mask is white (diffusers:
/// `VaeImageProcessor.apply_overlay`). Pixels under black are the original's, bit for bit; grey blends.
///
/// `repainted` has the size of the original or, when a region was repainted alone, is brought to the region's size.
///
/// # Errors
/// [`Error::Size`] if sizes differ, [`Error::Resize`] if the region has no pixels.
pub fn overlay(
    original: &RgbImage,
    mask: &GrayImage,
    repainted: &RgbImage,
    region: Option<Region>,
) -> Result<RgbImage> {
    let mut picture = match region {
        None => repainted.clone(),
        Some(region) => {
            let part = fit(repainted, region.width(), region.height(), ResizeMode::Crop)?;
            let mut picture = RgbImage::new(original.width(), original.height());
            replace(&mut picture, &part, region.left.into(), region.top.into());
            picture
        }
    };
    for (what, found) in [
        ("mask", mask.dimensions()),
        ("repainted picture", picture.dimensions()),
    ] {
        if found != original.dimensions() {
            return Err(Error::Size {
                what,
                found,
                expected: original.dimensions(),
            });
        }
    }
    for ((pixel, kept), mask) in picture
        .pixels_mut()
        .zip(original.pixels())
        .zip(mask.pixels())
    {
        let alpha = 255 - mask.0[0];
        for (sample, kept) in pixel.0.iter_mut().zip(kept.0) {
            *sample = over(kept, alpha, *sample);
        }
    }
    Ok(picture)
}

/// `above` of opacity `alpha` on `below`, with the roundings of Pillow's way there: the original is pasted through the
/// mask with its colours multiplied by the opacity, divided by it again, and composited in 7 more bits.
fn over(above: u8, alpha: u8, below: u8) -> u8 {
    if alpha == 0 {
        return below;
    }
    let alpha = u32::from(alpha);
    let multiplied = div_255(u32::from(above) * alpha + 128);
    let above = (255 * multiplied / alpha).min(255);
    let sum = (above * alpha + u32::from(below) * (255 - alpha)) << 7;
    (div_255(sum + (128 << 7)) >> 7) as u8
}

/// `n / 255`, nearly.
fn div_255(n: u32) -> u32 {
    (n + (n >> 8)) >> 8
}
