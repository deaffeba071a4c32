//! From the autoencoder's output to pixels, as diffusers' `VaeImageProcessor.postprocess` does it.

use candle_core::{DType, Tensor};
use image::RgbImage;

use crate::{Error, Result, error::Doing};

/// A decoder's -1..1 as 0..1, clamped.
///
/// # Errors
/// [`Error::NotFinite`] if a value is infinite or not a number: clamped and rounded, it would look like a picture.
pub(crate) fn unit_range(decoded: &Tensor) -> Result<Tensor> {
    let sum = decoded
        .to_dtype(DType::F32)
        .and_then(|values| values.sum_all()?.to_scalar::<f32>());
    if !sum.doing("checking the pictures")?.is_finite() {
        return Err(Error::NotFinite);
    }
    decoded
        .affine(0.5, 0.5)
        .and_then(|images| images.clamp(0_f32, 1_f32))
        .doing("clamping the pictures")
}

/// The pictures of a tensor `[b, 3, h, w]` of values in 0..1, as [`Run::decode`](crate::Run::decode) returns it, rounded
/// to 8 bits, half to even.
///
/// # Errors
/// The tensor has another shape, or cannot be read back from its device.
pub fn to_rgb(images: &Tensor) -> Result<Vec<RgbImage>> {
    let (batch, 3, height, width) = images.dims4().map_err(|_| not_images(images))? else {
        return Err(not_images(images));
    };
    let pixels = images
        .permute((0, 2, 3, 1))
        .and_then(|images| images.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>())
        .doing("reading the pictures back")?;
    let bytes: Vec<u8> = pixels
        .iter()
        .map(|value| (value * 255.0).round_ties_even() as u8)
        .collect();
    (0..batch)
        .map(|image| {
            let size = height * width * 3;
            let bytes = bytes[image * size..][..size].to_vec();
            let side = |side| u32::try_from(side).ok();
            RgbImage::from_raw(side(width)?, side(height)?, bytes)
        })
        .collect::<Option<_>>()
        .ok_or_else(|| not_images(images))
}

fn not_images(images: &Tensor) -> Error {
    Error::NotImages {
        found: images.dims().to_vec(),
    }
}
