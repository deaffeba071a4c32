//! Axum's extractors with this API's errors.

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ApiError, Result, heavy::by_length};

/// Values in a JSON body, nested ones too. Each takes many times its length in memory, and no request needs so many.
const MAX_VALUES: usize = 10_000;

/// A JSON object as it is, with the bytes it was read from. 415 for another content type, 400 for what is not JSON, 422 for
/// JSON that is no object, 413 for one of too many values.
#[derive(Clone, Debug)]
pub struct JsonObject {
    /// The object.
    pub fields: Map<String, Value>,
    /// The body.
    pub bytes: axum::body::Bytes,
}

/// Query parameters. 422 naming the parameter.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

/// Parts of the path. 404 for those that cannot be read.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl JsonObject {
    /// The object alone: what stays is not kept while a request waits for its pictures.
    pub(super) fn into_fields(self) -> Map<String, Value> {
        self.fields
    }
}

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let bytes = json_bytes(request, state).await?;
        by_length(bytes.len(), move || {
            if num_values(&bytes) > MAX_VALUES {
                return Err(ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    format!("the body may have at most {MAX_VALUES} values"),
                ));
            }
            match serde_json::from_slice(&bytes).map_err(|error| bad_json(&error))? {
                Value::Object(fields) => Ok(Self { fields, bytes }),
                _ => Err(ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid_value",
                    "expected a JSON object",
                )),
            }
        })
        .await
    }
}

async fn json_bytes<S: Send + Sync>(request: Request, state: &S) -> Result<axum::body::Bytes> {
    if !is_json(request.headers()) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "expected `Content-Type: application/json`",
        )
        .param("Content-Type"));
    }
    axum::body::Bytes::from_request(request, state)
        .await
        .map_err(|_| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "body_unreadable",
                "the body broke off",
            )
        })
}

/// How many values a JSON text has at most: one, and one for each comma and opening bracket outside its strings.
fn num_values(json: &[u8]) -> usize {
    let mut count = 1;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' | b'[' | b'{' => count += 1,
            b'"' => {
                // To the string's end; what follows a backslash does not end it.
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    count
}

/// A page of another origin can send `text/plain` without asking; JSON it cannot.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn bad_json(error: &serde_json::Error) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "invalid_json",
        format!("the body is not JSON: {error}"),
    )
}

/// The name in serde's message about an unknown or missing field, which it does not give otherwise.
pub(crate) fn unknown_field(message: &str) -> Option<String> {
    let rest = ["unknown field `", "missing field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start))?;
    Some(rest.split('`').next()?.to_owned())
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let text = rejection.body_text();
                let reason = text.split_once(": ").map_or(&*text, |(_, reason)| reason);
                let (name, _) = reason.split_once(':').unwrap_or(("query", reason));
                let name = unknown_field(reason).unwrap_or_else(|| name.to_owned());
                Err(ApiError::invalid(name, reason))
            }
        }
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|_: PathRejection| ApiError::not_found("there is nothing under this path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_strings() {
        for (json, count) in [
            (r#"7"#, 1),
            (r#"{"a": 1, "b": [1, 2]}"#, 5),
            (r#"{"a": "[,,\",,{\\", "b": ","}"#, 3),
            (r#""never ends \"#, 1),
        ] {
            assert_eq!(num_values(json.as_bytes()), count, "{json}");
        }
    }
}
