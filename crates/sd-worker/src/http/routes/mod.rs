//! The worker's own routes.

mod docs;
mod health;
mod models;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::AppState;

/// All of them.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(models::models))
        .routes(routes!(models::schedulers))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::page))
}
