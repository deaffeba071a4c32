//! The API's description, for programs and for people.

use axum::{
    Json,
    http::header,
    response::{Html, IntoResponse},
};

use crate::http::openapi;

/// Shows `/openapi.json` in a browser. Everything is in the page: nothing is fetched from elsewhere.
const PAGE: &str = include_str!("docs.html");

/// The description of this API
#[utoipa::path(get, path = "/openapi.json", tag = "worker", security(()), responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)))]
pub(super) async fn openapi() -> impl IntoResponse {
    Json(openapi::document())
}

/// The description of this API as a page
#[utoipa::path(get, path = "/docs", tag = "worker", security(()), responses((status = 200, description = "A page that needs nothing from elsewhere", body = String, content_type = "text/html")))]
pub(super) async fn page() -> impl IntoResponse {
    (
        [(
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'",
        )],
        Html(PAGE),
    )
}
