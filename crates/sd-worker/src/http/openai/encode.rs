//! The worker's PNG files in the format that the client asked for.

use image::{ImageFormat, imageops::FilterType};

use super::fields::Reply;
use crate::http::{ApiError, Result, heavy::heavy, routes::images};

/// A picture of the worker as the client wants it. PNG stays as it is, with its description.
///
/// # Errors
/// The store holds no PNG file.
pub(super) async fn encode(png: Vec<u8>, reply: Reply) -> Result<Vec<u8>> {
    images::encode(png, reply.format.into(), reply.jpeg_quality).await
}

/// As [`encode`], for a preview: brought to `(width, height)` in pixels first.
///
/// # Errors
/// The engine made no PNG file.
pub(super) async fn encode_preview(
    png: Vec<u8>,
    (width, height): (u32, u32),
    reply: Reply,
) -> Result<Vec<u8>> {
    let work = move || -> image::ImageResult<_> {
        let mut preview = image::load_from_memory_with_format(&png, ImageFormat::Png)?.into_rgb8();
        if preview.dimensions() != (width, height) {
            preview = image::imageops::resize(&preview, width, height, FilterType::Triangle);
        }
        images::written(&preview, reply.format.into(), reply.jpeg_quality)
    };
    heavy(move || work().map_err(|error| ApiError::internal(&error))).await
}
