//! A job's events as they happen, and those that were missed.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{self, KeepAlive},
    },
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use serde::Serialize;

use super::jobs::{Image, Progress, find, images};
use crate::{
    http::{ApiError, AppState, Client, ErrorBody, EventFrame, Path, Result},
    jobs::{Event, EventId, Job},
};

/// Silence after which a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Listen to a job
///
/// Events: `queued` {position}, `progress` {step, total, percent}, `preview` {step, total, percent, image, format},
/// `complete` {image, format, seed, images} and `error` {message, code}, each with its `type`. The last two end the
/// stream. Every step comes once: `Last-Event-ID` goes on after that event, also after a restart of the worker.
#[utoipa::path(
    get, path = "/v1/jobs/{job_id}/stream", tag = "jobs",
    params(
        ("job_id" = String, Path, format = "uuid"),
        ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,18}$", description = "The last event that was seen."),
    ),
    responses(
        (status = 200, description = "Server-sent events", body = EventFrame, content_type = "text/event-stream"),
        (status = 204, description = "There is nothing after that event: do not reconnect"),
        (status = 401, description = "No or a wrong key", body = ErrorBody),
        (status = 404, description = "You have no such job (any more)", body = ErrorBody),
        (status = 422, description = "`Last-Event-ID` is none of this worker's", body = ErrorBody),
    ),
)]
pub(super) async fn stream(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    let job = find(&state, &client, &id).await?;
    let after = last_event(&headers)?;
    if job.state.is_terminal() && after.is_some_and(|after| after >= EventId::end(job.total)) {
        // A browser's EventSource reconnects after every end but this one.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let stopping = state.stopping.clone();
    let events = state
        .engine
        .events(job.id, after)
        .take_until(stopping.cancelled_owned())
        .then(move |(id, event)| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(encode(&state, id, event).await) }
        });
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Proxies hold answers back otherwise.
    Ok((
        [
            ("x-accel-buffering", "no"),
            (header::CACHE_CONTROL.as_str(), "no-store"),
        ],
        stream,
    )
        .into_response())
}

fn last_event(headers: &HeaderMap) -> Result<Option<EventId>> {
    headers
        .get("last-event-id")
        .map(|id| {
            id.to_str()
                .ok()
                .and_then(|id| id.parse().ok())
                .ok_or_else(|| {
                    ApiError::invalid(
                        "Last-Event-ID",
                        "Last-Event-ID: expected the id of an event",
                    )
                })
        })
        .transpose()
}

/// What an event carries; its name is `type`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Data {
    Queued {
        position: usize,
    },
    Progress(Progress),
    Preview {
        #[serde(flatten)]
        progress: Progress,
        image: String,
        format: &'static str,
    },
    Complete {
        image: String,
        format: &'static str,
        seed: u64,
        images: Vec<Image>,
    },
    Error {
        message: String,
        code: &'static str,
    },
}

impl Data {
    fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::Error {
            message: message.into(),
            code,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Progress(_) => "progress",
            Self::Preview { .. } => "preview",
            Self::Complete { .. } => "complete",
            Self::Error { .. } => "error",
        }
    }
}

async fn encode(state: &AppState, id: EventId, event: Event) -> sse::Event {
    let data = match event {
        Event::Queued { position } => Data::Queued { position },
        Event::Progress { step, total } => Data::Progress(Progress::new(step, total)),
        Event::Preview { step, total, png } => Data::Preview {
            progress: Progress::new(step, total),
            image: BASE64_STANDARD.encode(png),
            format: "png",
        },
        Event::Complete(job) => complete(state, &job).await,
        Event::Error(error) => Data::error(error.code.name(), error.message),
        Event::Cancelled => Data::error("cancelled", "the job was cancelled"),
    };
    // Strings, numbers and lists of them cannot fail to be written.
    let text = serde_json::to_string(&data).unwrap_or_default();
    sse::Event::default()
        .event(data.name())
        .id(id.to_string())
        .data(text)
}

async fn complete(state: &AppState, job: &Job) -> Data {
    match state.engine.image(job.id, 0).await {
        Ok(Some(png)) => Data::Complete {
            image: BASE64_STANDARD.encode(png),
            format: "png",
            seed: job.seed(),
            images: images(job),
        },
        Ok(None) => Data::error("expired", "the job's pictures have expired"),
        Err(error) => {
            let error = ApiError::from(error);
            Data::error(error.code, error.message)
        }
    }
}
