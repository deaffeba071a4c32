//! From a request of any of the APIs to an accepted job.

use std::time::Duration;

use axum::http::StatusCode;
use sd_image::Limits;
use sd_pipeline::Request;

use super::{ApiError, AppState, Result};
use crate::{
    config::Config,
    engine::{SubmitError, Submitted},
    jobs::Submission,
};

/// Checks the submission against the configuration's limits and hands it to the engine.
///
/// # Errors
/// 422 naming the field; those of the engine, see [`SubmitError`].
pub async fn submit(state: &AppState, submission: Submission) -> Result<Submitted> {
    check(&state.config, &submission.request)?;
    Ok(state.engine.submit(submission).await?)
}

/// What this worker is willing to do, whatever the model could.
fn check(config: &Config, request: &Request) -> Result<()> {
    let hires = request.hires.clone().unwrap_or_default();
    for (field, steps) in [
        ("num_inference_steps", request.num_inference_steps),
        ("hires.num_inference_steps", hires.num_inference_steps),
    ] {
        at_most(field, steps, config.max_steps.get())?;
    }
    at_most("num_images", request.num_images, config.max_images.get())?;
    for (field, width, height) in [
        ("width", request.width, request.height),
        ("hires.width", hires.width, hires.height),
    ] {
        let side = |side: Option<usize>| u64::try_from(side.unwrap_or(1)).unwrap_or(u64::MAX);
        pixels(config, field, side(width).saturating_mul(side(height)))?;
    }
    let limits = Limits {
        max_pixels: config.max_pixels.get(),
        ..Limits::default()
    };
    for (field, picture) in [
        ("init_image", &request.init_image),
        ("mask_image", &request.mask_image),
    ] {
        let size = picture
            .as_ref()
            .map(|picture| picture.size(&limits))
            .transpose();
        size.map_err(|error| ApiError::invalid(field, format!("{field}: {error}")))?;
    }
    Ok(())
}

fn at_most(field: &'static str, value: Option<usize>, most: usize) -> Result<()> {
    match value {
        Some(value) if value > most => Err(ApiError::invalid(
            field,
            format!("{field}: got {value}, this worker allows at most {most}"),
        )),
        _ => Ok(()),
    }
}

fn pixels(config: &Config, field: &'static str, pixels: u64) -> Result<()> {
    let most = config.max_pixels.get();
    if pixels > most {
        return Err(ApiError::invalid(
            field,
            format!(
                "{field}: got {pixels} pixels with the other side, this worker allows at most {most}"
            ),
        ));
    }
    Ok(())
}

impl From<SubmitError> for ApiError {
    /// The one place that says which failure has which status.
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
            },
            SubmitError::IdempotencyConflict => {
                Self::new(StatusCode::CONFLICT, "idempotency_conflict", message)
                    .param("Idempotency-Key")
            }
            SubmitError::UnknownModel { .. } => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", message).param("model")
            }
            SubmitError::Field { field, .. } => Self::invalid(field, message),
            SubmitError::Request(error) => error.into(),
            SubmitError::Store(error) => error.into(),
            SubmitError::ShuttingDown => Self {
                retry_after: Some(Duration::from_secs(10)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            },
        }
    }
}

impl From<crate::store::Error> for ApiError {
    fn from(error: crate::store::Error) -> Self {
        match &error {
            crate::store::Error::Full => {
                tracing::error!(%error, "nothing can be recorded");
                Self {
                    retry_after: Some(Duration::from_secs(60)),
                    ..Self::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "storage_full",
                        "the worker has no space left",
                    )
                }
            }
            _ => Self::internal(&error),
        }
    }
}
