//! Where jobs are kept. [`JobStore`] is what the engine needs of a database, [`SqliteStore`] the one there is.

mod error;
mod schema;
mod sqlite;

pub use error::{Error, Result};
pub use sqlite::SqliteStore;

use std::time::Duration;

use sd_pipeline::Request;
use time::OffsetDateTime;

use crate::jobs::{ErrorCode, Filter, Idempotency, Image, Job, JobError, JobId, Page};

/// Durable jobs. A call that returns is on disk, unless it says otherwise; a call that fails has changed nothing.
pub trait JobStore: Send + Sync {
    /// The job a client submitted under this key, and whether that was the same submission.
    ///
    /// # Errors
    /// The database failed; so for all methods.
    fn submitted(&self, client: &str, idempotency: &Idempotency) -> Result<Submitted>;

    /// Records a new job, unless its key is taken.
    fn insert(&self, job: &NewJob) -> Result<Submitted>;

    /// A job's record.
    fn job(&self, id: JobId) -> Result<Option<Job>>;

    /// The jobs that fit, newest first.
    fn list(&self, filter: &Filter) -> Result<Page>;

    /// What an unfinished job draws, with its input pictures.
    fn request(&self, id: JobId) -> Result<Option<Request>>;

    /// The PNG file of a completed job's picture.
    fn image(&self, id: JobId, index: usize) -> Result<Option<Vec<u8>>>;

    /// The unfinished jobs, oldest first. One that was [marked](Self::mark) alone when the worker died has one death more
    /// from now on; one that cannot be read has failed.
    fn recover(&self, now: OffsetDateTime) -> Result<Vec<Unfinished>>;

    /// Counts an attempt at a job, which is running from now on. False if it has come to its end.
    fn begin(&self, id: JobId, now: OffsetDateTime) -> Result<bool>;

    /// Says which jobs are worked on at this moment, together, and at which UNet call each is, in place of those before.
    /// Survives the end of this process, but maybe not of the machine.
    fn mark(&self, jobs: &[(JobId, usize)]) -> Result<()>;

    /// Records how far jobs are. Deaths of the worker before the call that a job is at are forgotten.
    fn checkpoint(&self, checkpoints: &[Checkpoint]) -> Result<()>;

    /// A job's last checkpoint.
    fn last_checkpoint(&self, id: JobId) -> Result<Option<Checkpoint>>;

    /// Takes back an attempt at each job that is still running, and all marks: the worker stops in an orderly way.
    fn release(&self, jobs: &[JobId]) -> Result<()>;

    /// Records the end of a job with its pictures, and its callback if it has one. None if it had come to its end before.
    /// A job whose record is [damaged](Error::is_damage) ends, too; the error says that it cannot be returned.
    fn finish(&self, id: JobId, end: &End) -> Result<Option<Job>>;

    /// Removes what need not be kept, and returns which jobs that was.
    fn expire(&self, retention: &Retention, now: OffsetDateTime) -> Result<Vec<JobId>>;

    /// Writes something that changes nothing, to see whether writing works.
    fn probe(&self) -> Result<()>;

    /// The callback that is due first, of those to URLs that are `free`.
    fn next_callback(&self, free: &dyn Fn(&str) -> bool) -> Result<Option<Callback>>;

    /// Puts a callback off.
    fn retry_callback(&self, id: JobId, due: OffsetDateTime) -> Result<()>;

    /// Removes a callback: it has arrived, or never will.
    fn drop_callback(&self, id: JobId) -> Result<()>;
}

/// A job to be recorded.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// As it will be read back.
    pub job: Job,
    /// What it draws, with its input pictures.
    pub request: Request,
    /// The client's own name for the submission.
    pub idempotency: Option<Idempotency>,
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// Its key is new, or it has none.
    New,
    /// It is the job that was submitted before.
    Before(Box<Job>),
    /// Its key stands for another submission.
    Conflict,
}

/// A job that is not at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfinished {
    /// Its record.
    pub job: Job,
    /// UNet calls made, as of its checkpoint.
    pub calls: usize,
    /// How often the worker died with it alone, each time at no later a call than the time before.
    pub deaths: u32,
    /// The UNet call it was at when the worker died last, alone or in company; None once it is past that.
    pub died_at: Option<usize>,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The job.
    pub id: JobId,
    /// UNet calls made.
    pub calls: usize,
    /// Steps done.
    pub step: usize,
    /// Steps to make.
    pub total: usize,
    /// What [`Run::snapshot`](sd_pipeline::Run::snapshot) gave.
    pub snapshot: Vec<u8>,
}

/// How a job ends.
#[derive(Clone, Debug)]
pub struct End {
    /// What came of it.
    pub outcome: Outcome,
    /// Steps done.
    pub step: usize,
    /// Steps to make.
    pub total: usize,
    /// When.
    pub at: OffsetDateTime,
}

/// What comes of a job.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Pictures.
    Completed(Vec<Picture>),
    /// An error.
    Failed(JobError),
    /// Nothing, as nobody wants it.
    Cancelled,
}

impl Outcome {
    /// That of a job whose record is [damaged](Error::is_damage).
    pub(crate) fn unreadable() -> Self {
        Self::Failed(JobError {
            code: ErrorCode::Internal,
            message: "its record cannot be read".into(),
        })
    }
}

/// A picture to be recorded.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What the job's record says of it.
    pub image: Image,
    /// The PNG file.
    pub png: Vec<u8>,
}

/// A callback to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Callback {
    /// Where to.
    pub url: String,
    /// How often it was tried.
    pub tries: u32,
    /// Not before.
    pub due: OffsetDateTime,
    /// The finished job.
    pub job: Job,
}

/// How long finished jobs are kept, with their pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Since they finished.
    pub max_age: Duration,
    /// Bytes of pictures; the oldest jobs go first.
    pub max_bytes: u64,
    /// Whether jobs stay beyond that while their callbacks are still to be made.
    pub callbacks: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(7 * 24 * 60 * 60),
            max_bytes: 4 << 30,
            callbacks: true,
        }
    }
}
