//! The one thread that owns the models: it picks a batch, advances it, records what came of it, and picks again.

mod activate;
mod record;
mod stop;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use sd_pipeline::{Progress, Run};

use super::{
    Checkpoints, EngineConfig, Error, batch, metrics,
    models::Models,
    now, pictures,
    shared::{Shared, failed},
    submit,
};
use crate::{
    jobs::{ErrorCode, JobId, Previews},
    store::{Outcome, Retention, Unfinished},
};

/// How often expired jobs are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How long to wait before asking a failing store again.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// How often the worker may die with a job alone.
const MAX_DEATHS: u32 = 2;

pub(super) struct Worker {
    shared: Arc<Shared>,
    models: Models,
    max_batch: usize,
    max_active: usize,
    checkpoints: Checkpoints,
    retention: Retention,
    /// The runs in memory.
    active: HashMap<JobId, Active>,
    /// What the store has not taken yet.
    unsaved: Vec<(JobId, Outcome)>,
    swept: Option<Instant>,
}

/// A run in memory.
struct Active {
    run: Run,
    model: usize,
    /// What it takes in a UNet call.
    bytes: u64,
    previews: Option<Previews>,
    calls: usize,
    step: usize,
    total: usize,
    /// Calls at the last checkpoint, and when that was.
    saved: (usize, Instant),
    used: Instant,
}

impl Active {
    /// Whether all that was done is on disk.
    fn is_saved(&self) -> bool {
        self.saved.0 == self.calls
    }
}

/// What to do next.
enum Next {
    /// A UNet call for these jobs.
    Call(Vec<JobId>),
    /// These are past their deadlines.
    Fail(Vec<JobId>),
    /// Look for expired jobs, and try the store again.
    Sweep,
    Stop,
}

impl Worker {
    /// Takes up the jobs of the store.
    pub(super) fn new(
        config: EngineConfig,
        shared: Arc<Shared>,
        unfinished: Vec<Unfinished>,
    ) -> Result<Self, Error> {
        for Unfinished {
            job,
            calls,
            deaths,
            died_at,
        } in unfinished
        {
            let model = shared.model(&job.model);
            let mut task = submit::task(model.unwrap_or_default(), &job);
            task.calls = calls;
            task.suspect = died_at;
            shared.push(&job, task);
            let end = match model {
                _ if deaths >= MAX_DEATHS => failed(
                    ErrorCode::Poisoned,
                    format!("the worker died {deaths} times while it worked on this job alone"),
                ),
                Some(_) => continue,
                None => failed(
                    ErrorCode::ModelUnavailable,
                    format!("model {} is no longer configured", job.model),
                ),
            };
            shared.finish(job.id, end)?;
        }
        Ok(Self {
            models: Models::new(config.models, config.model_memory)?,
            max_batch: config.max_batch.max(1),
            max_active: config.max_active.max(config.max_batch).max(1),
            checkpoints: config.checkpoints,
            retention: config.retention,
            active: HashMap::new(),
            unsaved: vec![],
            swept: None,
            shared,
        })
    }

    pub(super) fn run(mut self) {
        // However this thread ends, nobody must wait for it.
        let _end = EndOnDrop(Arc::clone(&self.shared));
        self.preload();
        loop {
            match self.next() {
                Next::Call(jobs) => self.call(&jobs),
                Next::Fail(jobs) => {
                    for id in jobs {
                        self.end(
                            id,
                            failed(ErrorCode::DeadlineExceeded, "its deadline passed"),
                        );
                    }
                }
                Next::Sweep => self.sweep(),
                Next::Stop => return self.stop(),
            }
        }
    }

    /// Waits for something to do.
    fn next(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut board = shared.board();
        loop {
            if board.closing {
                return Next::Stop;
            }
            let every = match board.store_trouble {
                None => SWEEP,
                Some(_) => STORE_RETRY,
            };
            let since = self.swept.map(|swept| swept.elapsed());
            let to_sweep = match since {
                Some(since) if since < every => every - since,
                _ => return Next::Sweep,
            };
            let (overdue, to_deadline) = board.overdue(now());
            let overdue: Vec<_> = overdue
                .into_iter()
                .filter(|id| board.schedule.contains(*id))
                .collect();
            if !overdue.is_empty() {
                return Next::Fail(overdue);
            }
            // A cancelled run is one that is no longer in the schedule.
            self.active.retain(|id, _| board.schedule.contains(*id));
            let ready = |model| self.models.is_ready(model);
            let picked = board.schedule.pick(self.max_batch, ready);
            if let Some(leader) = picked.first() {
                board.schedule.lead(*leader);
                return Next::Call(picked);
            }
            if self.active.is_empty() {
                crate::MEMORY.trim();
            }
            let timeout = to_deadline.map_or(to_sweep, |left| left.min(to_sweep));
            board = shared.wait(board, timeout);
        }
    }

    /// Makes one UNet call for as many of the jobs as can share it.
    fn call(&mut self, picked: &[JobId]) {
        let (mut jobs, mut bytes) = (vec![], 0_u64);
        for id in picked {
            match self.activate(*id, picked) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    self.shared.store_failed("the begin of a job", &error);
                    if jobs.is_empty() {
                        drop(self.shared.wait(self.shared.board(), STORE_RETRY));
                    }
                    break;
                }
            }
            let run = &self.active[id];
            let together = bytes.saturating_add(run.bytes);
            let joins = match jobs.first().and_then(|first| self.active.get(first)) {
                Some(first) => run.run.joins(&first.run) && together <= self.models.room(),
                None => true,
            };
            if joins {
                jobs.push(*id);
                bytes = together;
            }
        }
        jobs.retain(|id| self.active.contains_key(id));
        // What took long above may have outlasted a stop.
        let closing = self.shared.board().closing;
        let Some(leader) = jobs.first().filter(|_| !closing) else {
            return;
        };
        let model = self.active[leader].model;
        let _span = tracing::debug_span!("call", jobs = jobs.len(), leader = %leader).entered();
        self.mark(&jobs);
        let (results, took) = self.advance(&jobs, model);
        self.shared.board().called(jobs.len(), took);
        let board = self.shared.board();
        self.active.retain(|id, _| board.schedule.contains(*id));
        drop(board);
        for (id, result) in jobs.iter().zip(results) {
            match result {
                Ok(progress) => self.progressed(*id, progress),
                Err(outcome) => self.end(*id, outcome),
            }
        }
        self.checkpoint(&jobs);
        for id in jobs {
            if self
                .active
                .get(&id)
                .is_some_and(|active| active.run.is_done())
            {
                self.finish(id);
            }
        }
    }

    fn advance(
        &mut self,
        jobs: &[JobId],
        model: usize,
    ) -> (Vec<Result<Option<Progress>, Outcome>>, Duration) {
        let start = Instant::now();
        // Taken out, as several cannot be borrowed from a map at once.
        let mut members: Vec<_> = jobs
            .iter()
            .filter_map(|id| Some((*id, self.active.remove(id)?)))
            .collect();
        let results = match self.models.touch(model) {
            Some(pipeline) => {
                let mut runs: Vec<_> = members
                    .iter_mut()
                    .map(|(_, active)| &mut active.run)
                    .collect();
                batch::advance(pipeline, &mut runs)
            }
            None => vec![],
        };
        let took = start.elapsed();
        self.active.extend(members);
        metrics::stage("unet", took);
        metrics::batch(jobs.len());
        (results, took)
    }

    /// Tells how far a run is, and shows it if that was asked for.
    fn progressed(&mut self, id: JobId, progress: Option<Progress>) {
        let (Some(active), Some(progress)) = (self.active.get_mut(&id), progress) else {
            return;
        };
        let made = progress.step.saturating_sub(active.step);
        active.calls = progress.call;
        active.step = progress.step;
        active.total = progress.num_steps;
        active.used = Instant::now();
        metrics::steps(made);
        let mut board = self.shared.board();
        board.schedule.charge(id, progress.call);
        board.stats.steps += made as u64;
        drop(board);
        self.shared.publish(id, |status| {
            status.step = progress.step;
            status.total = progress.num_steps;
        });
        let wanted = active.previews.filter(|previews| {
            made > 0
                && progress.step < progress.num_steps
                && progress.step % previews.every.max(1) == 0
        });
        if let (Some(previews), Some(pipeline)) = (wanted, self.models.get(active.model)) {
            let start = Instant::now();
            match pictures::preview(pipeline, &active.run, previews.kind) {
                Ok(png) => self.shared.publish(id, |status| {
                    status.preview = Some((progress.step, png.into()));
                }),
                // The picture itself does not depend on it.
                Err(outcome) => tracing::warn!(job = %id, "no preview: {outcome:?}"),
            }
            metrics::stage("preview", start.elapsed());
        }
    }

    /// Decodes a run that is done, and records its pictures.
    fn finish(&mut self, id: JobId) {
        self.mark(&[id]);
        let Some(active) = self.active.remove(&id) else {
            return;
        };
        let Some(pipeline) = self.models.get(active.model) else {
            return;
        };
        let _span = tracing::info_span!("finish", job = %id).entered();
        let start = Instant::now();
        let outcome = match pictures::finished(pipeline, &active.run) {
            Ok(pictures) => Outcome::Completed(pictures),
            Err(outcome) => outcome,
        };
        metrics::stage("decode", start.elapsed());
        metrics::memory();
        self.end(id, outcome);
    }
}

/// Tells everybody when the thread is gone.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}
