//! Whether the worker is alive, whether it works on jobs, and how well.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::http::{AppState, ErrorBody};

/// That the worker answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `healthy`.
    #[schema(example = "healthy")]
    status: &'static str,
    /// When it was asked.
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
}

/// Whether jobs are worked on.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// Whether they are.
    ready: bool,
    /// Why they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Whether the worker is alive
///
/// Needs no key and answers while models are loaded and the queue is full.
#[utoipa::path(get, path = "/health", tag = "worker", security(()), responses((status = 200, description = "It is", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health {
        status: "healthy",
        timestamp: OffsetDateTime::now_utc(),
    })
}

/// Whether the worker works on jobs
///
/// Needs no key. Jobs are accepted before it is ready.
#[utoipa::path(
    get, path = "/ready", tag = "worker", security(()),
    responses((status = 200, description = "It does", body = Ready), (status = 503, description = "Not yet, or no more", body = Ready)),
)]
pub(super) async fn ready(State(state): State<AppState>) -> impl IntoResponse {
    let readiness = state.engine.ready();
    let stopping = state.stopping.is_cancelled();
    let status = if readiness.ready && !stopping {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let reason = if stopping {
        Some("shutting down".to_owned())
    } else {
        readiness.reason
    };
    (
        status,
        Json(Ready {
            ready: status.is_success(),
            reason,
        }),
    )
}

/// Numbers for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "worker",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"), (status = 401, description = "No or a wrong key", body = ErrorBody)),
)]
pub(super) async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        state.metrics.render(),
    )
}
