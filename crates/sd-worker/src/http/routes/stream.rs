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
use serde_json::{Value, json};

use super::jobs::{Progress, find, images};
use crate::{
    http::{ApiError, AppState, Client, ErrorBody, Path, Result},
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
        (status = 200, description = "Server-sent events", body = String, content_type = "text/event-stream"),
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

/// `progress`, and the head of `preview`.
#[derive(Serialize)]
struct Step<'a> {
    r#type: &'a str,
    #[serde(flatten)]
    progress: Progress,
}

async fn encode(state: &AppState, id: EventId, event: Event) -> sse::Event {
    let (name, data) = match event {
        Event::Queued { position } => ("queued", json!({ "type": "queued", "position": position })),
        Event::Progress { step, total } => ("progress", step_data("progress", step, total)),
        Event::Preview { step, total, png } => {
            let mut data = step_data("preview", step, total);
            data["image"] = BASE64_STANDARD.encode(png).into();
            data["format"] = "png".into();
            ("preview", data)
        }
        Event::Complete(job) => complete(state, &job).await,
        Event::Error(error) => ("error", failure(error.code.name(), &error.message)),
        Event::Cancelled => ("error", failure("cancelled", "the job was cancelled")),
    };
    sse::Event::default()
        .event(name)
        .id(id.to_string())
        .data(data.to_string())
}

fn step_data(name: &str, step: usize, total: usize) -> Value {
    json!(Step {
        r#type: name,
        progress: Progress::new(step, total),
    })
}

fn failure(code: &str, message: &str) -> Value {
    json!({ "type": "error", "message": message, "code": code })
}

async fn complete(state: &AppState, job: &Job) -> (&'static str, Value) {
    match state.engine.image(job.id, 0).await {
        Ok(Some(png)) => (
            "complete",
            json!({
                "type": "complete",
                "image": BASE64_STANDARD.encode(png),
                "format": "png",
                "seed": job.seed(),
                "images": images(job),
            }),
        ),
        Ok(None) => (
            "error",
            failure("expired", "the job's pictures have expired"),
        ),
        Err(error) => {
            let error = ApiError::from(error);
            ("error", failure(error.code, &error.message))
        }
    }
}
