//! What the engine's thread and its handles share: the board, and how each wakes the other.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use sd_pipeline::{ModelConfig, Resolver};
use tokio::sync::watch;

use super::{
    EngineConfig, Error, ModelInfo, Readiness, Stats,
    board::{Board, Live, Status},
    metrics, now,
    schedule::Task,
};
use crate::{
    jobs::{ErrorCode, Job, JobId, State},
    store::{self, End, JobStore, Outcome},
    webhook::WebhookConfig,
};

pub(super) struct Shared {
    pub(super) store: Arc<dyn JobStore>,
    pub(super) webhooks: Option<WebhookConfig>,
    /// The models, in the order of the configuration.
    pub(super) known: Vec<Known>,
    max_queue: usize,
    board: Mutex<Board>,
    /// Wakes the engine's thread.
    wake: Condvar,
    /// Set when the engine's thread has brought everything to disk.
    ended: watch::Sender<bool>,
    /// Tells that a callback may be due, until the engine ends.
    callbacks: Mutex<Option<mpsc::Sender<()>>>,
}

/// A model, loaded or not.
pub(super) struct Known {
    pub(super) name: String,
    config: Arc<ModelConfig>,
    pub(super) resolver: Resolver,
}

impl Shared {
    pub(super) fn new(config: &EngineConfig, store: Arc<dyn JobStore>) -> Result<Self, Error> {
        let mut known = vec![];
        for model in &config.models {
            let name = model.name.clone();
            let resolver = model.builder.resolver().map_err(|source| Error::Model {
                name: name.clone(),
                source: Box::new(source),
            })?;
            known.push(Known {
                name,
                config: Arc::new(resolver.config().clone()),
                resolver,
            });
        }
        let names: Vec<_> = known.iter().map(|known| known.name.clone()).collect();
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
            board: Mutex::new(Board::new(config.max_queue, known.len())),
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
        self.known.iter().position(|known| known.name == name)
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
            .map(|(known, sha256)| ModelInfo {
                name: known.name.clone(),
                loaded: sha256.is_some(),
                config: Arc::clone(&known.config),
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A failure in words for a job's record.
pub(super) fn failed(code: ErrorCode, message: impl Into<String>) -> Outcome {
    Outcome::Failed(crate::jobs::JobError {
        code,
        message: message.into(),
    })
}
