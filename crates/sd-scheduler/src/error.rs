//! What can go wrong between a scheduler's configuration and its last step.

/// The error of every function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No scheduler has this name.
    #[error("unknown scheduler `{name}`, expected one of {}", known.join(", "))]
    Unknown {
        /// The name as given.
        name: String,
        /// The short names of all schedulers.
        known: Vec<&'static str>,
    },
    /// No sigma schedule has this name.
    #[error("unknown sigma schedule `{name}`, expected one of {}", known.join(", "))]
    UnknownSigmas {
        /// The name as given.
        name: String,
        /// The short names of all schedules.
        known: Vec<&'static str>,
    },
    /// A scheduler setting has a value that the scheduler cannot run with.
    #[error("{scheduler}: `{key}` is {value}, expected {expected}")]
    Config {
        /// Short name of the scheduler.
        scheduler: &'static str,
        /// The key in `scheduler_config.json`, or the override's name.
        key: &'static str,
        /// The value found.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// The scheduler cannot make this number of steps.
    #[error("{scheduler}: cannot make {steps} steps, expected {expected}")]
    Steps {
        /// Short name of the scheduler.
        scheduler: &'static str,
        /// Steps asked for.
        steps: usize,
        /// What would be accepted.
        expected: String,
    },
    /// A run was started at a call where its solver cannot start.
    #[error("{scheduler}: a run cannot start at call {call}, expected {expected}")]
    Start {
        /// Short name of the scheduler.
        scheduler: &'static str,
        /// The call of the first step.
        call: usize,
        /// Where it can start.
        expected: &'static str,
    },
    /// A step was taken out of order: calls follow each other after the first.
    #[error("step for call {found}, expected call {expected} of {calls}")]
    OutOfOrder {
        /// The call given.
        found: usize,
        /// The call that follows the previous one.
        expected: usize,
        /// Calls in the plan.
        calls: usize,
    },
    /// The model's output is not shaped like its input.
    #[error("model output is {output:?}, expected the sample's shape {sample:?}")]
    Shape {
        /// Shape of the model output.
        output: Vec<usize>,
        /// Shape of the sample.
        sample: Vec<usize>,
    },
    /// A saved state does not belong to this scheduler.
    #[error("scheduler state: {what}, expected {expected}")]
    State {
        /// What is wrong.
        what: String,
        /// What this scheduler writes.
        expected: String,
    },
    /// A saved generator state is damaged.
    #[error("generator state: {what}, expected {expected}")]
    Generator {
        /// What is wrong.
        what: String,
        /// What [`TorchGenerator::to_bytes`](crate::rng::TorchGenerator::to_bytes) writes.
        expected: String,
    },
    /// Tensor arithmetic failed.
    #[error("scheduler arithmetic")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// [`Error::Config`], of a value that can be shown.
    pub(crate) fn config(
        scheduler: &'static str,
        key: &'static str,
        value: impl std::fmt::Display,
        expected: &'static str,
    ) -> Self {
        Self::Config {
            scheduler,
            key,
            value: value.to_string(),
            expected,
        }
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
