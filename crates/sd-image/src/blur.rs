//! Pillow's `GaussianBlur`: three box blurs with fractional edges along each axis (Gwosdek et al. 2011).

use image::GrayImage;
use image::imageops::{rotate90, rotate270};

use crate::{Error, Result};

/// Box blurs along each axis.
const PASSES: u8 = 3;

/// Largest standard deviation, in pixels.
const MAX_RADIUS: f64 = 1024.0;

/// A blurred mask; `radius` is the standard deviation in pixels, 0 to 1024. Pixels beyond an edge repeat it.
///
/// # Errors
/// [`Error::Radius`].
pub fn gaussian_blur(mask: &GrayImage, radius: f64) -> Result<GrayImage> {
    if !(0.0..=MAX_RADIUS).contains(&radius) {
        return Err(Error::Radius {
            radius,
            max: MAX_RADIUS,
        });
    }
    if radius == 0.0 || mask.is_empty() {
        return Ok(mask.clone());
    }
    let across = |mask: GrayImage| {
        let radius = box_radius(radius as f32);
        (0..PASSES).fold(mask, |mask, _| box_blur_rows(&mask, radius))
    };
    Ok(rotate270(&across(rotate90(&across(mask.clone())))))
}

/// Half the width of a box that, applied [`PASSES`] times, has the variance of a Gaussian (ibid., eqs. 7, 11, 14). In f32
/// as in Pillow, whose rounding decides about single levels.
fn box_radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / f32::from(PASSES);
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let edge = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + edge / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// The mean over `2 * radius + 1` pixels of each row, the outermost of which count in part.
fn box_blur_rows(mask: &GrayImage, radius: f32) -> GrayImage {
    const ONE: u32 = 1 << 24;
    let whole = radius as usize;
    let weight = (ONE as f32 / (radius * 2.0 + 1.0)) as u32;
    // The division above may have rounded up.
    let edge_weight = ONE.saturating_sub((whole as u32 * 2 + 1) * weight) / 2;

    let width = mask.width() as usize;
    let mut blurred = mask.clone();
    for (row, out) in mask
        .chunks_exact(width)
        .zip(blurred.chunks_exact_mut(width))
    {
        // Pixel `x - before`, where the row's ends go on for ever.
        let at = |x: usize, before: usize| u32::from(row[x.saturating_sub(before).min(width - 1)]);
        let mut sum: u32 =
            at(0, 0) * (whole as u32 + 1) + (0..whole).map(|x| at(x, 0)).sum::<u32>();
        for (x, out) in out.iter_mut().enumerate() {
            sum = sum + at(x + whole, 0) - at(x, whole + 1);
            let edges = at(x, whole + 1) + at(x + whole + 1, 0);
            let mean = sum * weight + edges * edge_weight;
            *out = ((mean + ONE / 2) >> 24) as u8;
        }
    }
    blurred
}
