//! The engine: one thread owns the models and advances the jobs; [`Engine`] is the handle of everybody else.

mod config;

pub use config::{Checkpoints, EngineConfig, ModelEntry, ModelInfo, Readiness, Stats};

use std::{sync::Arc, time::Duration};

use futures_util::Stream;

use crate::{
    jobs::{Event, EventId, Filter, Job, JobId, Page, Submission},
    store::{self, JobStore},
};

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model's configuration is wrong or missing.
    #[error("model {name} cannot be used")]
    Model {
        /// The model's name.
        name: String,
        /// What is wrong.
        #[source]
        source: sd_pipeline::Error,
    },
    /// Two models go by one name, or there is none at all.
    #[error("expected one or more models with different names, got {names:?}")]
    Models {
        /// The names.
        names: Vec<String>,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The system gives no more threads.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Why a submission is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// There are as many jobs as the queue may hold.
    #[error("the queue is full")]
    QueueFull {
        /// When a place is likely to be free.
        retry_after: Duration,
    },
    /// The key was used for another submission.
    #[error("the idempotency key was used before, with another body")]
    IdempotencyConflict,
    /// There is no such model.
    #[error("model: got {name}, expected one of {known:?}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The models there are.
        known: Vec<String>,
    },
    /// A field of the submission beside the request is wrong.
    #[error("{field}: {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it has to be.
        expected: String,
    },
    /// The model cannot do what was asked.
    #[error(transparent)]
    Request(#[from] sd_pipeline::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The worker is about to end.
    #[error("the worker is shutting down")]
    ShuttingDown,
}

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
pub struct Engine;

impl Engine {
    /// Starts the engine on the jobs that are in the store.
    ///
    /// # Errors
    /// A model's configuration is wrong, or the store fails.
    pub fn start(_config: EngineConfig, _store: Arc<dyn JobStore>) -> Result<Self, Error> {
        todo!()
    }

    /// Accepts a job. When this returns, it is on disk.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn submit(&self, _submission: Submission) -> Result<Submitted, SubmitError> {
        todo!()
    }

    /// A job as it is now; None if there is none of this name (any more).
    ///
    /// # Errors
    /// The database failed.
    pub async fn job(&self, _id: JobId) -> Result<Option<Job>, store::Error> {
        todo!()
    }

    /// The jobs that fit the filter, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, _filter: Filter) -> Result<Page, store::Error> {
        todo!()
    }

    /// Ends a job that is not at its end, and returns it as it is then: cancelled, or whatever it was before. A running
    /// one makes no further step.
    ///
    /// # Errors
    /// The database failed.
    pub async fn cancel(&self, _id: JobId) -> Result<Option<Job>, store::Error> {
        todo!()
    }

    /// A picture of a completed job: a PNG file with its metadata.
    ///
    /// # Errors
    /// The database failed.
    pub async fn image(&self, _id: JobId, _index: usize) -> Result<Option<Vec<u8>>, store::Error> {
        todo!()
    }

    /// The latest preview of a running job: the step it shows and a PNG file.
    pub fn preview(&self, _id: JobId) -> Option<(usize, Arc<[u8]>)> {
        todo!()
    }

    /// What happened to a job since event `after`, then what happens, up to the event that ends it. Every step is there
    /// once, whatever was missed; of the previews, a slow listener gets the latest. Empty if there is no such job.
    pub fn events(
        &self,
        _id: JobId,
        _after: Option<EventId>,
    ) -> impl Stream<Item = (EventId, Event)> + Send + use<> {
        futures_util::stream::empty()
    }

    /// The models, the default one first.
    pub fn models(&self) -> Vec<ModelInfo> {
        todo!()
    }

    /// Whether jobs are being worked on.
    pub fn ready(&self) -> Readiness {
        todo!()
    }

    /// Numbers about the engine.
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// Accepts no more jobs, brings the running ones to disk and ends the engine, within about one step.
    pub async fn shutdown(&self) {
        todo!()
    }
}
