//! What the engine's thread and its handles share: the schedule, and what listeners see of each job.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use sd_pipeline::ModelConfig;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{
    EngineConfig, Error, ModelInfo, Readiness, Stats, metrics, now,
    schedule::{Schedule, Task},
};
use crate::{
    jobs::{ErrorCode, Job, JobId, State},
    store::{self, End, JobStore, Outcome},
    webhook::WebhookConfig,
};

/// What is assumed of a job's time before the first is done.
const SECONDS_PER_JOB: f64 = 5.0;
/// Weight of the latest value in a smoothed one.
const SMOOTHING: f64 = 0.2;

pub(super) struct Shared {
    pub(super) store: Arc<dyn JobStore>,
    pub(super) webhooks: Option<WebhookConfig>,
    /// The models' names and configurations, in the order of the configuration.
    pub(super) known: Vec<(String, Arc<ModelConfig>)>,
    max_queue: usize,
    board: Mutex<Board>,
    /// Wakes the engine's thread.
    wake: Condvar,
    /// Set when the engine's thread has brought everything to disk.
    ended: watch::Sender<bool>,
    /// Tells that a callback may be due, until the engine ends.
    callbacks: Mutex<Option<mpsc::Sender<()>>>,
}

/// What changes. The lock is held for bookkeeping only, never while a model or a disk works.
pub(super) struct Board {
    pub(super) schedule: Schedule,
    live: HashMap<JobId, Live>,
    /// Places taken by submissions on their way to disk.
    reserved: usize,
    pub(super) closing: bool,
    /// Why nothing can be recorded, if so.
    pub(super) store_trouble: Option<&'static str>,
    /// Why the first model is not there, if so.
    pub(super) model_trouble: Option<String>,
    /// By model: the SHA-256 of its weights while it is loaded.
    pub(super) loaded: Vec<Option<String>>,
    pub(super) stats: Stats,
    last_end: Option<Instant>,
    seconds_per_job: f64,
}

/// An unfinished job.
struct Live {
    status: watch::Sender<Status>,
    deadline: Option<OffsetDateTime>,
    accepted: Instant,
}

/// What listeners see of a job: the present alone, as the past follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    /// Jobs before it, while it waits.
    pub(super) position: Option<usize>,
    pub(super) step: usize,
    pub(super) total: usize,
    /// The latest, and the step it shows.
    pub(super) preview: Option<(usize, Arc<[u8]>)>,
    /// The job, once it is at its end.
    pub(super) end: Option<Arc<Job>>,
}

impl Shared {
    pub(super) fn new(config: &EngineConfig, store: Arc<dyn JobStore>) -> Result<Self, Error> {
        let mut known: Vec<(String, Arc<ModelConfig>)> = vec![];
        for model in &config.models {
            let name = model.name.clone();
            let read = model.builder.config();
            let read = read.map_err(|source| Error::Model {
                name: name.clone(),
                source,
            })?;
            known.push((name, Arc::new(read)));
        }
        let names: Vec<_> = known.iter().map(|(name, _)| name.clone()).collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        if unique.len() != names.len() || names.is_empty() {
            return Err(Error::Models { names });
        }
        Ok(Self {
            store,
            webhooks: config.webhooks.clone(),
            max_queue: config.max_queue,
            board: Mutex::new(Board {
                schedule: Schedule::default(),
                live: HashMap::new(),
                reserved: 0,
                closing: false,
                store_trouble: None,
                model_trouble: Some("model loading".into()),
                loaded: vec![None; known.len()],
                stats: Stats {
                    max_queue: config.max_queue,
                    ..Stats::default()
                },
                last_end: None,
                seconds_per_job: SECONDS_PER_JOB,
            }),
            known,
            wake: Condvar::new(),
            ended: watch::Sender::new(false),
            callbacks: Mutex::new(None),
        })
    }

    /// The board is consistent after a panic: each change to it is complete before anything can fail.
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        locked(&self.board)
    }

    /// Gives the board up until something changes, or the time has passed.
    pub(super) fn wait<'a>(
        &self,
        board: MutexGuard<'a, Board>,
        timeout: Duration,
    ) -> MutexGuard<'a, Board> {
        match self.wake.wait_timeout(board, timeout) {
            Ok((board, _)) => board,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    pub(super) fn model(&self, name: &str) -> Option<usize> {
        self.known.iter().position(|(known, _)| known == name)
    }

    /// Takes a place in the queue for a submission, or says when to try again.
    pub(super) fn reserve(&self) -> Result<(), Duration> {
        let mut board = self.board();
        if board.live.len() + board.reserved < self.max_queue {
            board.reserved += 1;
            return Ok(());
        }
        let seconds = board.seconds_per_job.clamp(1.0, 3600.0).ceil();
        Err(Duration::from_secs_f64(seconds))
    }

    /// Gives a place back that [`reserve`](Self::reserve) took.
    pub(super) fn release(&self) {
        let mut board = self.board();
        board.reserved = board.reserved.saturating_sub(1);
    }

    /// Puts a job that is on disk into the schedule.
    pub(super) fn push(&self, job: &Job, task: Task) {
        let mut board = self.board();
        let status = Status {
            step: job.step,
            total: job.total,
            ..Status::default()
        };
        let live = Live {
            status: watch::Sender::new(status),
            deadline: job.deadline,
            accepted: Instant::now(),
        };
        board.live.insert(job.id, live);
        board.schedule.push(job.id, task);
        board.publish_positions();
        drop(board);
        self.wake.notify_all();
    }

    /// Records that work on a job begins.
    pub(super) fn begin(&self, id: JobId) {
        let mut board = self.board();
        let Some(task) = board.schedule.get_mut(id) else {
            return;
        };
        if !task.started {
            task.started = true;
            if let Some(live) = board.live.get(&id) {
                metrics::waited(live.accepted.elapsed());
            }
        }
        board.publish_positions();
    }

    /// Records the end of a job on disk and tells its listeners. None if it had come to its end before, or never was.
    pub(super) fn finish(&self, id: JobId, outcome: Outcome) -> store::Result<Option<Job>> {
        let Some(Status { step, total, .. }) = self.status(id) else {
            return Ok(None);
        };
        let step = match outcome {
            Outcome::Completed(_) => total,
            _ => step,
        };
        let at = now();
        let end = End {
            outcome,
            step,
            total,
            at,
        };
        let Some(job) = self.store.finish(id, &end)? else {
            return Ok(None);
        };
        metrics::ended(&job);
        tracing::info!(job = %id, state = %job.state, steps = job.step, attempts = job.attempts, "job ended");
        let mut board = self.board();
        board.schedule.remove(id);
        if let Some(live) = board.live.remove(&id) {
            live.status.send_modify(|status| {
                status.position = None;
                status.step = job.step;
                status.end = Some(Arc::new(job.clone()));
            });
        }
        if job.state == State::Completed {
            board.completed();
        }
        board.publish_positions();
        drop(board);
        self.wake.notify_all();
        if let Some(callbacks) = &*locked(&self.callbacks) {
            // Without a receiver nobody has to be told.
            let _ = callbacks.send(());
        }
        Ok(Some(job))
    }

    /// Drops a job that the store no longer has, or knows the end of. False, as it is not worked on.
    pub(super) fn forget(&self, id: JobId) -> bool {
        let mut board = self.board();
        board.schedule.remove(id);
        board.live.remove(&id);
        board.publish_positions();
        false
    }

    /// What listeners see of an unfinished job at this moment.
    pub(super) fn status(&self, id: JobId) -> Option<Status> {
        let board = self.board();
        board.live.get(&id).map(|live| live.status.borrow().clone())
    }

    /// What they see from now on.
    pub(super) fn listen(&self, id: JobId) -> Option<watch::Receiver<Status>> {
        let board = self.board();
        board.live.get(&id).map(|live| live.status.subscribe())
    }

    /// Changes what they see.
    pub(super) fn publish(&self, id: JobId, change: impl FnOnce(&mut Status)) {
        if let Some(live) = self.board().live.get(&id) {
            live.status.send_modify(change);
        }
    }

    /// A job's record with what is not on disk.
    pub(super) fn as_it_is_now(&self, mut job: Job) -> Job {
        if let Some(status) = self.status(job.id).filter(|_| !job.state.is_terminal()) {
            job.step = status.step;
            job.total = status.total;
            job.queue_position = status.position;
        }
        job
    }

    pub(super) fn models(&self) -> Vec<ModelInfo> {
        let board = self.board();
        let models = self.known.iter().zip(&board.loaded);
        models
            .map(|((name, config), sha256)| ModelInfo {
                name: name.clone(),
                loaded: sha256.is_some(),
                config: Arc::clone(config),
                sha256: sha256.clone(),
            })
            .collect()
    }

    pub(super) fn ready(&self) -> Readiness {
        let board = self.board();
        let reason = match board.closing {
            true => Some("shutting down".to_owned()),
            false => board
                .store_trouble
                .map(str::to_owned)
                .or_else(|| board.model_trouble.clone()),
        };
        Readiness {
            ready: reason.is_none(),
            reason,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let board = self.board();
        let queued = board.schedule.waiting().len();
        Stats {
            queued,
            running: board.live.len().saturating_sub(queued),
            ..board.stats.clone()
        }
    }

    pub(super) fn close(&self) {
        self.board().closing = true;
        self.wake.notify_all();
    }

    pub(super) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Ends all listening: the engine is no more.
    pub(super) fn end(&self) {
        let mut board = self.board();
        board.closing = true;
        board.live.clear();
        drop(board);
        *locked(&self.callbacks) = None;
        self.ended.send_replace(true);
    }

    /// Is told when a callback may be due, and by its end that the engine has ended.
    pub(super) fn callbacks(&self) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel();
        *locked(&self.callbacks) = Some(sender);
        receiver
    }
}

impl Board {
    /// The jobs whose deadline has passed, and the time to the next one.
    pub(super) fn overdue(&self, now: OffsetDateTime) -> (Vec<JobId>, Option<Duration>) {
        let (mut overdue, mut next) = (vec![], None);
        for (id, live) in &self.live {
            match live.deadline.map(|deadline| deadline - now) {
                Some(left) if !left.is_positive() => overdue.push(*id),
                Some(left) => {
                    let left = left.unsigned_abs();
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                }
                None => {}
            }
        }
        (overdue, next)
    }

    /// Records a UNet call.
    pub(super) fn called(&mut self, jobs: usize, took: Duration) {
        let stats = &mut self.stats;
        let seconds = took.as_secs_f64();
        stats.seconds_per_call = match stats.calls {
            0 => seconds,
            _ => smoothed(stats.seconds_per_call, seconds),
        };
        stats.calls += 1;
        stats.batch = jobs;
        stats.max_batch_seen = stats.max_batch_seen.max(jobs);
    }

    fn completed(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last_end.replace(now) {
            let seconds = (now - last).as_secs_f64();
            self.seconds_per_job = smoothed(self.seconds_per_job, seconds);
        }
        if self.live.is_empty() {
            // The time until somebody comes is none of a job's.
            self.last_end = None;
        }
    }

    fn publish_positions(&mut self) {
        let waiting = self.schedule.waiting();
        metrics::queue(
            waiting.len(),
            self.live.len() - waiting.len().min(self.live.len()),
        );
        let positions: HashMap<_, _> = waiting
            .into_iter()
            .enumerate()
            .map(|(position, id)| (id, position))
            .collect();
        for (id, live) in &self.live {
            let position = positions.get(id).copied();
            live.status.send_if_modified(|status| {
                let changed = status.position != position;
                status.position = position;
                changed
            });
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn smoothed(before: f64, latest: f64) -> f64 {
    before + SMOOTHING * (latest - before)
}

/// A failure in words for a job's record.
pub(super) fn failed(code: ErrorCode, message: impl Into<String>) -> Outcome {
    Outcome::Failed(crate::jobs::JobError {
        code,
        message: message.into(),
    })
}
