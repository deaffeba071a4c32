//! `txt2img` and `img2img`.

use axum::{Extension, Json, extract::State};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    error::Refusals,
    fields::Fields,
    info,
    options::{self, Overrides},
    request::Asked,
    session::{Sessions, Task},
};
use crate::{
    http::{
        AppState, Client, JsonObject, Result,
        attached::{Attached, read_fields, rename_param, submission},
        field::label,
        heavy::{by_length, heavy},
        routes::jobs::default_model,
        submit::picture_limits,
    },
    jobs::{PreviewKind, Previews, Submission},
};

/// Steps from one preview to the next.
const PREVIEW_INTERVAL: usize = 5;

/// Fields of a request that are called otherwise here.
const RENAMED: [(&str, &str); 14] = [
    ("num_inference_steps", "steps"),
    ("guidance_scale", "cfg_scale"),
    ("num_images", "batch_size"),
    ("scheduler", "sampler_name"),
    ("init_image", "init_images"),
    ("mask_image", "mask"),
    ("strength", "denoising_strength"),
    ("variation_seed", "subseed"),
    ("variation_strength", "subseed_strength"),
    ("padding_mask_crop", "inpaint_full_res_padding"),
    ("clip_skip", "override_settings.CLIP_stop_at_last_layers"),
    ("hires.scale", "hr_scale"),
    ("hires.width", "hr_resize_x"),
    ("hires.height", "hr_resize_y"),
];

/// The reply to `txt2img` and `img2img`.
#[derive(Serialize, ToSchema)]
pub(super) struct Generated {
    /// PNG files as base64. Empty if the request was interrupted.
    images: Vec<String>,
    /// The request's fields.
    parameters: Value,
    /// How the pictures were made: a JSON object, as text.
    info: String,
}

/// Text to pictures
///
/// Keys that are not listed are ignored. A client that disconnects cancels its job.
#[utoipa::path(
    post, path = "/sdapi/v1/txt2img", tag = "a1111", request_body = Fields,
    responses(
        (status = 200, description = "The pictures", body = Generated),
        Refusals,
    ),
)]
pub(super) async fn txt2img(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    body: JsonObject,
) -> Result<Json<Generated>> {
    let received = by_length(body.bytes.len(), move || {
        Received::read(body, Fields::txt2img)
    });
    generate(state, client, sessions, received.await?).await
}

/// A picture changed by a prompt, whole or where a mask is white
///
/// Keys that are not listed are ignored. A client that disconnects cancels its job.
#[utoipa::path(
    post, path = "/sdapi/v1/img2img", tag = "a1111", request_body = Fields,
    responses(
        (status = 200, description = "The pictures", body = Generated),
        Refusals,
    ),
)]
pub(super) async fn img2img(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    body: JsonObject,
) -> Result<Json<Generated>> {
    let limits = picture_limits(&state.config);
    let received = heavy(move || {
        let Received {
            fields,
            parameters,
            asked,
        } = Received::read(body, Fields::img2img)?;
        Ok(Received {
            asked: asked.filled(&limits)?,
            fields,
            parameters,
        })
    });
    generate(state, client, sessions, received.await?).await
}

/// A request as it was received. Of its pictures only `asked` has a copy, and `parameters` if the client wants them back:
/// a request may wait for long.
struct Received {
    fields: Fields,
    /// The request's fields for the reply.
    parameters: Map<String, Value>,
    asked: Asked,
}

impl Received {
    /// # Errors
    /// Names the field that is unsupported or wrong.
    fn read(body: JsonObject, ask: fn(&Fields) -> Result<Asked>) -> Result<Self> {
        let mut parameters = body.into_fields();
        let mut fields: Fields = read_fields(parameters.clone())?;
        let asked = ask(&fields)?;
        (fields.init_images, fields.mask) = (None, None);
        if fields.include_init_images != Some(true) {
            for name in ["init_images", "mask"] {
                if let Some(value) = parameters.get_mut(name) {
                    *value = Value::Null;
                }
            }
        }
        Ok(Self {
            fields,
            parameters,
            asked,
        })
    }
}

/// Makes a job of a request and answers with its pictures.
async fn generate(
    state: AppState,
    client: Client,
    sessions: Sessions,
    received: Received,
) -> Result<Json<Generated>> {
    let Received {
        fields,
        parameters,
        asked: Asked {
            mut request,
            overrides,
            ..
        },
    } = received;
    let models = state.engine.models();
    let asked_model = overrides
        .model
        .as_deref()
        .map(|title| options::model_name("override_settings.sd_model_checkpoint", title, &models))
        .transpose()?;
    let overrides = Overrides {
        model: asked_model,
        ..overrides
    };
    let options = overrides.clone().or(&sessions.options(&client));
    request.clip_skip = options.clip_skip;
    let model = match options.model {
        Some(name) => name,
        None => default_model(&state)?,
    };
    let task_name = fields
        .force_task_id
        .clone()
        .filter(|name| !name.is_empty())
        .map(|name| label("force_task_id", name))
        .transpose()?;
    let labels = task_name
        .iter()
        .map(|name| ("force_task_id".to_owned(), name.clone()));
    let submission = Submission {
        previews: Some(Previews {
            every: PREVIEW_INTERVAL,
            kind: PreviewKind::Linear,
        }),
        labels: labels.collect(),
        ..submission(&client, model, request)
    };
    let mut attached = Attached::submit(&state, submission)
        .await
        .map_err(|error| rename_param(error, &RENAMED))?;
    if fields.override_settings_restore_afterwards == Some(false) {
        sessions.set(&client, overrides);
    }
    let _listed = sessions.begin(
        &client,
        Task {
            job: attached.job.id,
            name: task_name,
        },
    );
    let finished = attached.finished().await?;
    let mut pictures = Vec::new();
    for image in finished.iter().flat_map(|job| &job.images) {
        pictures.push(attached.image(image.index).await?);
    }
    let job = finished.as_ref().unwrap_or(&attached.job);
    // The model's hash is known now, if it was not before.
    let models = state.engine.models();
    let model = models.iter().find(|model| model.name == job.model);
    let info = info::info(&fields, job, model, &pictures);
    if fields.send_images == Some(false) {
        pictures.clear();
    }
    Ok(Json(Generated {
        images: pictures
            .into_iter()
            .map(|file| BASE64_STANDARD.encode(file))
            .collect(),
        parameters: Value::Object(parameters),
        info: info.to_string(),
    }))
}
