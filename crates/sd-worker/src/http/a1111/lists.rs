//! What there is to choose from, in the web UI's words.

use std::fs;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    error::WebUiError,
    options::{short_hash, title},
    request::UPSCALERS,
    sampler,
};
use crate::{engine::ModelInfo, http::AppState};

/// Bytes of a page of `/proc/self/statm` where the kernel has the usual ones.
const PAGE: u64 = 4096;

/// Declares routes that answer with a value, which needs the engine's models or nothing.
macro_rules! lists {
    ($($(#[doc = $doc:literal])+ $name:ident, $path:literal, |$state:ident| $value:expr;)+) => {$(
        $(#[doc = $doc])+
        #[utoipa::path(
            get, path = $path, tag = "a1111",
            responses(
                (status = 200, description = "What there is", body = Value),
                (status = 401, description = "No or a wrong key", body = WebUiError),
            ),
        )]
        pub(super) async fn $name(State($state): State<AppState>) -> Json<Value> {
            Json($value)
        }
    )+};
}

lists! {
    /// The samplers
    samplers, "/sdapi/v1/samplers", |_state| sampler::samplers();
    /// The schedule types
    schedulers, "/sdapi/v1/schedulers", |_state| sampler::schedulers();
    /// The models, the default one first
    sd_models, "/sdapi/v1/sd-models", |state| models(&state.engine.models());
    /// None: a model comes with its own
    sd_vae, "/sdapi/v1/sd-vae", |_state| json!([]);
    /// The upscalers that work on pixels
    upscalers, "/sdapi/v1/upscalers", |_state| upscaler_list();
    /// The upscalers that work on latents
    latent_upscale_modes, "/sdapi/v1/latent-upscale-modes", |_state| latent_upscale_mode_list();
    /// None
    loras, "/sdapi/v1/loras", |_state| json!([]);
    /// None
    embeddings, "/sdapi/v1/embeddings", |_state| json!({"loaded": {}, "skipped": {}});
    /// None
    hypernetworks, "/sdapi/v1/hypernetworks", |_state| json!([]);
    /// None
    face_restorers, "/sdapi/v1/face-restorers", |_state| json!([]);
    /// None
    realesrgan_models, "/sdapi/v1/realesrgan-models", |_state| json!([]);
    /// None
    prompt_styles, "/sdapi/v1/prompt-styles", |_state| json!([]);
    /// None
    scripts, "/sdapi/v1/scripts", |_state| json!({"txt2img": [], "img2img": []});
    /// What the worker was started with
    cmd_flags, "/sdapi/v1/cmd-flags", |state| flags(state.config.listen.port(), !state.keys.is_empty());
    /// The machine's memory in bytes
    memory, "/sdapi/v1/memory", |_state| memory_in_bytes();
}

/// Does nothing: the models are those that the worker was started with
#[utoipa::path(
    post, path = "/sdapi/v1/refresh-checkpoints", tag = "a1111",
    responses(
        (status = 200, description = "Done", body = Value),
        (status = 401, description = "No or a wrong key", body = WebUiError),
    ),
)]
pub(super) async fn refresh_checkpoints() -> Json<Value> {
    Json(Value::Null)
}

/// `GET sd-models`. No paths: a file's name is the model's.
fn models(models: &[ModelInfo]) -> Value {
    models
        .iter()
        .map(|model| {
            json!({
                "title": title(model),
                "model_name": model.name,
                "hash": short_hash(model),
                "sha256": model.sha256,
                "filename": model.name,
                "config": null,
            })
        })
        .collect()
}

/// `GET upscalers`: those that work on pixels.
fn upscaler_list() -> Value {
    upscaler_names(false)
        .map(|name| json!({"name": name, "model_name": null, "model_path": null, "model_url": null, "scale": 4}))
        .collect()
}

/// `GET latent-upscale-modes`: those that work on latents.
fn latent_upscale_mode_list() -> Value {
    upscaler_names(true)
        .map(|name| json!({"name": name}))
        .collect()
}

fn upscaler_names(latent: bool) -> impl Iterator<Item = &'static str> {
    UPSCALERS
        .into_iter()
        .filter(move |name| name.starts_with("Latent") == latent)
}

/// `GET memory`: bytes of the machine's memory, as far as the system tells.
fn memory_in_bytes() -> Value {
    let ram = ram().unwrap_or_else(|| json!({"error": "unavailable"}));
    json!({"ram": ram, "cuda": {"error": "unavailable"}})
}

fn ram() -> Option<Value> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let resident: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(json!({
        "free": kilobytes("MemAvailable:")? * 1024,
        "used": resident * PAGE,
        "total": kilobytes("MemTotal:")? * 1024,
    }))
}

/// `GET cmd-flags`: what the worker's configuration means in the web UI's flags.
fn flags(port: u16, has_keys: bool) -> Value {
    json!({"api": true, "nowebui": true, "port": port, "api_auth": has_keys.then_some("(hidden)")})
}
