//! Jobs that belong to a connection: the APIs of others answer with the pictures, not with a job.

use std::{collections::BTreeMap, pin::Pin};

use axum::http::StatusCode;
use futures_util::{Stream, StreamExt};
use sd_pipeline::Request;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ApiError, AppState, Client, Result, submit};
use crate::jobs::{ErrorCode, Event, Job, JobError, Operation, Submission};

/// A submitted job. Dropped before its end, as happens when the client disconnects, it cancels the job.
///
/// Not so with an idempotency key: then the client can ask again, and gets this job's pictures.
pub(super) struct Attached {
    state: AppState,
    /// The job as it was accepted.
    pub job: Job,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    cancel: bool,
}

impl Attached {
    /// Submits a job and listens to it.
    ///
    /// # Errors
    /// It is not accepted.
    pub(super) async fn submit(state: &AppState, submission: Submission) -> Result<Self> {
        let cancel = submission.idempotency.is_none();
        let job = submit(state, submission).await?.job;
        Ok(Self {
            state: state.clone(),
            events: Box::pin(state.engine.events(job.id, None).map(|(_, event)| event)),
            job,
            cancel,
        })
    }

    /// What happens next. `None` after the end, and when the service ends before the job.
    pub(super) async fn next(&mut self) -> Option<Event> {
        let event = tokio::select! {
            event = self.events.next() => event,
            () = self.state.stopping.cancelled() => return None,
        };
        let goes_on = matches!(
            event,
            Some(Event::Queued { .. } | Event::Progress { .. } | Event::Preview { .. })
        );
        self.cancel &= goes_on;
        event
    }

    /// Waits for the end: the completed job, or `None` if somebody cancelled it.
    ///
    /// # Errors
    /// The job failed, or the service is about to end.
    pub(super) async fn finished(&mut self) -> Result<Option<Job>> {
        loop {
            match self.next().await {
                Some(Event::Complete(job)) => return Ok(Some(*job)),
                Some(Event::Cancelled) => return Ok(None),
                Some(Event::Error(error)) => return Err(failed(&error)),
                Some(_) => {}
                None => return Err(interrupted()),
            }
        }
    }

    /// Picture `index` of the completed job, a PNG file.
    ///
    /// # Errors
    /// The store failed, or the picture has expired.
    pub(super) async fn image(&mut self, index: usize) -> Result<Vec<u8>> {
        let image = self.state.engine.image(self.job.id, index).await?;
        image.ok_or_else(|| ApiError::not_found("the picture has expired"))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.cancel {
            return;
        }
        let (engine, id) = (self.state.engine.clone(), self.job.id);
        // Outside of a runtime there is no engine either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = engine.cancel(id).await {
                    tracing::warn!(job = %id, error = super::chain(&error), "cannot cancel an abandoned job");
                }
            });
        }
    }
}

/// A job of this request, with no wishes beyond it.
pub(super) fn submission(client: &Client, model: String, request: Request) -> Submission {
    Submission {
        operation: match (&request.init_image, &request.mask_image) {
            (None, _) => Operation::ImageGeneration,
            (Some(_), None) => Operation::ImageTransform,
            (Some(_), Some(_)) => Operation::ImageInpaint,
        },
        model,
        request,
        client: client.0.to_string(),
        priority: 0,
        deadline: None,
        callback_url: None,
        previews: None,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

/// A job's failure as its client is told.
pub(super) fn failed(error: &JobError) -> ApiError {
    let status = match error.code {
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::ModelUnavailable | ErrorCode::OutOfMemory => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.code.name(), &error.message)
}

/// The service ends before the job.
pub(super) fn interrupted() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "shutting_down",
        "the worker is shutting down",
    )
}

/// Reads an object's fields, whose values may be the text parts of a form.
///
/// # Errors
/// Names the field that is unknown or of the wrong type.
pub(super) fn read_fields<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        match super::extract::unknown_field(&message) {
            Some(field) => ApiError::unsupported(field, message),
            None => ApiError::invalid(&path, format!("{path}: {message}")),
        }
    })
}

/// The request's field that a refusal names, by the name it has in another API: `renamed` holds pairs of ours and theirs.
pub(super) fn rename_param(mut error: ApiError, renamed: &[(&str, &str)]) -> ApiError {
    let theirs = renamed
        .iter()
        .find(|(ours, _)| error.param.as_deref() == Some(ours));
    if let Some((ours, theirs)) = theirs {
        if let Some(rest) = error.message.strip_prefix(ours) {
            error.message = format!("{theirs}{rest}");
        }
        error.param = Some((*theirs).to_owned());
    }
    error
}
