//! Errors in the web UI's form.

use axum::{
    Json,
    extract::Request,
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::http::ApiError;

/// The body of every error.
#[derive(Serialize, ToSchema)]
pub(super) struct WebUiError {
    /// The kind of error.
    #[schema(example = "invalid_value")]
    error: &'static str,
    /// What went wrong.
    detail: String,
    /// Always empty.
    body: &'static str,
    /// The field that is to blame, or empty.
    errors: String,
}

/// What any endpoint that takes a body may refuse with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes responses for the documentation")]
pub(super) enum Refusals {
    /// Not JSON
    #[response(status = 400)]
    NotJson(WebUiError),
    /// No or a wrong key
    #[response(status = 401)]
    Unauthorized(WebUiError),
    /// The body came too slowly
    #[response(status = 408)]
    TooSlow(WebUiError),
    /// The body is too long
    #[response(status = 413)]
    TooLong(WebUiError),
    /// Not `application/json`
    #[response(status = 415)]
    NoJsonType(WebUiError),
    /// A field is unsupported or wrong
    #[response(status = 422)]
    Invalid(WebUiError),
    /// The queue is full
    #[response(status = 429)]
    QueueFull(WebUiError),
    /// The job failed
    #[response(status = 500)]
    Failed(WebUiError),
    /// The worker is ending, or out of memory or space
    #[response(status = 503)]
    Unavailable(WebUiError),
}

/// Layer: errors in the web UI's form under the web UI's paths, also those of the layers within.
pub(in crate::http) async fn web_ui_errors(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_web_uis = path.starts_with("/sdapi/") || path.starts_with("/internal/");
    let response = next.run(request).await;
    if is_web_uis {
        as_web_ui_error(response)
    } else {
        response
    }
}

fn as_web_ui_error(response: Response) -> Response {
    let Some(error) = response.extensions().get::<ApiError>().cloned() else {
        return response;
    };
    let body = Json(WebUiError {
        error: error.code,
        detail: error.body().error.message,
        body: "",
        errors: error.param.clone().unwrap_or_default(),
    });
    let (mut parts, _) = response.into_parts();
    let (body_parts, body) = body.into_response().into_parts();
    parts.headers.extend(body_parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}
