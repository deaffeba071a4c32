//! The HTTP service: [`app`] is all of it as an axum router.

mod a1111;
mod accept;
mod attached;
mod auth;
mod body;
mod error;
mod event_frame;
mod extract;
mod field;
mod guard;
mod heavy;
mod job_request;
mod listener;
mod observe;
mod openai;
mod openapi;
pub mod read;
mod routes;
mod submit;

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa_axum::router::OpenApiRouter;

pub use auth::{Client, Keys};
pub(crate) use error::chain;
pub use error::{ApiError, ErrorBody, ErrorDetail, Result};
pub(crate) use event_frame::EventFrame;
pub use extract::{JsonObject, Path, Query};
pub use listener::serve;
pub use routes::jobs::json as job_json;
pub use submit::submit;

use crate::{config::Config, engine::Engine};

/// What every handler can use. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// Works on the jobs.
    pub engine: Engine,
    /// What the service was told.
    pub config: Arc<Config>,
    /// Who may ask.
    pub keys: Keys,
    /// Cancelled when the service is to end: streams end then.
    pub stopping: CancellationToken,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
}

/// The service.
pub fn app(state: AppState) -> Router {
    let cors = cors(&state.config);
    let (router, _) = routes().split_for_parts();
    router
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        // The last layer is the outermost: nothing is read of a request before its host, origin and key are known.
        .layer(from_fn_with_state(state.clone(), body::read))
        .layer(from_fn_with_state(state.clone(), auth::authenticate))
        .layer(cors)
        .layer(from_fn_with_state(state.clone(), guard::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(a1111::web_ui_errors))
        .layer(from_fn(observe::observe))
        .with_state(state)
}

/// Every route with its documentation.
fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .merge(routes::routes())
        .merge(openai::routes())
        .merge(a1111::routes())
}

/// Off unless origins are allowed.
fn cors(config: &Config) -> CorsLayer {
    if config.cors_origins.is_empty() {
        return CorsLayer::new();
    }
    let origins = if config.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(
            config
                .cors_origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        )
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_NONE_MATCH,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("x-api-key"),
        ])
        .expose_headers([
            header::ETAG,
            header::LOCATION,
            header::RETRY_AFTER,
            observe::REQUEST_ID,
        ])
}

async fn unknown_route() -> ApiError {
    ApiError::not_found("there is nothing under this path; /docs lists what there is")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take that method",
    )
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    // The panic's message is on standard error already.
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "the worker failed; its log says why",
    )
    .into_response()
}
