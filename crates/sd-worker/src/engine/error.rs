//! What the engine refuses.

use std::{io, time::Duration};

use crate::store;

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
        source: Box<sd_pipeline::Error>,
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
    /// The engine's thread has ended although nobody asked it to.
    #[error("the engine has ended by itself; the log says why")]
    Ended,
    /// The system gives no more threads.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
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
