//! A name, a span and numbers for every request.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, field::Empty};
use uuid::Uuid;

/// The header that carries a request's name, both ways.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Layer: opens a span, counts and times the request and returns its name. Neither query nor body is logged.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        %method,
        path = request.uri().path(),
        status = Empty,
        error = Empty,
    );
    let start = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let seconds = start.elapsed().as_secs_f64();
    let status = response.status();
    span.record("status", status.as_u16());
    let error = response.extensions().get::<super::ApiError>();
    if let Some(error) = error {
        span.record("error", error.code);
        metrics::counter!("sd_http_errors_total", "code" => error.code).increment(1);
    }
    span.in_scope(|| tracing::debug!(milliseconds = seconds * 1e3, "answered"));
    metrics::counter!(
        "sd_http_requests_total",
        "method" => method_label(&method), "route" => route.clone(), "status" => status.as_u16().to_string(),
    )
    .increment(1);
    metrics::histogram!("sd_http_request_seconds", "route" => route).record(seconds);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// A method as a label. Clients may make up methods, and each label's value is kept for ever.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::DELETE => "DELETE",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        Method::PUT => "PUT",
        _ => "other",
    }
}

/// The client's own name for the request if it is a short word, otherwise a new one.
fn request_id(request: &Request) -> HeaderValue {
    let is_word = |value: &&HeaderValue| {
        (1..=64).contains(&value.len())
            && value
                .as_bytes()
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
    };
    request
        .headers()
        .get(REQUEST_ID)
        .filter(is_word)
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&Uuid::new_v4().to_string())
                .unwrap_or(HeaderValue::from_static("unnamed"))
        })
}
