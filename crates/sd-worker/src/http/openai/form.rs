//! The forms of edits and variations.

use axum::extract::{Multipart, multipart::MultipartError};
use sd_image::Limits;
use sd_pipeline::Picture;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::fields::{Fields, Source, unsupported};
use crate::http::{ApiError, Result, attached::read_fields};

/// The form of an edit: a picture, perhaps a mask, and the fields.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form for the documentation")]
pub(super) struct EditForm {
    /// The picture to change: PNG, JPEG or WebP. Without a mask its own transparent part, if it has one, is redrawn.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// Of the same size as the picture: what is transparent is redrawn.
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
    #[schema(inline)]
    #[serde(flatten)]
    fields: Fields,
}

/// The form of a variation: a picture, and the fields.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a form for the documentation")]
pub(super) struct VariationForm {
    /// The picture to vary: PNG, JPEG or WebP.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    #[schema(inline)]
    #[serde(flatten)]
    fields: Fields,
}

/// The parts of a form.
#[derive(Debug)]
pub(super) struct Form {
    pub fields: Fields,
    pub image: Picture,
    pub mask: Option<Picture>,
}

impl Form {
    /// Reads a form.
    ///
    /// # Errors
    /// Names the part that is missing, given twice, unknown, or of the wrong type.
    pub(super) async fn read(mut form: Multipart) -> Result<Self> {
        let mut texts = Map::new();
        let (mut image, mut mask) = (None, None);
        while let Some(part) = form.next_field().await.map_err(broken)? {
            let name = part.name().unwrap_or_default().to_owned();
            let taken = match name.as_str() {
                "image" | "image[]" => image.replace(picture(part).await?).is_some(),
                "mask" => mask.replace(picture(part).await?).is_some(),
                _ => texts
                    .insert(
                        name.clone(),
                        Value::String(part.text().await.map_err(broken)?),
                    )
                    .is_some(),
            };
            if taken {
                let name = name.trim_end_matches("[]");
                return Err(unsupported(name, "is given twice, expected one"));
            }
        }
        Ok(Self {
            fields: read_fields(texts)?,
            image: image.ok_or_else(|| ApiError::invalid("image", "image: is missing"))?,
            mask,
        })
    }

    /// The pictures of an edit. Decodes both.
    ///
    /// # Errors
    /// A picture cannot be read, the sizes differ, or the mask has no transparency.
    pub(super) fn source(image: Picture, mask: Option<Picture>) -> Result<Source> {
        let limits = Limits::default();
        let wrong = |field: &'static str| {
            move |error: sd_image::Error| ApiError::invalid(field, format!("{field}: {error}"))
        };
        let decoded = image.decode(&limits).map_err(wrong("image"))?;
        let Some(mask) = mask else {
            let redrawn = decoded
                .alpha
                .is_some_and(|alpha| alpha.iter().any(|&opacity| opacity == 0));
            let mask = redrawn.then(|| image.clone());
            return Ok(Source { image, mask });
        };
        let alpha = mask.decode(&limits).map_err(wrong("mask"))?.alpha;
        let Some(alpha) = alpha else {
            return Err(ApiError::invalid(
                "mask",
                "mask: has no transparency, which says what is redrawn",
            ));
        };
        let (found, expected) = (alpha.dimensions(), decoded.rgb.dimensions());
        if found != expected {
            return Err(ApiError::invalid(
                "mask",
                format!(
                    "mask: is {} x {}, expected the picture's {} x {}",
                    found.0, found.1, expected.0, expected.1
                ),
            ));
        }
        Ok(Source {
            image,
            mask: Some(mask),
        })
    }
}

async fn picture(part: axum::extract::multipart::Field<'_>) -> Result<Picture> {
    let bytes = part.bytes().await.map_err(broken)?;
    Ok(Picture::from_bytes(bytes.to_vec()))
}

fn broken(error: MultipartError) -> ApiError {
    ApiError::new(error.status(), "invalid_form", error.body_text())
}
