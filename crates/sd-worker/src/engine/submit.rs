//! From a submission to a job on disk.

use sd_pipeline::{Request, Resolver};

use super::{
    SubmitError, Submitted, now,
    schedule::{Group, Task},
    shared::Shared,
};
use crate::{
    jobs::{Job, JobId, State, Submission},
    store::{self, NewJob},
    webhook,
};

/// Lowest and highest priority.
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

/// Records a submission and puts it into the schedule.
pub(super) fn submit(shared: &Shared, submission: Submission) -> Result<Submitted, SubmitError> {
    if shared.board().closing {
        return Err(SubmitError::ShuttingDown);
    }
    // A submission that is recorded needs no place in the queue.
    if let Some(idempotency) = &submission.idempotency {
        let before = shared.store.submitted(&submission.client, idempotency)?;
        if let Some(submitted) = submitted_before(shared, before)? {
            return Ok(submitted);
        }
    }
    check(shared, &submission)?;
    let model = shared
        .model(&submission.model)
        .ok_or_else(|| SubmitError::UnknownModel {
            name: submission.model.clone(),
            known: shared
                .known
                .iter()
                .map(|known| known.name.clone())
                .collect(),
        })?;
    let (new, task) = resolve(model, &shared.known[model].resolver, submission)?;
    shared
        .reserve()
        .map_err(|retry_after| SubmitError::QueueFull { retry_after })?;
    let recorded = shared
        .store
        .insert(&new)
        .inspect_err(|error| shared.store_failed("a submission", error));
    if matches!(recorded, Ok(store::Submitted::New)) {
        shared.push(&new.job, task);
    }
    shared.release();
    match submitted_before(shared, recorded?)? {
        Some(submitted) => Ok(submitted),
        None => Ok(Submitted {
            job: shared.as_it_is_now(new.job),
            replayed: false,
        }),
    }
}

fn submitted_before(
    shared: &Shared,
    before: store::Submitted,
) -> Result<Option<Submitted>, SubmitError> {
    match before {
        store::Submitted::New => Ok(None),
        store::Submitted::Before(job) => Ok(Some(Submitted {
            job: shared.as_it_is_now(*job),
            replayed: true,
        })),
        store::Submitted::Conflict => Err(SubmitError::IdempotencyConflict),
    }
}

/// Checks what is no part of the request.
fn check(shared: &Shared, submission: &Submission) -> Result<(), SubmitError> {
    let wrong = |field, expected: String| Err(SubmitError::Field { field, expected });
    if !PRIORITIES.contains(&submission.priority) {
        let (low, high) = (PRIORITIES.start(), PRIORITIES.end());
        return wrong("priority", format!("expected {low} to {high}"));
    }
    if submission
        .deadline
        .is_some_and(|deadline| deadline <= now())
    {
        return wrong("deadline", "expected a time to come".into());
    }
    if submission
        .previews
        .is_some_and(|previews| previews.every == 0)
    {
        return wrong("previews.every", "expected 1 or more steps".into());
    }
    match (&submission.callback_url, &shared.webhooks) {
        (None, _) => Ok(()),
        (Some(_), None) => wrong("callback_url", "callbacks are not enabled here".into()),
        (Some(url), Some(config)) => {
            webhook::check_url(url, config).or_else(|expected| wrong("callback_url", expected))
        }
    }
}

/// Decides everything about a job that its submission leaves open.
fn resolve(
    model: usize,
    resolver: &Resolver,
    submission: Submission,
) -> Result<(NewJob, Task), SubmitError> {
    let resolved = resolver.resolve(&submission.request)?;
    let json = serde_json::to_string(&resolved).map_err(sd_pipeline::Error::RequestJson)?;
    let request = Request::from_json(&json)?;
    let job = Job {
        id: JobId::new(),
        operation: submission.operation,
        state: State::Queued,
        model: submission.model,
        request: Request {
            init_image: None,
            mask_image: None,
            ..request.clone()
        },
        client: submission.client,
        priority: submission.priority,
        deadline: submission.deadline,
        callback_url: submission.callback_url,
        previews: submission.previews,
        labels: submission.labels,
        created_at: now(),
        started_at: None,
        finished_at: None,
        step: 0,
        total: resolved.num_inference_steps,
        attempts: 0,
        queue_position: None,
        images: vec![],
        error: None,
    };
    let task = task(model, &job);
    let new = NewJob {
        job,
        request,
        idempotency: submission.idempotency,
    };
    Ok((new, task))
}

/// A recorded job in the schedule's terms.
pub(super) fn task(model: usize, job: &Job) -> Task {
    let request = &job.request;
    Task {
        client: job.client.clone(),
        priority: job.priority,
        group: Group {
            model,
            height: request.height.unwrap_or_default(),
            width: request.width.unwrap_or_default(),
        },
        pictures: request.num_images.unwrap_or(1),
        calls: 0,
        started: job.state == State::Running,
        suspect: None,
    }
}
