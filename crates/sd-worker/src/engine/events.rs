//! What listeners hear, made from what a job is: nothing is stored for them, so there may be any number.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::{board::Status, shared::Shared};
use crate::{
    jobs::{ErrorCode, Event, EventId, Job, JobError, JobId, State},
    store,
};

/// How long a job that was just recorded may take to come to the schedule.
const SETTLING: Duration = Duration::from_millis(20);

/// One listener.
struct Listener {
    shared: Arc<Shared>,
    id: JobId,
    after: Option<EventId>,
    /// The last step it knows of.
    step: usize,
    /// The last preview it has got.
    preview: Option<usize>,
    /// The last position it has got.
    position: Option<usize>,
    source: Source,
}

enum Source {
    /// Not known yet.
    Unknown,
    /// A job that is worked on, or waits.
    Live(watch::Receiver<Status>),
    /// A job that is at its end.
    Ended(Status),
    /// There is no more to hear.
    Over,
}

pub(super) fn stream(
    shared: Arc<Shared>,
    id: JobId,
    after: Option<EventId>,
) -> impl Stream<Item = (EventId, Event)> + Send + use<> {
    let listener = Listener {
        shared,
        id,
        after,
        step: after.map_or(0, EventId::step),
        preview: after.and_then(EventId::preview_step),
        position: None,
        source: Source::Unknown,
    };
    stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((event, listener))
    })
}

impl Listener {
    async fn next(&mut self) -> Option<(EventId, Event)> {
        loop {
            let status = match &mut self.source {
                Source::Unknown => {
                    self.source = self.find().await;
                    continue;
                }
                Source::Live(receiver) => receiver.borrow_and_update().clone(),
                Source::Ended(status) => status.clone(),
                Source::Over => return None,
            };
            if let Some(event) = self.news(&status) {
                return Some(event);
            }
            if let Some(job) = &status.end {
                self.source = Source::Over;
                let id = EventId::end(status.total);
                let unheard = self.after.is_none_or(|after| after < id);
                return unheard.then(|| (id, end(job)));
            }
            if let Source::Live(receiver) = &mut self.source
                && receiver.changed().await.is_err()
            {
                // The engine is gone; the job goes on when it is back.
                self.source = Source::Over;
            }
        }
    }

    /// The first thing in `status` that the listener has not heard.
    fn news(&mut self, status: &Status) -> Option<(EventId, Event)> {
        let Status { total, .. } = *status;
        if let Some((step, png)) = &status.preview
            && *step == self.step
            && self.preview.is_none_or(|seen| seen < *step)
        {
            let (step, png) = (*step, Arc::clone(png));
            self.preview = Some(step);
            return Some((EventId::preview(step), Event::Preview { step, total, png }));
        }
        if status.step > self.step {
            self.step += 1;
            let step = self.step;
            return Some((EventId::progress(step), Event::Progress { step, total }));
        }
        let position = status.position.filter(|_| status.end.is_none());
        if let Some(position) = position.filter(|_| position != self.position) {
            self.position = Some(position);
            return Some((EventId::QUEUED, Event::Queued { position }));
        }
        None
    }

    async fn find(&self) -> Source {
        loop {
            if let Some(receiver) = self.shared.listen(self.id) {
                return Source::Live(receiver);
            }
            let (shared, id) = (Arc::clone(&self.shared), self.id);
            let found = tokio::task::spawn_blocking(move || shared.store.job(id));
            match found.await.unwrap_or(Err(store::Error::Abandoned)) {
                Ok(Some(job)) if job.state.is_terminal() => {
                    return Source::Ended(Status {
                        step: job.step,
                        total: job.total,
                        end: Some(Arc::new(job)),
                        ..Status::default()
                    });
                }
                Ok(Some(_)) if !*self.shared.ended().borrow() => {
                    tokio::time::sleep(SETTLING).await;
                }
                Ok(_) => return Source::Over,
                Err(error) => {
                    tracing::error!(job = %self.id, "events: {error}");
                    return Source::Over;
                }
            }
        }
    }
}

/// The event that ends a job.
fn end(job: &Job) -> Event {
    match (job.state, &job.error) {
        (State::Completed, _) => Event::Complete(Box::new(job.clone())),
        (State::Cancelled, _) => Event::Cancelled,
        (_, Some(error)) => Event::Error(error.clone()),
        (_, None) => Event::Error(JobError {
            code: ErrorCode::Internal,
            message: "the job failed without a reason".into(),
        }),
    }
}
