//! Request bodies: read whole, within a size and a time, before a handler sees them.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};

use super::{ApiError, AppState, Result};

/// Layer: reads the body. One that is too long is refused by its `Content-Length` where it has one, and one that does not
/// arrive in time is given up, however steadily it drips.
pub(super) async fn read(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response> {
    let limit = usize::try_from(state.config.max_body.0).unwrap_or(usize::MAX);
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body may have at most {limit} bytes"),
        )
    };
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let (parts, body) = request.into_parts();
    let time = Duration::from_secs(state.config.body_timeout_seconds);
    let bytes = tokio::time::timeout(time, to_bytes(body, limit))
        .await
        .map_err(|_| {
            ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                format!("the body did not arrive within {} seconds", time.as_secs()),
            )
        })?
        .map_err(|error| {
            if is_length_limit(&error) {
                too_large()
            } else {
                ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "body_unreadable",
                    "the body broke off or is not chunked as announced",
                )
            }
        })?;
    Ok(next
        .run(Request::from_parts(parts, Body::from(bytes)))
        .await)
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error)
        .is_some_and(|source| source.to_string().contains("length limit"))
}
