//! What requests ask for, read as their routes read them but without a worker: for tools and fuzzing.

use axum::http::StatusCode;
use sd_pipeline::Request;
use serde_json::{Map, Value};

use super::{ApiError, Result, a1111, job_request::JobRequest, openai};

/// The body of `POST /v1/jobs`.
///
/// # Errors
/// As the route.
pub fn job(body: &[u8]) -> Result<Request> {
    Ok(JobRequest::read(object(body)?)?.request)
}

/// The body of `POST /v1/images/generations`.
///
/// # Errors
/// As the route.
pub fn openai_generation(body: &[u8]) -> Result<Request> {
    openai::read_generation(object(body)?)
}

/// The body of `POST /sdapi/v1/txt2img`.
///
/// # Errors
/// As the route.
pub fn a1111_txt2img(body: &[u8]) -> Result<Request> {
    a1111::read_txt2img(object(body)?)
}

/// The body of `POST /sdapi/v1/img2img`.
///
/// # Errors
/// As the route.
pub fn a1111_img2img(body: &[u8]) -> Result<Request> {
    a1111::read_img2img(object(body)?)
}

/// The settings that a PNG file says it was made with, by name; `None` if it is no PNG file.
pub fn png_parameters(file: &[u8]) -> Option<Map<String, Value>> {
    a1111::read_png(file).map(|info| info.parameters)
}

fn object(body: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string()))
}
