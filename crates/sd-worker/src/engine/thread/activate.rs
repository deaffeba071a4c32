//! From a job on disk to a run in memory.

use std::{error::Error, time::Instant};

use sd_pipeline::{Pipeline, Run};

use super::{Active, Worker, failed};
use crate::{
    engine::{batch::guarded, metrics, shared::Shared},
    jobs::{ErrorCode, Job, JobId},
    store::{self, Checkpoint, Outcome},
};

/// Why a run is not in memory.
enum Obstacle {
    /// This is the job's end.
    Job(Outcome),
    /// It may pass.
    Store(store::Error),
}

impl From<Outcome> for Obstacle {
    fn from(outcome: Outcome) -> Self {
        Self::Job(outcome)
    }
}

impl From<store::Error> for Obstacle {
    fn from(error: store::Error) -> Self {
        if !error.is_damage() {
            return Self::Store(error);
        }
        tracing::error!(error = &error as &dyn Error, "cannot read a job");
        Outcome::unreadable().into()
    }
}

impl Worker {
    /// Loads the first model before a job asks for it.
    pub(super) fn preload(&mut self) {
        let loaded = self.load(0);
        if let Err(Obstacle::Job(Outcome::Failed(error))) = loaded {
            self.shared.board().model_trouble = Some(error.message);
        }
    }

    /// Brings a job's run into memory, `others` staying there. False if that is impossible: the job has failed then, or
    /// is no longer wanted.
    ///
    /// # Errors
    /// The store fails in a way that may pass: the job waits.
    pub(super) fn activate(&mut self, id: JobId, others: &[JobId]) -> store::Result<bool> {
        if self.active.contains_key(&id) {
            return Ok(true);
        }
        match self.bring(id, others) {
            Ok(Some(active)) => {
                self.active.insert(id, active);
                return Ok(true);
            }
            Ok(None) => {}
            Err(Obstacle::Job(outcome)) => self.end(id, outcome),
            Err(Obstacle::Store(error)) => return Err(error),
        }
        Ok(false)
    }

    /// The run of a job, made or read. None if it is no longer wanted.
    fn bring(&mut self, id: JobId, others: &[JobId]) -> Result<Option<Active>, Obstacle> {
        let Shared {
            store, attempts, ..
        } = &*self.shared;
        let Some(job) = store.job(id)? else {
            self.shared.forget(id);
            return Ok(None);
        };
        if !attempts.begin(id, &**store)? {
            self.shared.unschedule(id);
            return Ok(None);
        }
        self.shared.begin(id);
        // Loading and starting may kill the worker, too.
        self.mark(&[id]);
        self.make_room(others);
        let Some(model) = self.shared.model(&job.model) else {
            return Err(failed(ErrorCode::Internal, "its model is gone").into());
        };
        self.load(model)?;
        self.start(&job, model).map(Some)
    }

    /// Brings runs that are not in use to disk when there are too many, first the one that was used least recently.
    fn make_room(&mut self, others: &[JobId]) {
        let mut idle: Vec<_> = self
            .active
            .iter()
            .filter(|(id, _)| !others.contains(id))
            .map(|(id, active)| (active.used, *id))
            .collect();
        idle.sort();
        for (_, id) in idle {
            if self.active.len() < self.max_active {
                return;
            }
            if let Err(error) = self.save(&[id]) {
                return self.shared.store_failed("a checkpoint", &error);
            }
            if self.active.get(&id).is_some_and(Active::is_saved) {
                self.active.remove(&id);
            }
        }
    }

    /// Loads a model, after unloading others as the budget demands.
    fn load(&mut self, model: usize) -> Result<(), Obstacle> {
        if self.models.get(model).is_some() {
            return Ok(());
        }
        while let Some(surplus) = self.models.surplus(model) {
            let runs: Vec<_> = self
                .active
                .iter()
                .filter(|(_, active)| active.model == surplus)
                .map(|(id, _)| *id)
                .collect();
            self.save(&runs)?;
            self.active.retain(|_, active| active.model != surplus);
            self.models.unload(surplus);
        }
        let loaded = guarded(|| self.models.load(model));
        let mut board = self.shared.board();
        if loaded.is_ok() && model == 0 {
            board.model_trouble = None;
        }
        for (index, sha256) in board.loaded.iter_mut().enumerate() {
            let hashed = self.models.get(index).map(Pipeline::weights_sha256);
            *sha256 = hashed.and_then(Result::ok).map(str::to_owned);
        }
        loaded.map_err(|_| {
            let name = self.models.name(model);
            let message = format!("model {name} cannot be loaded; the log says why");
            failed(ErrorCode::ModelUnavailable, message).into()
        })
    }

    fn start(&mut self, job: &Job, model: usize) -> Result<Active, Obstacle> {
        let id = job.id;
        let begin = Instant::now();
        let Some(pipeline) = self.models.touch(model) else {
            return Err(failed(ErrorCode::Internal, "the model is gone").into());
        };
        let _span = tracing::info_span!("start", job = %id).entered();
        let checkpoint = match self.shared.store.last_checkpoint(id) {
            Err(error) if error.is_damage() => {
                let error: &dyn Error = &error;
                tracing::warn!(error, "starts again, its checkpoint cannot be read");
                None
            }
            checkpoint => checkpoint?,
        };
        let resumed = checkpoint.and_then(|checkpoint| resumed(pipeline, &checkpoint));
        let (run, calls, step) = match resumed {
            Some(resumed) => resumed,
            None => {
                let Some(request) = self.shared.store.request(id)? else {
                    return Err(failed(ErrorCode::Internal, "its request is gone").into());
                };
                (guarded(|| pipeline.start(&request))?, 0, 0)
            }
        };
        if let Some(task) = self.shared.board().schedule.get_mut(id) {
            task.calls = calls;
        }
        for cut in run.truncated() {
            tracing::debug!("the prompt is too long, the model does not see its end: {cut}");
        }
        metrics::stage("start", begin.elapsed());
        let memory = guarded(|| pipeline.predict_memory(run.job()))?;
        Ok(Active {
            bytes: memory.run.saturating_add(memory.unet),
            run,
            model,
            previews: job.previews,
            calls,
            step,
            total: job.total,
            saved: (calls, Instant::now()),
            used: Instant::now(),
        })
    }
}

/// The run of a checkpoint, its calls and its steps. None if it does not fit the model, which may be another one now: then
/// the job starts again.
fn resumed(pipeline: &Pipeline, checkpoint: &Checkpoint) -> Option<(Run, usize, usize)> {
    match guarded(|| pipeline.resume(&checkpoint.snapshot)) {
        Ok(run) => Some((run, checkpoint.calls, checkpoint.step)),
        Err(outcome) => {
            let job = checkpoint.id;
            tracing::warn!(%job, "starts again, its checkpoint is of no use: {outcome:?}");
            None
        }
    }
}
