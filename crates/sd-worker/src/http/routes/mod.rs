//! The worker's own routes.

mod docs;
mod health;
pub(super) mod images;
pub(super) mod jobs;
mod models;
mod stream;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::AppState;

/// All of them.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(jobs::create, jobs::list))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(stream::stream))
        .routes(routes!(images::image))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(models::models))
        .routes(routes!(models::schedulers))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::page))
}
