//! The API of AUTOMATIC1111's web UI, `/sdapi/v1/` and `/internal/progress`. Docs: `docs/a1111-api.md`.
//!
//! [`fields`] says which fields there are, [`request`] what they become, [`session`] remembers what a client waits for.

mod fields;
mod fill;
mod info;
mod infotext;
mod lists;
mod options;
mod request;
mod sampler;
mod session;

use std::collections::BTreeMap;

use axum::{
    Extension, Json,
    extract::State,
    middleware::map_response,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sd_pipeline::{Picture, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    fields::Fields,
    options::Overrides,
    request::Asked,
    session::{Sessions, Task},
};
use super::{
    ApiError, AppState, Client, ErrorBody, JsonObject, Query, Result,
    attached::{Attached, read_fields, rename_param},
};
use crate::jobs::{Job, Operation, PreviewKind, Previews, State as JobState, Submission};

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

/// All of them.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(txt2img))
        .routes(routes!(img2img))
        .routes(routes!(progress))
        .routes(routes!(task_progress))
        .routes(routes!(interrupt))
        .routes(routes!(skip))
        .routes(routes!(get_options, set_options))
        .routes(routes!(png_info))
        .routes(routes!(samplers))
        .routes(routes!(schedulers))
        .routes(routes!(sd_models))
        .routes(routes!(sd_vae))
        .routes(routes!(upscalers))
        .routes(routes!(latent_upscale_modes))
        .routes(routes!(loras))
        .routes(routes!(embeddings))
        .routes(routes!(hypernetworks))
        .routes(routes!(face_restorers))
        .routes(routes!(realesrgan_models))
        .routes(routes!(prompt_styles))
        .routes(routes!(scripts))
        .routes(routes!(cmd_flags))
        .routes(routes!(memory))
        .routes(routes!(refresh_checkpoints))
        .layer(Extension(Sessions::default()))
        .layer(map_response(as_web_ui_error))
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
    Ok(read_fields::<Fields>(fields)?.img2img()?.filled()?.request)
}

/// What a PNG file says of itself; `None` if it is none.
pub(super) fn read_png(file: &[u8]) -> Option<PngInfo> {
    let items: Map<_, _> = infotext::texts(file)?
        .into_iter()
        .map(|(name, text)| (name, Value::String(text)))
        .collect();
    let info = items
        .get(infotext::PARAMETERS)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    Some(PngInfo {
        parameters: if info.is_empty() {
            Map::new()
        } else {
            infotext::parse(&info)
        },
        info,
        items,
    })
}

/// The reply to `txt2img` and `img2img`.
#[derive(Serialize, ToSchema)]
struct Generated {
    /// PNG files as base64. Empty if the request was interrupted.
    images: Vec<String>,
    /// The request's fields.
    parameters: Value,
    /// How the pictures were made: a JSON object, as text.
    info: String,
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
struct WebUiError {
    /// The kind of error.
    #[schema(example = "invalid_value")]
    error: &'static str,
    /// What went wrong.
    detail: String,
    /// Always empty.
    body: &'static str,
    /// The field that is to blame, or empty.
    errors: String,
}

/// Text to pictures
///
/// Keys that are not listed are ignored. A client that disconnects cancels its job.
#[utoipa::path(
    post, path = "/sdapi/v1/txt2img", tag = "a1111", request_body = Fields,
    responses(
        (status = 200, description = "The pictures", body = Generated),
        (status = 400, description = "Not JSON", body = WebUiError),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "A field is unsupported or wrong", body = WebUiError),
        (status = 429, description = "The queue is full", body = WebUiError),
    ),
)]
async fn txt2img(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    JsonObject { fields: body, .. }: JsonObject,
) -> Result<Json<Generated>> {
    let fields: Fields = read_fields(body.clone())?;
    let asked = fields.txt2img()?;
    generate(state, client, sessions, fields, body, asked).await
}

/// A picture changed by a prompt, whole or where a mask is white
///
/// Keys that are not listed are ignored. A client that disconnects cancels its job.
#[utoipa::path(
    post, path = "/sdapi/v1/img2img", tag = "a1111", request_body = Fields,
    responses(
        (status = 200, description = "The pictures", body = Generated),
        (status = 400, description = "Not JSON", body = WebUiError),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "A field is unsupported or wrong", body = WebUiError),
        (status = 429, description = "The queue is full", body = WebUiError),
    ),
)]
async fn img2img(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    JsonObject { fields: body, .. }: JsonObject,
) -> Result<Json<Generated>> {
    let fields: Fields = read_fields(body.clone())?;
    let asked = fields.img2img()?;
    let asked = tokio::task::spawn_blocking(|| asked.filled())
        .await
        .map_err(|error| ApiError::internal(&error))??;
    generate(state, client, sessions, fields, body, asked).await
}

/// Makes a job of a request and answers with its pictures.
async fn generate(
    state: AppState,
    client: Client,
    sessions: Sessions,
    fields: Fields,
    mut body: Map<String, Value>,
    asked: Asked,
) -> Result<Json<Generated>> {
    let Asked {
        mut request,
        overrides,
        ..
    } = asked;
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
    if fields.override_settings_restore_afterwards == Some(false) {
        sessions.set(&client, overrides.clone());
    }
    let options = overrides.or(&sessions.options(&client));
    request.clip_skip = options.clip_skip;
    let model = match &options.model {
        Some(name) => models.iter().find(|model| &model.name == name),
        None => models.first(),
    };
    let task_name = fields.force_task_id.clone().filter(|name| !name.is_empty());
    let submission = Submission {
        operation: match (&request.init_image, &request.mask_image) {
            (None, _) => Operation::ImageGeneration,
            (Some(_), None) => Operation::ImageTransform,
            (Some(_), Some(_)) => Operation::ImageInpaint,
        },
        model: model.map(|model| model.name.clone()).unwrap_or_default(),
        request,
        client: client.0.to_string(),
        priority: 0,
        deadline: None,
        callback_url: None,
        previews: Some(Previews {
            every: PREVIEW_INTERVAL,
            kind: PreviewKind::Linear,
        }),
        idempotency: None,
        labels: task_name
            .iter()
            .map(|name| ("force_task_id".to_owned(), name.clone()))
            .collect::<BTreeMap<_, _>>(),
    };
    let mut attached = Attached::submit(&state, submission)
        .await
        .map_err(|error| rename_param(error, &RENAMED))?;
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
    if fields.include_init_images != Some(true) {
        for name in ["init_images", "mask"] {
            if let Some(value) = body.get_mut(name) {
                *value = Value::Null;
            }
        }
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
            .iter()
            .map(|file| BASE64_STANDARD.encode(file))
            .collect(),
        parameters: Value::Object(body),
        info: info.to_string(),
    }))
}

/// What of the progress is asked for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ProgressQuery {
    /// Without the preview.
    #[serde(default)]
    skip_current_image: bool,
}

/// The reply to `progress`.
#[derive(Serialize, ToSchema)]
struct Progress {
    /// 0 to 1.
    progress: f64,
    /// Seconds to go, as far as can be told.
    eta_relative: f64,
    /// What the worker is doing for this client.
    state: ProgressState,
    /// A preview as base64.
    #[schema(required = true)]
    current_image: Option<String>,
    /// Nothing.
    #[schema(required = true)]
    textinfo: Option<String>,
}

/// The `state` of [`Progress`].
#[derive(Default, Serialize, ToSchema)]
struct ProgressState {
    /// Always false: what is skipped is gone.
    skipped: bool,
    /// Always false: what is interrupted is gone.
    interrupted: bool,
    /// Always false.
    stopping_generation: bool,
    /// The job's id, or empty.
    job: String,
    /// The client's requests that are waited for.
    job_count: usize,
    /// When the job was submitted.
    job_timestamp: String,
    /// Always 0.
    job_no: usize,
    /// Steps done.
    sampling_step: usize,
    /// Steps to make.
    sampling_steps: usize,
}

/// How far the client's oldest request is
#[utoipa::path(
    get, path = "/sdapi/v1/progress", tag = "a1111", params(ProgressQuery),
    responses(
        (status = 200, description = "Progress, 0 if nothing is under way", body = Progress),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "A parameter is wrong", body = WebUiError),
    ),
)]
async fn progress(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    Query(query): Query<ProgressQuery>,
) -> Result<Json<Progress>> {
    let tasks = sessions.tasks(&client);
    let job = current(&state, &tasks).await?;
    let preview = match &job {
        Some(job) if !query.skip_current_image => state.engine.preview(job.id),
        _ => None,
    };
    Ok(Json(Progress {
        progress: job.as_ref().map_or(0.0, share),
        eta_relative: job.as_ref().and_then(seconds_left).unwrap_or(0.0),
        state: job
            .as_ref()
            .map(|job| ProgressState {
                job: job.id.to_string(),
                job_count: tasks.len(),
                job_timestamp: info::timestamp(job.created_at),
                sampling_step: job.step,
                sampling_steps: job.total,
                ..ProgressState::default()
            })
            .unwrap_or_default(),
        current_image: preview.map(|(_, png)| BASE64_STANDARD.encode(png)),
        textinfo: None,
    }))
}

/// Which task is asked for.
#[derive(Deserialize, ToSchema)]
struct TaskQuery {
    /// `force_task_id` of the request.
    #[serde(default)]
    id_task: Option<String>,
    /// The last preview that the client has.
    #[serde(default)]
    id_live_preview: Option<i64>,
    /// Whether to send previews.
    #[serde(default)]
    live_preview: Option<bool>,
}

/// The reply to `/internal/progress`.
#[derive(Serialize, ToSchema)]
struct TaskProgress {
    /// Work on it has begun.
    active: bool,
    /// It waits.
    queued: bool,
    /// It has ended.
    completed: bool,
    /// 0 to 1.
    #[schema(required = true)]
    progress: Option<f64>,
    /// Seconds to go.
    #[schema(required = true)]
    eta: Option<f64>,
    /// A preview that the client does not have, as a data URI.
    #[schema(required = true)]
    live_preview: Option<String>,
    /// The number of that preview, to be sent back.
    id_live_preview: i64,
    /// `In queue...` or `Waiting...` before work begins.
    #[schema(required = true)]
    textinfo: Option<&'static str>,
}

/// How far one request is
#[utoipa::path(
    post, path = "/internal/progress", tag = "a1111", request_body = TaskQuery,
    responses(
        (status = 200, description = "Progress of the task", body = TaskProgress),
        (status = 400, description = "Not JSON", body = WebUiError),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = WebUiError),
    ),
)]
async fn task_progress(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    super::Json(query): super::Json<TaskQuery>,
) -> Result<Json<TaskProgress>> {
    let name = query.id_task.unwrap_or_default();
    let tasks = sessions.tasks(&client);
    let task = tasks
        .iter()
        .find(|task| task.name.as_deref() == Some(name.as_str()));
    let job = match task {
        Some(task) => job(&state, task).await?,
        None => None,
    };
    let active = job
        .as_ref()
        .is_some_and(|job| job.state == JobState::Running);
    let queued = job
        .as_ref()
        .is_some_and(|job| job.state == JobState::Queued);
    let completed = sessions.has_finished(&client, &name);
    let waiting = TaskProgress {
        active,
        queued,
        completed,
        progress: None,
        eta: None,
        live_preview: None,
        id_live_preview: -1,
        textinfo: Some(if queued { "In queue..." } else { "Waiting..." }),
    };
    let Some(job) = job.filter(|_| active) else {
        return Ok(Json(waiting));
    };
    let known = query.id_live_preview.unwrap_or(-1);
    let preview = match query.live_preview {
        Some(false) => None,
        _ => state.engine.preview(job.id),
    }
    .map(|(step, png)| (i64::try_from(step).unwrap_or(i64::MAX), png))
    .filter(|(step, _)| *step != known);
    Ok(Json(TaskProgress {
        progress: Some(share(&job)),
        eta: seconds_left(&job),
        id_live_preview: preview.as_ref().map_or(known, |(step, _)| *step),
        live_preview: preview
            .map(|(_, png)| format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png))),
        textinfo: None,
        ..waiting
    }))
}

/// Ends the client's oldest request
///
/// Its answer has no pictures.
#[utoipa::path(
    post, path = "/sdapi/v1/interrupt", tag = "a1111",
    responses(
        (status = 200, description = "Done, also if nothing was under way", body = Value),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
    ),
)]
async fn interrupt(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
) -> Result<Json<Value>> {
    if let Some(job) = current(&state, &sessions.tasks(&client)).await? {
        state.engine.cancel(job.id).await?;
    }
    Ok(Json(json!({})))
}

/// The same as `interrupt`
///
/// All pictures of a request are made at once, so there is no next one to go on with.
#[utoipa::path(
    post, path = "/sdapi/v1/skip", tag = "a1111",
    responses(
        (status = 200, description = "Done, also if nothing was under way", body = Value),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
    ),
)]
async fn skip(
    state: State<AppState>,
    client: Extension<Client>,
    sessions: Extension<Sessions>,
) -> Result<Json<Value>> {
    interrupt(state, client, sessions).await
}

/// The client's options
#[utoipa::path(
    get, path = "/sdapi/v1/options", tag = "a1111",
    responses(
        (status = 200, description = "Options by name", body = Value),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
    ),
)]
async fn get_options(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
) -> Json<Value> {
    Json(sessions.options(&client).show(&state.engine.models()))
}

/// Sets options for the client's later requests
///
/// `sd_model_checkpoint` and `CLIP_stop_at_last_layers`. They last until the worker ends.
#[utoipa::path(
    post, path = "/sdapi/v1/options", tag = "a1111", request_body = Object,
    responses(
        (status = 200, description = "Done", body = Value),
        (status = 400, description = "Not JSON", body = WebUiError),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "An option is unsupported or wrong", body = WebUiError),
    ),
)]
async fn set_options(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    JsonObject { fields, .. }: JsonObject,
) -> Result<Json<Value>> {
    let options = Overrides::read("", Some(&fields))?;
    let model = options
        .model
        .as_deref()
        .map(|title| options::model_name("sd_model_checkpoint", title, &state.engine.models()))
        .transpose()?;
    sessions.set(&client, Overrides { model, ..options });
    Ok(Json(Value::Null))
}

/// A picture to read.
#[derive(Deserialize, ToSchema)]
struct PngInfoBody {
    /// A PNG file as base64 or as a data URI.
    #[schema(value_type = String)]
    image: Picture,
}

/// What a picture says of itself.
#[derive(Serialize, ToSchema)]
pub(super) struct PngInfo {
    /// Its text `parameters`, or empty.
    info: String,
    /// All its texts by keyword.
    items: Map<String, Value>,
    /// The settings in `info` by name.
    pub(super) parameters: Map<String, Value>,
}

/// How a picture was made, as its file says
#[utoipa::path(
    post, path = "/sdapi/v1/png-info", tag = "a1111", request_body = PngInfoBody,
    responses(
        (status = 200, description = "What the file says", body = PngInfo),
        (status = 400, description = "Not JSON", body = WebUiError),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "Not a PNG file", body = WebUiError),
    ),
)]
async fn png_info(super::Json(body): super::Json<PngInfoBody>) -> Result<Json<PngInfo>> {
    read_png(body.image.bytes())
        .map(Json)
        .ok_or_else(|| ApiError::invalid("image", "image: is no PNG file"))
}

/// Declares routes that answer with a value, which needs the engine's models or nothing.
macro_rules! lists {
    ($($(#[doc = $doc:literal])+ $name:ident, $path:literal, |$state:ident| $value:expr;)+) => {$(
        $(#[doc = $doc])+
        #[utoipa::path(
            get, path = $path, tag = "a1111",
            responses(
                (status = 200, description = "What there is", body = Value),
                (status = 401, description = "No or a wrong key", body = ErrorBody),
            ),
        )]
        async fn $name(State($state): State<AppState>) -> Json<Value> {
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
    sd_models, "/sdapi/v1/sd-models", |state| lists::models(&state.engine.models());
    /// None: a model comes with its own
    sd_vae, "/sdapi/v1/sd-vae", |_state| json!([]);
    /// The upscalers that work on pixels
    upscalers, "/sdapi/v1/upscalers", |_state| lists::upscalers();
    /// The upscalers that work on latents
    latent_upscale_modes, "/sdapi/v1/latent-upscale-modes", |_state| lists::latent_upscale_modes();
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
    cmd_flags, "/sdapi/v1/cmd-flags", |state| lists::cmd_flags(state.config.listen.port(), !state.keys.is_empty());
    /// The machine's memory in bytes
    memory, "/sdapi/v1/memory", |_state| lists::memory();
}

/// Does nothing: the models are those that the worker was started with
#[utoipa::path(
    post, path = "/sdapi/v1/refresh-checkpoints", tag = "a1111",
    responses(
        (status = 200, description = "Done", body = Value),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
    ),
)]
async fn refresh_checkpoints() -> Json<Value> {
    Json(Value::Null)
}

/// The job of a task; `None` if it is gone.
async fn job(state: &AppState, task: &Task) -> Result<Option<Job>> {
    Ok(state.engine.job(task.job).await?)
}

/// The oldest of the tasks' jobs that work has begun on, otherwise the oldest that waits.
async fn current(state: &AppState, tasks: &[Task]) -> Result<Option<Job>> {
    let mut waiting = None;
    for task in tasks {
        let Some(job) = job(state, task).await? else {
            continue;
        };
        match job.state {
            JobState::Running => return Ok(Some(job)),
            JobState::Queued => {
                waiting.get_or_insert(job);
            }
            _ => {}
        }
    }
    Ok(waiting)
}

fn share(job: &Job) -> f64 {
    (job.step as f64 / job.total.max(1) as f64).min(1.0)
}

/// By the time that the steps so far took; `None` before the first.
fn seconds_left(job: &Job) -> Option<f64> {
    let elapsed = (OffsetDateTime::now_utc() - job.started_at?).as_seconds_f64();
    let share = share(job);
    (share > 0.0).then(|| (elapsed / share - elapsed).max(0.0))
}

/// Errors in the web UI's form.
async fn as_web_ui_error(response: Response) -> Response {
    let Some(error) = response.extensions().get::<ApiError>().cloned() else {
        return response;
    };
    let body = Json(WebUiError {
        error: error.code,
        detail: error.body().error.message,
        body: "",
        errors: error.param.clone().unwrap_or_default(),
    });
    let (mut parts, _) = response.into_parts();
    let (body_parts, body) = body.into_response().into_parts();
    parts.headers.extend(body_parts.headers);
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}
