//! What there is to choose from.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::{AppState, ErrorBody};

/// The models, the default one first.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    /// The models.
    data: Vec<Model>,
}

/// A model. The first fields are those of OpenAI's models.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    /// What requests call it.
    id: String,
    /// Always `model`.
    #[schema(example = "model")]
    object: &'static str,
    /// Unknown, so 0.
    created: i64,
    /// Always `sd-worker`.
    #[schema(example = "sd-worker")]
    owned_by: &'static str,
    /// Whether it is in memory.
    loaded: bool,
    /// SHA-256 of the UNet's weights, once they have been read.
    sha256: Option<String>,
    /// The kind of model, if it is a known one.
    version: Option<&'static str>,
    /// What a request without these fields gets.
    defaults: Defaults,
}

/// A model's defaults.
#[derive(Serialize, ToSchema)]
pub(super) struct Defaults {
    /// In pixels.
    width: usize,
    /// In pixels.
    height: usize,
    /// Denoising steps.
    num_inference_steps: usize,
    /// Classifier-free guidance.
    guidance_scale: f64,
    /// Class of the scheduler.
    scheduler: String,
}

/// The schedulers.
#[derive(Serialize, ToSchema)]
pub(super) struct SchedulerList {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    /// The schedulers.
    data: Vec<Scheduler>,
}

/// A scheduler.
#[derive(Serialize, ToSchema)]
pub(super) struct Scheduler {
    /// What requests call it.
    id: &'static str,
    /// Always `scheduler`.
    #[schema(example = "scheduler")]
    object: &'static str,
    /// Its class in diffusers, which requests can name too.
    class: &'static str,
}

/// The models
#[utoipa::path(
    get, path = "/v1/models", tag = "models",
    responses((status = 200, description = "The models, the default one first", body = ModelList), (status = 401, description = "No or a wrong key", body = ErrorBody)),
)]
pub(super) async fn models(State(state): State<AppState>) -> Json<ModelList> {
    let models = state.engine.models().into_iter().map(|model| Model {
        id: model.name,
        object: "model",
        created: 0,
        owned_by: "sd-worker",
        loaded: model.loaded,
        sha256: model.sha256,
        version: model.config.version.map(|version| version.name()),
        defaults: Defaults {
            width: model.config.defaults.width,
            height: model.config.defaults.height,
            num_inference_steps: model.config.defaults.num_inference_steps,
            guidance_scale: model.config.defaults.guidance_scale,
            scheduler: model.config.scheduler.class_name.clone(),
        },
    });
    Json(ModelList {
        object: "list",
        data: models.collect(),
    })
}

/// The schedulers
#[utoipa::path(
    get, path = "/v1/schedulers", tag = "models",
    responses((status = 200, description = "The schedulers", body = SchedulerList), (status = 401, description = "No or a wrong key", body = ErrorBody)),
)]
pub(super) async fn schedulers() -> Json<SchedulerList> {
    let schedulers = sd_scheduler::ALL.iter().map(|entry| Scheduler {
        id: entry.name,
        object: "scheduler",
        class: entry.class,
    });
    Json(SchedulerList {
        object: "list",
        data: schedulers.collect(),
    })
}
