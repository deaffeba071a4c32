//! A job's pictures, in the format that the client prefers.

use std::io::Cursor;

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::jobs::find;
use crate::http::{ApiError, AppState, Client, ErrorBody, Path, Result, accept, heavy::heavy};

/// Quality of JPEG files where the client has no say, of 100.
const JPEG_QUALITY: u8 = 92;

/// A file format of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// As it is stored, with its metadata.
    Png,
    /// Without metadata.
    Jpeg,
    /// Lossless, without metadata.
    Webp,
}

impl Format {
    /// In the order of preference where the client has none.
    const ALL: [Self; 3] = [Self::Png, Self::Webp, Self::Jpeg];

    /// Its media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }
}

/// A picture
///
/// `Accept` chooses the format. The PNG file carries the parameters it was made with.
#[utoipa::path(
    get, path = "/v1/jobs/{job_id}/images/{index}", tag = "jobs",
    params(
        ("job_id" = String, Path, format = "uuid"),
        ("index" = usize, Path, description = "Which picture, from 0."),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of a copy that is there already."),
    ),
    responses(
        (status = 200, description = "The picture", content(
            (Vec<u8> = "image/png"), (Vec<u8> = "image/jpeg"), (Vec<u8> = "image/webp")),
            headers(("ETag" = String, description = "Names these bytes."))),
        (status = 304, description = "The copy is right"),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 404, description = "You have no such picture (yet, or any more)", body = ErrorBody),
        (status = 406, description = "No format is acceptable", body = ErrorBody),
    ),
)]
pub(super) async fn image(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Path((id, index)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response> {
    let job = find(&state, &client, &id).await?;
    let unknown = || {
        ApiError::not_found(format!("the job is {} and has no such picture", job.state))
            .param("index")
    };
    let index: usize = index.parse().map_err(|_| unknown())?;
    let image = job
        .images
        .iter()
        .find(|image| image.index == index)
        .ok_or_else(unknown)?;
    let format = accept::best(&headers, Format::ALL.map(Format::media_type))
        .map(|best| Format::ALL[best])
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::NOT_ACCEPTABLE,
                "not_acceptable",
                "the picture can be had as image/png, image/jpeg or image/webp",
            )
            .param("Accept")
        })?;
    let etag = format!("\"{}-{}\"", image.sha256, format.extension());
    let cached = [
        (header::ETAG, etag.clone()),
        (
            header::CACHE_CONTROL,
            "private, max-age=3600, immutable".to_owned(),
        ),
        (header::VARY, "Accept".to_owned()),
    ];
    if accept::matches_etag(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, cached).into_response());
    }
    let png = state
        .engine
        .image(job.id, index)
        .await?
        .ok_or_else(unknown)?;
    let bytes = encode(png, format, JPEG_QUALITY).await?;
    let name = format!(
        "inline; filename=\"{}-{index}.{}\"",
        job.id,
        format.extension()
    );
    Ok((
        cached,
        [
            (header::CONTENT_TYPE, format.media_type().to_owned()),
            (header::CONTENT_DISPOSITION, name),
        ],
        bytes,
    )
        .into_response())
}

/// The picture of a PNG file in another format. `jpeg_quality` is of 100.
///
/// # Errors
/// 500 if the file is damaged.
pub(crate) async fn encode(png: Vec<u8>, format: Format, jpeg_quality: u8) -> Result<Vec<u8>> {
    if format == Format::Png {
        return Ok(png);
    }
    heavy(move || transcode(&png, format, jpeg_quality).map_err(|error| ApiError::internal(&error)))
        .await
}

fn transcode(png: &[u8], format: Format, jpeg_quality: u8) -> image::ImageResult<Vec<u8>> {
    let picture = image::load_from_memory_with_format(png, image::ImageFormat::Png)?.into_rgb8();
    written(&picture, format, jpeg_quality)
}

/// The file of a picture. `jpeg_quality` is of 100.
///
/// # Errors
/// The picture is empty.
pub(crate) fn written(
    picture: &image::RgbImage,
    format: Format,
    jpeg_quality: u8,
) -> image::ImageResult<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    match format {
        Format::Jpeg => {
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(
                &mut bytes,
                jpeg_quality.clamp(1, 100),
            );
            picture.write_with_encoder(encoder)?;
        }
        Format::Webp => picture.write_to(&mut bytes, image::ImageFormat::WebP)?,
        Format::Png => picture.write_to(&mut bytes, image::ImageFormat::Png)?,
    }
    Ok(bytes.into_inner())
}
