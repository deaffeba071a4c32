//! The forms of edits and variations.

use axum::{
    extract::{
        Multipart,
        multipart::{MultipartError, MultipartRejection},
    },
    http::StatusCode,
};
use sd_image::Limits;
use sd_pipeline::Picture;
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, RefOr, SchemaFormat,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use super::fields::{Fields, Source};
use crate::http::{ApiError, Result, attached::read_fields, field::unsupported};

/// Fields that are no text; in a form everything is.
const NUMBERS: [&str; 8] = [
    "n",
    "output_compression",
    "partial_images",
    "num_inference_steps",
    "steps",
    "guidance_scale",
    "seed",
    "strength",
];

/// The form of an edit: a picture, perhaps a mask, and the fields.
pub(super) struct EditForm;

/// The form of a variation: a picture, and the fields.
pub(super) struct VariationForm;

impl ToSchema for EditForm {}
impl ToSchema for VariationForm {}

impl PartialSchema for EditForm {
    fn schema() -> RefOr<Schema> {
        form()
            .property(
                "image",
                file("The picture to change: PNG, JPEG or WebP. Without a mask, its transparent part is redrawn if it has one."),
            )
            .property("mask", file("Of the picture's size: what is transparent is redrawn."))
            .required("image")
            .required("prompt")
            .into()
    }
}

impl PartialSchema for VariationForm {
    fn schema() -> RefOr<Schema> {
        form()
            .property("image", file("The picture to vary: PNG, JPEG or WebP."))
            .required("image")
            .into()
    }
}

/// The fields that every form has.
fn form() -> ObjectBuilder {
    match Fields::schema() {
        RefOr::T(Schema::Object(fields)) => fields.into(),
        _ => ObjectBuilder::new(),
    }
}

fn file(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
        .description(Some(description))
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
    /// 415 if it is none; names the part that is missing, given twice, unknown, or of the wrong type.
    pub(super) async fn read(form: Result<Multipart, MultipartRejection>) -> Result<Self> {
        let mut form = form.map_err(|_| {
            ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "expected `Content-Type: multipart/form-data` with a boundary",
            )
            .param("Content-Type")
        })?;
        let mut texts = Map::new();
        let (mut image, mut mask) = (None, None);
        while let Some(part) = form.next_field().await.map_err(broken)? {
            let name = part.name().unwrap_or_default().to_owned();
            let taken = match name.as_str() {
                "image" | "image[]" => image.replace(picture(part).await?).is_some(),
                "mask" => mask.replace(picture(part).await?).is_some(),
                _ => {
                    let text = part.text().await.map_err(broken)?;
                    texts.insert(name.clone(), value(&name, text)).is_some()
                }
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
    /// A picture cannot be read or is too large, the sizes differ, or the mask has no transparency.
    pub(super) fn source(image: Picture, mask: Option<Picture>, limits: &Limits) -> Result<Source> {
        let wrong = |field: &'static str| {
            move |error: sd_image::Error| ApiError::invalid(field, format!("{field}: {error}"))
        };
        let decoded = image.decode(limits).map_err(wrong("image"))?;
        let Some(mask) = mask else {
            let redrawn = decoded.alpha.is_some_and(|alpha| alpha.contains(&0));
            let mask = redrawn.then(|| image.clone());
            return Ok(Source { image, mask });
        };
        let alpha = mask.decode(limits).map_err(wrong("mask"))?.alpha;
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

/// The value of a text part: a number or a boolean where one belongs there and can be read, otherwise the text.
fn value(name: &str, text: String) -> Value {
    let parsed = if NUMBERS.contains(&name) {
        text.parse().ok().map(Value::Number)
    } else if name == "stream" {
        text.parse().ok().map(Value::Bool)
    } else {
        None
    };
    parsed.unwrap_or(Value::String(text))
}

async fn picture(part: axum::extract::multipart::Field<'_>) -> Result<Picture> {
    let bytes = part.bytes().await.map_err(broken)?;
    Ok(Picture::from_bytes(&*bytes))
}

fn broken(error: MultipartError) -> ApiError {
    ApiError::new(error.status(), "invalid_form", error.body_text())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_booleans_of_a_form_are_no_text() {
        for (name, text, expected) in [
            ("n", "2", json!(2)),
            ("guidance_scale", "4.5", json!(4.5)),
            ("stream", "true", json!(true)),
            ("prompt", "2", json!("2")),
            ("n", "two", json!("two")),
            ("stream", "yes", json!("yes")),
        ] {
            assert_eq!(value(name, text.into()), expected, "{name} {text}");
        }
    }
}
