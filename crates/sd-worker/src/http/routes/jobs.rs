//! Jobs: hand in, look up, list, cancel.

#![expect(unused_qualifications, reason = "in what utoipa makes of `ListQuery`")]

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use crate::{
    http::{
        ApiError, AppState, Client, ErrorBody, JsonObject, Path, Query, Result, error::Refusals,
        heavy::by_length, job_request::JobRequest, submit::submit,
    },
    jobs::{self, Filter, Idempotency, JobId, MAX_PAGE, Operation, State as JobState, Submission},
};

/// Longest `Idempotency-Key`.
const MAX_KEY: usize = 255;

/// An accepted job.
#[derive(Serialize, ToSchema)]
pub(super) struct Accepted {
    /// The job's name.
    job_id: String,
    /// Where its events are.
    #[schema(example = "/v1/jobs/0199a0c2-0000-7000-8000-000000000000/stream")]
    sse_url: String,
}

/// A job and how far it is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Job {
    /// Its name.
    job_id: String,
    /// Where in its life it is.
    #[schema(value_type = Status)]
    status: JobState,
    /// What it was submitted as.
    #[schema(value_type = OperationName)]
    operation: Operation,
    /// The model that draws.
    model: String,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// When work on it began.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    started_at: Option<OffsetDateTime>,
    /// When it came to its end.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    finished_at: Option<OffsetDateTime>,
    /// When the pictures are no longer wanted.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    deadline: Option<OffsetDateTime>,
    /// Jobs that go before it, while it is queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    queue_position: Option<usize>,
    /// -100 to 100; higher goes first.
    priority: i32,
    /// How far it is.
    progress: Progress,
    /// How often work on it began: more than once only if the worker died meanwhile.
    attempts: u32,
    /// The seed of the first picture.
    seed: u64,
    /// The pictures, once it is complete.
    images: Vec<Image>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<Failure>,
    /// What is drawn, with every default filled in and without the pictures it was given.
    #[schema(value_type = Object)]
    request: Value,
}

/// Where in its life a job is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes the engine's own type")]
enum Status {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

/// What a job was submitted as.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case", as = Operation)]
#[expect(
    dead_code,
    clippy::enum_variant_names,
    reason = "describes the engine's own type"
)]
enum OperationName {
    ImageGeneration,
    ImageTransform,
    ImageInpaint,
}

/// How far a job is.
#[derive(Serialize, ToSchema)]
pub(super) struct Progress {
    /// Steps done.
    step: usize,
    /// Steps to make.
    total: usize,
    /// The same as a percentage.
    percent: f64,
}

impl Progress {
    pub(super) fn new(step: usize, total: usize) -> Self {
        let percent = 100.0 * step as f64 / total.max(1) as f64;
        Self {
            step,
            total,
            percent: (percent * 10.0).round() / 10.0,
        }
    }
}

/// A picture of a job.
#[derive(Serialize, ToSchema)]
pub(super) struct Image {
    /// Which, from 0.
    index: usize,
    /// Where it is.
    url: String,
    /// SHA-256 of the PNG file, hexadecimal.
    sha256: String,
    /// In pixels.
    width: u32,
    /// In pixels.
    height: u32,
    /// The seed that makes it again.
    seed: u64,
}

/// Why a job failed.
#[derive(Serialize, ToSchema)]
pub(super) struct Failure {
    /// For programs.
    #[schema(example = "deadline_exceeded")]
    code: &'static str,
    /// For people.
    message: String,
}

impl From<&jobs::Job> for Job {
    fn from(job: &jobs::Job) -> Self {
        let mut request = serde_json::to_value(&job.request).unwrap_or_default();
        if let Value::Object(fields) = &mut request {
            fields.retain(|_, value| !value.is_null());
        }
        Self {
            job_id: job.id.to_string(),
            status: job.state,
            operation: job.operation,
            model: job.model.clone(),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            deadline: job.deadline,
            queue_position: job.queue_position,
            priority: job.priority,
            progress: Progress::new(job.step, job.total),
            attempts: job.attempts,
            seed: job.seed(),
            images: images(job),
            error: job.error.as_ref().map(|error| Failure {
                code: error.code.name(),
                message: error.message.clone(),
            }),
            request,
        }
    }
}

/// A job as clients see it, in JSON.
pub fn json(job: &jobs::Job) -> Vec<u8> {
    // Strings, numbers and lists of them cannot fail to be written.
    serde_json::to_vec(&Job::from(job)).unwrap_or_default()
}

/// A job's pictures as clients see them.
pub(super) fn images(job: &jobs::Job) -> Vec<Image> {
    let image = |image: &jobs::Image| Image {
        index: image.index,
        url: format!("/v1/jobs/{}/images/{}", job.id, image.index),
        sha256: image.sha256.clone(),
        width: image.width,
        height: image.height,
        seed: image.seed,
    };
    job.images.iter().map(image).collect()
}

/// Some of the jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct JobList {
    /// The jobs, newest first.
    jobs: Vec<Job>,
    /// `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Which jobs to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// In this state only.
    #[param(value_type = Option<Status>, nullable = false)]
    state: Option<JobState>,
    /// Jobs on a page.
    #[param(minimum = 1, maximum = 100, default = 20, nullable = false)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(format = "uuid", nullable = false)]
    cursor: Option<String>,
}

/// Hand in a job
///
/// The answer comes as soon as the job is on disk: from then on it survives the worker.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
        description = "Makes a repetition of the same request the same job.")),
    request_body(content = JobRequest, content_type = "application/json"),
    responses(
        (status = 202, description = "Accepted", body = Accepted, headers(
            ("Location" = String, description = "Where the job is."),
            ("Idempotent-Replayed" = String, description = "`true` if it was accepted before."))),
        (status = 422, description = "A field is unknown or has a wrong value", body = ErrorBody),
        Refusals,
    ),
)]
pub(super) async fn create(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<impl IntoResponse> {
    let (idempotency, job) = by_length(body.bytes.len(), move || {
        let JsonObject { fields, bytes } = body;
        let idempotency = idempotency(&headers, || Ok(bytes))?;
        Ok((idempotency, JobRequest::read(fields)?))
    })
    .await?;
    let submission = Submission {
        operation: job.operation,
        model: match job.model {
            Some(model) => model,
            None => default_model(&state)?,
        },
        request: job.request,
        client: client.0.to_string(),
        priority: job.priority,
        deadline: job.deadline,
        callback_url: job.callback_url,
        previews: job.previews,
        idempotency,
        labels: job.labels,
    };
    let submitted = submit(&state, submission).await?;
    let url = format!("/v1/jobs/{}", submitted.job.id);
    let replayed = submitted
        .replayed
        .then_some((HeaderName::from_static("idempotent-replayed"), "true"));
    let accepted = Accepted {
        job_id: submitted.job.id.to_string(),
        sse_url: format!("{url}/stream"),
    };
    let mut response = (
        StatusCode::ACCEPTED,
        [(header::LOCATION, url)],
        Json(accepted),
    )
        .into_response();
    if let Some((name, value)) = replayed {
        response
            .headers_mut()
            .insert(name, header::HeaderValue::from_static(value));
    }
    Ok(response)
}

/// The model of a request that names none.
///
/// # Errors
/// 503 while there is no model.
pub(crate) fn default_model(state: &AppState) -> Result<String> {
    state
        .engine
        .models()
        .into_iter()
        .next()
        .map(|model| model.name)
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "model_loading",
                "there is no model yet",
            )
        })
}

/// The `Idempotency-Key` of a request, if it has one; `body` is then what must be the same when it is repeated.
///
/// # Errors
/// 422: it is too long or has other than visible ASCII characters.
pub(crate) fn idempotency<B: AsRef<[u8]>>(
    headers: &HeaderMap,
    body: impl FnOnce() -> Result<B>,
) -> Result<Option<Idempotency>> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = key
        .to_str()
        .ok()
        .filter(|key| {
            (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
        })
        .ok_or_else(|| {
            ApiError::invalid(
                "Idempotency-Key",
                format!("Idempotency-Key: expected 1 to {MAX_KEY} visible ASCII characters"),
            )
        })?;
    Ok(Some(Idempotency {
        key: key.to_owned(),
        body_sha256: Sha256::digest(body()?).into(),
    }))
}

/// List your jobs
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", params(ListQuery),
    responses(
        (status = 200, description = "Some of them, newest first", body = JobList),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 422, description = "A parameter is unknown or has a wrong value", body = ErrorBody),
    ),
)]
pub(super) async fn list(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Query(query): Query<ListQuery>,
) -> Result<Json<JobList>> {
    let limit = query.limit.unwrap_or(20);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid(
            "limit",
            format!("limit: got {limit}, expected 1 to {MAX_PAGE}"),
        ));
    }
    let before = query
        .cursor
        .map(|cursor| cursor.parse::<JobId>())
        .transpose()
        .map_err(|_| ApiError::invalid("cursor", "cursor: expected the `next_cursor` of a page"))?;
    let page = state
        .engine
        .list(Filter {
            state: query.state,
            client: Some(client.0.to_string()),
            before,
            limit,
            ..Filter::default()
        })
        .await?;
    Ok(Json(JobList {
        jobs: page.jobs.iter().map(Job::from).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Look up a job
#[utoipa::path(
    get, path = "/v1/jobs/{job_id}", tag = "jobs", params(("job_id" = String, Path, format = "uuid")),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 404, description = "You have no such job (any more)", body = ErrorBody),
    ),
)]
pub(super) async fn show(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Job>> {
    Ok(Json(Job::from(&find(&state, &client, &id).await?)))
}

/// Cancel a job
///
/// A running one stops within one step; one that is at its end stays as it is.
#[utoipa::path(
    delete, path = "/v1/jobs/{job_id}", tag = "jobs", params(("job_id" = String, Path, format = "uuid")),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 404, description = "You have no such job (any more)", body = ErrorBody),
    ),
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Job>> {
    let job = find(&state, &client, &id).await?;
    let job = state.engine.cancel(job.id).await?.ok_or_else(unknown_job)?;
    Ok(Json(Job::from(&job)))
}

/// A job of this client. Those of others are as unknown as those that never were.
pub(super) async fn find(state: &AppState, client: &Client, id: &str) -> Result<jobs::Job> {
    let id = id.parse().map_err(|_| unknown_job())?;
    let job = state.engine.job(id).await?.ok_or_else(unknown_job)?;
    if *job.client != *client.0 {
        return Err(unknown_job());
    }
    Ok(job)
}

pub(super) fn unknown_job() -> ApiError {
    ApiError::not_found("you have no job of this name, or it has expired").param("job_id")
}
