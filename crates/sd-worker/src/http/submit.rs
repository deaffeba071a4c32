//! From a request of any of the APIs to an accepted job.

use std::time::Duration;

use axum::http::StatusCode;
use sd_image::{Limits, Picture};
use sd_pipeline::Request;

use super::{ApiError, AppState, Result, chain};
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
    let models = state.engine.models();
    // The engine refuses a model that it does not know.
    if let Some(model) = models.iter().find(|model| model.name == submission.model) {
        let defaults = &model.config.defaults;
        check(
            &state.config,
            &submission.request,
            (defaults.width, defaults.height),
        )?;
    }
    Ok(state.engine.submit(submission).await?)
}

/// What this worker is willing to do, whatever the model could. `size` is the model's width and height.
fn check(config: &Config, request: &Request, size: (usize, usize)) -> Result<()> {
    let hires = request.hires.as_ref();
    for (field, steps) in [
        ("num_inference_steps", request.num_inference_steps),
        (
            "hires.num_inference_steps",
            hires.and_then(|hires| hires.num_inference_steps),
        ),
    ] {
        at_most(field, steps, config.max_steps.get())?;
    }
    at_most("num_images", request.num_images, config.max_images.get())?;

    let given = picture_size(config, "init_image", request.init_image.as_ref())?;
    picture_size(config, "mask_image", request.mask_image.as_ref())?;
    let (width, height) = given
        .filter(|_| request.padding_mask_crop.is_none())
        .unwrap_or(size);
    let width = request.width.unwrap_or(width);
    let height = request.height.unwrap_or(height);
    pixels("width", width, height, config)?;
    if let Some(hires) = hires {
        let ratio = |to: Option<usize>, from: usize| to.map(|to| to as f64 / from.max(1) as f64);
        let scale = hires
            .scale
            .or(ratio(hires.width, width))
            .or(ratio(hires.height, height))
            .unwrap_or(2.0);
        // The cast saturates, and a scale that is no number is 0.
        let scaled = |side: usize| (side as f64 * scale) as usize;
        let width = hires.width.unwrap_or_else(|| scaled(width));
        let height = hires.height.unwrap_or_else(|| scaled(height));
        pixels("hires", width, height, config)?;
    }
    Ok(())
}

/// How large a picture this worker takes.
pub(super) fn picture_limits(config: &Config) -> Limits {
    Limits {
        max_pixels: config.max_pixels.get(),
        ..Limits::default()
    }
}

/// Width and height of a picture that was given, from its header.
fn picture_size(
    config: &Config,
    field: &'static str,
    picture: Option<&Picture>,
) -> Result<Option<(usize, usize)>> {
    let Some(picture) = picture else {
        return Ok(None);
    };
    let (width, height) = picture
        .size(&picture_limits(config))
        .map_err(|error| ApiError::invalid(field, format!("{field}: {}", chain(&error))))?;
    Ok(Some((width as usize, height as usize)))
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

fn pixels(field: &'static str, width: usize, height: usize, config: &Config) -> Result<()> {
    let most = config.max_pixels.get();
    if (width as u64).saturating_mul(height as u64) > most {
        return Err(ApiError::invalid(
            field,
            format!(
                "{field}: {width}x{height} pixels, this worker allows at most {most} in a picture"
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
