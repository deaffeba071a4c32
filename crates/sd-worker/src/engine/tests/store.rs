//! A store that tells what it is told, and fails on request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

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
type Before = Arc<Mutex<dyn FnMut() -> Result<()> + Send>>;

pub(super) struct Watched {
    inner: SqliteStore,
    /// All marks so far.
    marks: Mutex<Vec<Vec<(JobId, usize)>>>,
    on_mark: Hook<[(JobId, usize)]>,
    on_checkpoint: Hook<[Checkpoint]>,
    /// By the method's name.
    before: Mutex<HashMap<&'static str, Before>>,
    /// Calls of each of those methods.
    calls: Mutex<HashMap<&'static str, usize>>,
}

impl Watched {
    pub(super) fn new(inner: SqliteStore) -> Self {
        Self {
            inner,
            marks: Mutex::default(),
            on_mark: Mutex::new(Box::new(|_| {})),
            on_checkpoint: Mutex::new(Box::new(|_| {})),
            before: Mutex::default(),
            calls: Mutex::default(),
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

    /// Called before a method, which fails if this does; `finished`: after `finish`.
    pub(super) fn before(
        &self,
        method: &'static str,
        hook: impl FnMut() -> Result<()> + Send + 'static,
    ) {
        let hook = Arc::new(Mutex::new(hook));
        self.before.lock().unwrap().insert(method, hook);
    }

    /// Lets the next calls of a method fail.
    pub(super) fn fail(
        &self,
        method: &'static str,
        mut times: usize,
        error: impl Fn() -> Error + Send + 'static,
    ) {
        self.before(method, move || match times {
            0 => Ok(()),
            _ => {
                times -= 1;
                Err(error())
            }
        });
    }

    /// How often a method was called.
    pub(super) fn calls(&self, method: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.get(method).copied().unwrap_or_default()
    }

    fn called(&self, method: &'static str) -> Result<()> {
        *self.calls.lock().unwrap().entry(method).or_default() += 1;
        let hook = self.before.lock().unwrap().get(method).cloned();
        hook.map_or(Ok(()), |hook| (hook.lock().unwrap())())
    }
}

impl JobStore for Watched {
    fn submitted(&self, client: &str, idempotency: &Idempotency) -> Result<Submitted> {
        self.inner.submitted(client, idempotency)
    }

    fn insert(&self, job: &NewJob) -> Result<Submitted> {
        self.called("insert")?;
        self.inner.insert(job)
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.called("job")?;
        self.inner.job(id)
    }

    fn list(&self, filter: &Filter) -> Result<Page> {
        self.inner.list(filter)
    }

    fn request(&self, id: JobId) -> Result<Option<Request>> {
        self.called("request")?;
        self.inner.request(id)
    }

    fn image(&self, id: JobId, index: usize) -> Result<Option<Vec<u8>>> {
        self.inner.image(id, index)
    }

    fn recover(&self, now: OffsetDateTime) -> Result<Vec<Unfinished>> {
        self.inner.recover(now)
    }

    fn begin(&self, id: JobId, now: OffsetDateTime) -> Result<bool> {
        self.called("begin")?;
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

    fn last_checkpoint(&self, id: JobId) -> Result<Option<Checkpoint>> {
        self.called("last_checkpoint")?;
        self.inner.last_checkpoint(id)
    }

    fn release(&self, jobs: &[JobId]) -> Result<()> {
        self.inner.release(jobs)
    }

    fn finish(&self, id: JobId, end: &End) -> Result<Option<Job>> {
        self.called("finish")?;
        let job = self.inner.finish(id, end)?;
        self.called("finished")?;
        Ok(job)
    }

    fn expire(&self, retention: &Retention, now: OffsetDateTime) -> Result<Vec<JobId>> {
        self.inner.expire(retention, now)
    }

    fn probe(&self) -> Result<()> {
        self.called("probe")?;
        self.inner.probe()
    }

    fn next_callback(&self, free: &dyn Fn(&str) -> bool) -> Result<Option<Callback>> {
        self.inner.next_callback(free)
    }

    fn retry_callback(&self, id: JobId, due: OffsetDateTime) -> Result<()> {
        self.inner.retry_callback(id, due)
    }

    fn drop_callback(&self, id: JobId) -> Result<()> {
        self.inner.drop_callback(id)
    }
}
