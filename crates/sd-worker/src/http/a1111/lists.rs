//! What there is to choose from, in the web UI's words.

use std::fs;

use serde_json::{Value, json};

use super::{
    options::{short_hash, title},
    request::UPSCALERS,
};
use crate::engine::ModelInfo;

/// Bytes of a page of `/proc/self/statm` where the kernel has the usual ones.
const PAGE: u64 = 4096;

/// `GET sd-models`. No paths: a file's name is the model's.
pub(super) fn models(models: &[ModelInfo]) -> Value {
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
pub(super) fn upscalers() -> Value {
    upscaler_names(false)
        .map(|name| json!({"name": name, "model_name": null, "model_path": null, "model_url": null, "scale": 4}))
        .collect()
}

/// `GET latent-upscale-modes`: those that work on latents.
pub(super) fn latent_upscale_modes() -> Value {
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
pub(super) fn memory() -> Value {
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
pub(super) fn cmd_flags(port: u16, has_keys: bool) -> Value {
    json!({"api": true, "nowebui": true, "port": port, "api_auth": has_keys.then_some("(hidden)")})
}
