//! What is known of a job.

use std::{collections::BTreeMap, fmt, str::FromStr};

use sd_pipeline::Request;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{JobId, Operation, Previews};

/// Largest [`Filter::limit`].
pub const MAX_PAGE: usize = 100;

/// A job and how far it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What the client calls it.
    pub operation: Operation,
    /// Where in its life it is.
    pub state: State,
    /// The model's name.
    pub model: String,
    /// What is drawn: complete, the seed included, but without its input pictures.
    pub request: Request,
    /// Who asked.
    pub client: String,
    /// -100 to 100.
    pub priority: i32,
    /// When the pictures are no longer wanted.
    pub deadline: Option<OffsetDateTime>,
    /// Where the finished job is sent.
    pub callback_url: Option<String>,
    /// Pictures on the way.
    pub previews: Option<Previews>,
    /// The client's own names for it.
    pub labels: BTreeMap<String, String>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When work on it began first.
    pub started_at: Option<OffsetDateTime>,
    /// When it came to its end.
    pub finished_at: Option<OffsetDateTime>,
    /// Steps complete.
    pub step: usize,
    /// Steps to make: what was asked for until work begins, then what the run needs.
    pub total: usize,
    /// How often work on it began. A worker that is stopped in an orderly way takes its start back.
    pub attempts: u32,
    /// Jobs that go before it, while it is queued.
    pub queue_position: Option<usize>,
    /// The pictures, once it is complete.
    pub images: Vec<Image>,
    /// Why it failed.
    pub error: Option<JobError>,
}

impl Job {
    /// The seed of its first picture.
    pub fn seed(&self) -> u64 {
        self.request.seed.unwrap_or_default()
    }
}

/// Where in its life a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted, and no work done.
    Queued,
    /// Work has begun.
    Running,
    /// The pictures are there.
    Completed,
    /// It came to nothing, see [`Job::error`].
    Failed,
    /// The client no longer wants it.
    Cancelled,
}

impl State {
    /// All of them, in the order of a job's life.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will happen to the job any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|state| state.name() == text);
        found.ok_or_else(|| {
            format!("{text}: expected queued, running, completed, failed or cancelled")
        })
    }
}

/// One picture of a finished job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Which, from 0.
    pub index: usize,
    /// Of its PNG file, hexadecimal.
    pub sha256: String,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The seed that makes it again.
    pub seed: u64,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct JobError {
    /// For programs.
    pub code: ErrorCode,
    /// For people; without paths of this machine.
    pub message: String,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The job's deadline passed.
    DeadlineExceeded,
    /// The worker died twice while it worked on this job.
    Poisoned,
    /// The model cannot be loaded.
    ModelUnavailable,
    /// The device has too little memory for it.
    OutOfMemory,
    /// The model computed no picture.
    GenerationFailed,
    /// A defect of the worker.
    Internal,
}

impl ErrorCode {
    /// Its name in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Poisoned => "poisoned",
            Self::ModelUnavailable => "model_unavailable",
            Self::OutOfMemory => "out_of_memory",
            Self::GenerationFailed => "generation_failed",
            Self::Internal => "internal",
        }
    }
}

/// Which jobs to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state only.
    pub state: Option<State>,
    /// Of this client only.
    pub client: Option<String>,
    /// With this label only: its name and value.
    pub label: Option<(String, String)>,
    /// Older than this job only: [`Page::next`] of the page before.
    pub before: Option<JobId>,
    /// How many at most, 1 to [`MAX_PAGE`]; 0 is the same as [`MAX_PAGE`].
    pub limit: usize,
}

/// Some of the jobs, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// [`Filter::before`] of the next page, if there is more.
    pub next: Option<JobId>,
}
