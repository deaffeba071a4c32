//! The engine: one thread owns the models and advances the jobs; [`Engine`] is the handle of everybody else.
//!
//! ```text
//! Engine ── submit, cancel ──► Shared { schedule, live jobs } ◄── pick, charge, publish ── Worker { models, runs }
//!    ▲                              │ watch channel per job                                   │
//!    └───────── events ◄────────────┘                  JobStore ◄── mark, checkpoint, finish ─┘
//! ```
//!
//! What a job is was decided when it was accepted, and a run is the same bytes alone, in a batch, and resumed. So the
//! worker may stop at any moment: what is not recorded is computed again.

mod attempts;
mod batch;
mod board;
mod config;
mod error;
mod events;
mod metrics;
mod models;
mod pictures;
mod schedule;
mod shared;
mod submit;
#[cfg(test)]
mod tests;
mod thread;

pub use config::{Checkpoints, EngineConfig, ModelEntry, ModelInfo, Readiness, Stats};
pub use error::{Error, SubmitError};

use std::{sync::Arc, thread as threads};

use futures_util::Stream;
use time::OffsetDateTime;

use self::{shared::Shared, thread::Worker};
use crate::{
    jobs::{Event, EventId, Filter, Job, JobId, Page, Submission},
    store::{self, JobStore, Outcome},
    webhook,
};

/// An accepted submission.
#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    /// The job, which is on disk.
    pub job: Job,
    /// Whether it was accepted earlier, under the same idempotency key.
    pub replayed: bool,
}

/// The handle of the engine. Cheap to clone; the engine ends with [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Starts the engine on the jobs that are in the store.
    ///
    /// # Errors
    /// A model's configuration is wrong, or the store fails.
    pub fn start(config: EngineConfig, store: Arc<dyn JobStore>) -> Result<Self, Error> {
        metrics::describe();
        let unfinished = store.recover(now())?;
        let webhooks = config.webhooks.clone();
        let shared = Arc::new(Shared::new(&config, Arc::clone(&store))?);
        let worker = Worker::new(config, Arc::clone(&shared), unfinished)?;
        threads::Builder::new()
            .name("engine".into())
            .spawn(move || worker.run())
            .map_err(Error::Thread)?;
        if let Some(config) = webhooks {
            webhook::spawn(config, store, &shared.desk).map_err(Error::Thread)?;
        }
        Ok(Self { shared })
    }

    /// Accepts a job. When this returns, it is on disk.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || submit::submit(&shared, submission))
            .await
            .unwrap_or(Err(SubmitError::Store(store::Error::Abandoned)))
    }

    /// A job as it is now; None if there is none of this name (any more).
    ///
    /// # Errors
    /// The database failed.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, store::Error> {
        self.blocking(move |shared| {
            let job = shared.store.job(id)?;
            Ok(job.map(|job| shared.as_it_is_now(job)))
        })
        .await
    }

    /// The jobs that fit the filter, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, filter: Filter) -> Result<Page, store::Error> {
        self.blocking(move |shared| {
            let Page { jobs, next } = shared.store.list(&filter)?;
            let jobs = jobs.into_iter().map(|job| shared.as_it_is_now(job));
            let jobs = jobs.collect();
            Ok(Page { jobs, next })
        })
        .await
    }

    /// Ends a job that is not at its end, and returns it as it is then: cancelled, or whatever it was before. A running
    /// one makes no further step.
    ///
    /// # Errors
    /// The database failed.
    pub async fn cancel(&self, id: JobId) -> Result<Option<Job>, store::Error> {
        self.blocking(move |shared| match shared.finish(id, Outcome::Cancelled) {
            Ok(None) => shared.store.job(id),
            ended => ended.inspect_err(|error| shared.store_failed("the end of a job", error)),
        })
        .await
    }

    /// A picture of a completed job: a PNG file with its metadata.
    ///
    /// # Errors
    /// The database failed.
    pub async fn image(&self, id: JobId, index: usize) -> Result<Option<Vec<u8>>, store::Error> {
        self.blocking(move |shared| shared.store.image(id, index))
            .await
    }

    /// The latest preview of a running job: the step it shows and a PNG file.
    pub fn preview(&self, id: JobId) -> Option<(usize, Arc<[u8]>)> {
        self.shared.status(id)?.preview
    }

    /// What happened to a job since event `after`, then what happens, up to the event that ends it. Every step is there
    /// once, whatever was missed; of the previews, a slow listener gets the latest. Empty if there is no such job; ends
    /// early when the engine is shut down or the database fails.
    pub fn events(
        &self,
        id: JobId,
        after: Option<EventId>,
    ) -> impl Stream<Item = (EventId, Event)> + Send + use<> {
        events::stream(Arc::clone(&self.shared), id, after)
    }

    /// The models, the default one first.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.shared.models()
    }

    /// Whether jobs are being worked on.
    pub fn ready(&self) -> Readiness {
        self.shared.ready()
    }

    /// Numbers about the engine.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Accepts no more jobs, brings the running ones to disk and ends the engine, within about one step. A step or the
    /// loading of a model that takes longer than [`EngineConfig::stop_limit`] is not waited for: it comes to nothing, and
    /// its jobs go on at their last checkpoints.
    pub async fn shutdown(&self) {
        self.shared.close();
        if tokio::time::timeout(self.shared.stop_limit, self.ended())
            .await
            .is_err()
        {
            tracing::warn!("stops in the middle of something; the last checkpoints stand");
            let taken_back = self.blocking(|shared| {
                shared.take_back();
                Ok(())
            });
            // It has logged what went wrong.
            let _ = taken_back.await;
        }
    }

    /// Resolves when the engine has ended: asked to, or by a defect.
    pub async fn ended(&self) {
        // The sender is the engine's thread's: its end is an end, too.
        let _ = self.shared.ended().wait_for(|ended| *ended).await;
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, store::Error> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .unwrap_or(Err(store::Error::Abandoned))
    }
}

/// The time, as precise as it is recorded.
fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap_or(now)
}
