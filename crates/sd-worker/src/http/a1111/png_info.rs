//! `png-info`: what a picture says of itself.

use axum::Json;
use sd_pipeline::Picture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{error::Refusals, infotext};
use crate::http::{ApiError, JsonObject, Result, attached::read_fields, heavy::by_length};

/// A picture to read.
#[derive(Deserialize, ToSchema)]
pub(super) struct PngInfoBody {
    /// A PNG file as base64 or as a data URI.
    #[schema(value_type = String)]
    image: Picture,
}

/// What a picture says of itself.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct PngInfo {
    /// Its text `parameters`, or empty.
    info: String,
    /// All its texts by keyword.
    items: Map<String, Value>,
    /// The settings in `info` by name.
    pub(in crate::http) parameters: Map<String, Value>,
}

/// How a picture was made, as its file says
#[utoipa::path(
    post, path = "/sdapi/v1/png-info", tag = "a1111", request_body = PngInfoBody,
    responses(
        (status = 200, description = "What the file says", body = PngInfo),
        Refusals,
    ),
)]
pub(super) async fn png_info(body: JsonObject) -> Result<Json<PngInfo>> {
    by_length(body.bytes.len(), move || {
        let body: PngInfoBody = read_fields(body.into_fields())?;
        read_png(body.image.bytes())
            .map(Json)
            .ok_or_else(|| ApiError::invalid("image", "image: is no PNG file"))
    })
    .await
}

/// What a PNG file says of itself; `None` if it is none.
pub(in crate::http) fn read_png(file: &[u8]) -> Option<PngInfo> {
    let items: Map<_, _> = infotext::texts(file)?
        .into_iter()
        .map(|(name, text)| (name, Value::String(text)))
        .collect();
    let info = items
        .get(infotext::PARAMETERS)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    Some(PngInfo {
        parameters: if info.is_empty() {
            Map::new()
        } else {
            infotext::parse(&info)
        },
        info,
        items,
    })
}
