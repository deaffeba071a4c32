//! What a client is told when a request fails: one body for every route.

use std::{error::Error as StdError, iter, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// [`std::result::Result`] with [`ApiError`].
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// Longest message in a body, in characters: a message may quote what the client sent.
const MAX_MESSAGE: usize = 500;

/// A refusal or a failure, as the client sees it: no paths, no secrets, no causes.
///
/// The response carries a copy as an extension, so that a layer can write it in another API's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What went wrong, for programs; stable.
    pub code: &'static str,
    /// What went wrong, for people.
    pub message: String,
    /// The field, header or parameter that is to blame.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

/// The body of every error response.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What any route that makes a job may refuse with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes responses for the documentation")]
pub(super) enum Refusals {
    /// Not JSON; in OpenAI's API also a field that is missing, unknown, unsupported or wrong
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// No or a wrong key
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// There is no such model
    #[response(status = 404)]
    NoModel(ErrorBody),
    /// The body came too slowly
    #[response(status = 408)]
    TooSlow(ErrorBody),
    /// The idempotency key was used for another request, or the job was cancelled
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The body is too long
    #[response(status = 413)]
    TooLong(ErrorBody),
    /// The body is of another type
    #[response(status = 415)]
    OtherType(ErrorBody),
    /// The queue is full
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds to wait.")))]
    QueueFull(ErrorBody),
    /// The worker or the job failed
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The worker is ending, or out of memory or space
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds to wait.")))]
    Unavailable(ErrorBody),
}

/// The error of an [`ErrorBody`].
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// What went wrong, for people.
    pub message: String,
    /// The kind of error.
    #[schema(example = "invalid_request_error")]
    pub r#type: &'static str,
    /// The field, header or parameter that is to blame.
    #[schema(required = true)]
    pub param: Option<String>,
    /// What went wrong, for programs.
    #[schema(example = "invalid_value")]
    pub code: &'static str,
}

impl ApiError {
    /// An error of which no field is to blame.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    /// Names the field, header or parameter that is to blame.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// 422: the field has a value that cannot be used.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message).param(param)
    }

    /// 422: there is no such field, or this worker cannot do what it asks.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unsupported_parameter",
            message,
        )
        .param(param)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 500: the cause goes to the log and not to the client.
    pub fn internal(cause: &(dyn StdError + 'static)) -> Self {
        tracing::error!(error = chain(cause), "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the worker failed; its log says why",
        )
    }

    /// The body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.chars().take(MAX_MESSAGE).collect(),
                r#type: match self.status.as_u16() {
                    401 => "authentication_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    429 => "rate_limit_error",
                    400..500 => "invalid_request_error",
                    _ => "server_error",
                },
                param: self.param.clone(),
                code: self.code,
            },
        }
    }
}

/// An error and its causes, for the log.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Basic comes second: a browser asks for a password only where it understands nothing better.
            for scheme in [
                "Bearer realm=\"sd-worker\"",
                "Basic realm=\"sd-worker\", charset=\"UTF-8\"",
            ] {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<sd_pipeline::Error> for ApiError {
    /// What the request is to blame for is 422 and names the field; everything else is the engine's failure.
    fn from(error: sd_pipeline::Error) -> Self {
        use sd_pipeline::Error;
        match &error {
            Error::Field { field, .. } => Self::invalid(*field, error.to_string()),
            Error::Picture { field, source } => {
                Self::invalid(*field, format!("{field}: {}", chain(source)))
            }
            Error::FieldJson { field, source } => {
                Self::invalid(field, format!("{field}: {source}"))
            }
            Error::RequestJson(source) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_value",
                source.to_string(),
            ),
            Error::Memory { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "insufficient_memory",
                error.to_string(),
            ),
            Error::NotTextToImage { .. } => Self::unsupported("model", error.to_string()),
            _ => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_field_is_named_and_a_failure_says_nothing() {
        let field = sd_pipeline::Error::Field {
            field: "width",
            value: "7".into(),
            expected: "a multiple of 8".into(),
        };
        let error = ApiError::from(field);
        assert_eq!(error.status, 422);
        assert_eq!(error.param.as_deref(), Some("width"));
        assert_eq!(error.body().error.r#type, "invalid_request_error");

        let failure = ApiError::from(sd_pipeline::Error::OtherPipeline);
        assert_eq!(failure.status, 500);
        assert!(!failure.message.contains("pipeline"));
    }

    #[test]
    fn an_unauthorized_response_offers_both_schemes() {
        let response =
            ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "no").into_response();
        let offers: Vec<_> = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .collect();
        assert_eq!(offers.len(), 2);
        assert!(response.extensions().get::<ApiError>().is_some());
    }
}
