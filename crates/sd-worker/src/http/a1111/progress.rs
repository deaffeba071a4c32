//! How far a client's requests are, and their early end.

use axum::{Extension, Json, extract::State};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::{
    error::{Refusals, WebUiError},
    info,
    session::{Sessions, Task},
};
use crate::{
    http::{AppState, Client, JsonObject, Query, Result, attached::read_fields},
    jobs::{Job, State as JobState},
};

/// What of the progress is asked for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ProgressQuery {
    /// Without the preview.
    #[serde(default)]
    skip_current_image: bool,
}

/// The reply to `progress`.
#[derive(Serialize, ToSchema)]
#[schema(as = A1111Progress)]
pub(super) struct Progress {
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
pub(super) struct ProgressState {
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
    get, path = "/sdapi/v1/progress", tag = "a1111",
    responses(
        (status = 200, description = "Progress, 0 if nothing is under way", body = Progress),
        (status = 401, description = "No or a wrong key", body = WebUiError),
        (status = 422, description = "A parameter is wrong", body = WebUiError),
    ),
)]
pub(super) async fn progress(
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
pub(super) struct TaskQuery {
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
pub(super) struct TaskProgress {
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
        Refusals,
    ),
)]
pub(super) async fn task_progress(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    JsonObject { fields, .. }: JsonObject,
) -> Result<Json<TaskProgress>> {
    let query: TaskQuery = read_fields(fields)?;
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
        (status = 401, description = "No or a wrong key", body = WebUiError),
    ),
)]
pub(super) async fn interrupt(
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
        (status = 401, description = "No or a wrong key", body = WebUiError),
    ),
)]
pub(super) async fn skip(
    state: State<AppState>,
    client: Extension<Client>,
    sessions: Extension<Sessions>,
) -> Result<Json<Value>> {
    interrupt(state, client, sessions).await
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
