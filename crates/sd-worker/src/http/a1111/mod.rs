//! The API of AUTOMATIC1111's web UI, `/sdapi/v1/` and `/internal/progress`. Docs: `docs/a1111-api.md`.
//!
//! [`fields`] says which fields there are, [`request`] what they become, [`generate`] makes the pictures; [`session`]
//! remembers what a client waits for and has set, which [`progress`] and [`options`] show.

mod error;
mod fields;
mod fill;
mod generate;
mod info;
mod infotext;
mod lax;
mod lists;
mod options;
mod png_info;
mod progress;
mod request;
mod sampler;
mod session;

use axum::Extension;
use sd_image::Limits;
use sd_pipeline::Request;
use serde_json::{Map, Value};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::{error::web_ui_errors, png_info::read_png};
use self::{fields::Fields, session::Sessions};
use super::{AppState, Result, attached::read_fields};

/// All of them.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(generate::txt2img))
        .routes(routes!(generate::img2img))
        .routes(routes!(progress::progress))
        .routes(routes!(progress::task_progress))
        .routes(routes!(progress::interrupt))
        .routes(routes!(progress::skip))
        .routes(routes!(options::get_options, options::set_options))
        .routes(routes!(png_info::png_info))
        .routes(routes!(lists::samplers))
        .routes(routes!(lists::schedulers))
        .routes(routes!(lists::sd_models))
        .routes(routes!(lists::sd_vae))
        .routes(routes!(lists::upscalers))
        .routes(routes!(lists::latent_upscale_modes))
        .routes(routes!(lists::loras))
        .routes(routes!(lists::embeddings))
        .routes(routes!(lists::hypernetworks))
        .routes(routes!(lists::face_restorers))
        .routes(routes!(lists::realesrgan_models))
        .routes(routes!(lists::prompt_styles))
        .routes(routes!(lists::scripts))
        .routes(routes!(lists::cmd_flags))
        .routes(routes!(lists::memory))
        .routes(routes!(lists::refresh_checkpoints))
        .layer(Extension(Sessions::default()))
}

/// The request in the fields of `txt2img`.
///
/// # Errors
/// Names the field that is unsupported or wrong.
pub(super) fn read_txt2img(fields: Map<String, Value>) -> Result<Request> {
    Ok(read_fields::<Fields>(fields)?.txt2img()?.request)
}

/// The request in the fields of `img2img`.
///
/// # Errors
/// Names the field that is unsupported or wrong, or holds no picture.
pub(super) fn read_img2img(fields: Map<String, Value>) -> Result<Request> {
    let asked = read_fields::<Fields>(fields)?.img2img()?;
    Ok(asked.filled(&Limits::default())?.request)
}
