//! A store that tells what it is told.

use std::sync::Mutex;

use sd_pipeline::Request;
use time::OffsetDateTime;

use crate::{
    jobs::{Filter, Idempotency, Job, JobId, Page},
    store::{
        Callback, Checkpoint, End, Error, JobStore, NewJob, Result, Retention, SqliteStore,
        Submitted, Unfinished,
    },
};

type Hook<T> = Mutex<Box<dyn FnMut(&T) + Send>>;

pub(super) struct Watched {
    inner: SqliteStore,
    /// All marks so far.
    marks: Mutex<Vec<Vec<(JobId, usize)>>>,
    on_mark: Hook<[(JobId, usize)]>,
    on_checkpoint: Hook<[Checkpoint]>,
    /// How many more ends find the disk full.
    full: Mutex<usize>,
}

impl Watched {
    pub(super) fn new(inner: SqliteStore) -> Self {
        Self {
            inner,
            marks: Mutex::default(),
            on_mark: Mutex::new(Box::new(|_| {})),
            on_checkpoint: Mutex::new(Box::new(|_| {})),
            full: Mutex::default(),
        }
    }

    /// Called when jobs are marked, before a call is made for them.
    pub(super) fn on_mark(&self, hook: impl FnMut(&[(JobId, usize)]) + Send + 'static) {
        *self.on_mark.lock().unwrap() = Box::new(hook);
    }

    /// Called when checkpoints have been written.
    pub(super) fn on_checkpoint(&self, hook: impl FnMut(&[Checkpoint]) + Send + 'static) {
        *self.on_checkpoint.lock().unwrap() = Box::new(hook);
    }

    pub(super) fn marks(&self) -> Vec<Vec<(JobId, usize)>> {
        self.marks.lock().unwrap().clone()
    }

    pub(super) fn fill_disk(&self, times: usize) {
        *self.full.lock().unwrap() = times;
    }
}

impl JobStore for Watched {
    fn submitted(&self, client: &str, idempotency: &Idempotency) -> Result<Submitted> {
        self.inner.submitted(client, idempotency)
    }

    fn insert(&self, job: &NewJob) -> Result<Submitted> {
        self.inner.insert(job)
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.inner.job(id)
    }

    fn list(&self, filter: &Filter) -> Result<Page> {
        self.inner.list(filter)
    }

    fn request(&self, id: JobId) -> Result<Option<Request>> {
        self.inner.request(id)
    }

    fn image(&self, id: JobId, index: usize) -> Result<Option<Vec<u8>>> {
        self.inner.image(id, index)
    }

    fn recover(&self) -> Result<Vec<Unfinished>> {
        self.inner.recover()
    }

    fn begin(&self, id: JobId, now: OffsetDateTime) -> Result<bool> {
        self.inner.begin(id, now)
    }

    fn mark(&self, jobs: &[(JobId, usize)]) -> Result<()> {
        self.inner.mark(jobs)?;
        self.marks.lock().unwrap().push(jobs.to_vec());
        (self.on_mark.lock().unwrap())(jobs);
        Ok(())
    }

    fn checkpoint(&self, checkpoints: &[Checkpoint]) -> Result<()> {
        self.inner.checkpoint(checkpoints)?;
        (self.on_checkpoint.lock().unwrap())(checkpoints);
        Ok(())
    }

    fn snapshot(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        self.inner.snapshot(id)
    }

    fn release(&self, jobs: &[JobId]) -> Result<()> {
        self.inner.release(jobs)
    }

    fn finish(&self, id: JobId, end: &End) -> Result<Option<Job>> {
        let mut full = self.full.lock().unwrap();
        if *full > 0 {
            *full -= 1;
            return Err(Error::Full);
        }
        drop(full);
        self.inner.finish(id, end)
    }

    fn expire(&self, retention: &Retention, now: OffsetDateTime) -> Result<Vec<JobId>> {
        self.inner.expire(retention, now)
    }

    fn next_callback(&self) -> Result<Option<Callback>> {
        self.inner.next_callback()
    }

    fn retry_callback(&self, id: JobId, due: OffsetDateTime) -> Result<()> {
        self.inner.retry_callback(id, due)
    }

    fn drop_callback(&self, id: JobId) -> Result<()> {
        self.inner.drop_callback(id)
    }
}
