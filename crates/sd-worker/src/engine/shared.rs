//! What the engine's thread and its handles share: the board, and how each wakes the other.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sd_pipeline::{ModelConfig, Resolver};
use tokio::sync::watch;

use super::{
    EngineConfig, Error, ModelInfo, Readiness, Stats,
    attempts::Attempts,
    board::{Board, Live, Status},
    metrics, now,
    schedule::Task,
};
use crate::{
    jobs::{ErrorCode, Job, JobId, State},
    store::{self, End, JobStore, Outcome},
    webhook::{Desk, WebhookConfig},
};

pub(super) struct Shared {
    pub(super) store: Arc<dyn JobStore>,
    pub(super) webhooks: Option<WebhookConfig>,
    /// The models, in the order of the configuration.
    pub(super) known: Vec<Known>,
    max_queue: usize,
    /// How long a stop waits for what is under way.
    pub(super) stop_limit: Duration,
    board: Mutex<Board>,
    /// Wakes the engine's thread.
    wake: Condvar,
    /// Set when the engine's thread has brought everything to disk.
    ended: watch::Sender<bool>,
    pub(super) attempts: Attempts,
    /// Where callbacks are made.
    pub(super) desk: Arc<Desk>,
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
            stop_limit: config.stop_limit,
            board: Mutex::new(Board::new(config.max_queue, known.len())),
            known,
            wake: Condvar::new(),
            ended: watch::Sender::new(false),
            attempts: Attempts::default(),
            desk: Arc::default(),
        })
    }

    /// The board is consistent after a panic: each change to it is complete before anything can fail.
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
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
        let job = match self.store.finish(id, &end) {
            Ok(Some(job)) => job,
            Ok(None) => return Ok(None),
            Err(error) => {
                if error.is_damage() {
                    self.forget(id);
                }
                return Err(error);
            }
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
        self.desk.ring();
        Ok(Some(job))
    }

    /// Works no more on a job that the store knows the end of. Whoever recorded that tells its listeners.
    pub(super) fn unschedule(&self, id: JobId) {
        let mut board = self.board();
        board.schedule.remove(id);
        board.publish_positions();
    }

    /// Drops a job that the store does not have, or cannot read: its listeners hear no more.
    pub(super) fn forget(&self, id: JobId) {
        self.unschedule(id);
        self.board().live.remove(&id);
    }

    /// Says that nothing can be recorded; the engine's thread finds out when it can again.
    pub(super) fn store_failed(&self, what: &str, error: &store::Error) {
        metrics::failed("storage");
        tracing::error!(
            error = error as &dyn std::error::Error,
            "cannot record {what}"
        );
        let trouble = match error {
            store::Error::Full => "the disk is full",
            _ => "the job store fails; the log says why",
        };
        self.board().store_trouble = Some(trouble);
        self.wake.notify_all();
    }

    /// Tells the store that this end of the worker is an orderly one.
    pub(super) fn take_back(&self) {
        if let Err(error) = self.attempts.release(&*self.store) {
            self.store_failed("the end of the worker", &error);
        }
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
        if !board.closing {
            tracing::error!("the engine has ended by itself");
        }
        board.closing = true;
        board.live.clear();
        drop(board);
        self.desk.close();
        self.ended.send_replace(true);
    }
}

/// A failure in words for a job's record.
pub(super) fn failed(code: ErrorCode, message: impl Into<String>) -> Outcome {
    Outcome::Failed(crate::jobs::JobError {
        code,
        message: message.into(),
    })
}
