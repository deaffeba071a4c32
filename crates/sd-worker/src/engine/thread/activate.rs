//! From a job on disk to a run in memory.

use std::time::Instant;

use sd_pipeline::{Pipeline, Run};

use super::{Active, Worker, failed};
use crate::{
    engine::{batch::guarded, metrics, now},
    jobs::{ErrorCode, Job, JobId},
    store::{self, Outcome},
};

impl Worker {
    /// Loads the first model before a job asks for it.
    pub(super) fn preload(&mut self) {
        let loaded = self.load(0);
        if let Err(Outcome::Failed(error)) = loaded {
            self.shared.board().model_trouble = Some(error.message);
        }
    }

    /// Brings a job's run into memory, `others` staying there. False if that is impossible: the job has failed then, or
    /// is no longer wanted, or waits for the store.
    pub(super) fn activate(&mut self, id: JobId, others: &[JobId]) -> bool {
        if self.active.contains_key(&id) {
            return true;
        }
        let job = match self.shared.store.job(id) {
            Ok(Some(job)) => job,
            Ok(None) => return self.shared.forget(id),
            Err(error) => return self.wait_for_store(&error),
        };
        match self.begin(id) {
            Ok(true) => {}
            Ok(false) => return self.shared.forget(id),
            Err(error) => return self.wait_for_store(&error),
        }
        self.shared.begin(id);
        // Loading and starting may kill the worker, too.
        self.mark(&[id]);
        self.make_room(others);
        let Some(model) = self.shared.model(&job.model) else {
            return false;
        };
        let started = self.load(model).and_then(|()| self.start(&job, model));
        match started {
            Ok(active) => {
                self.active.insert(id, active);
                true
            }
            Err(outcome) => {
                self.end(id, outcome);
                false
            }
        }
    }

    /// Counts the attempt, once in this process's life.
    fn begin(&mut self, id: JobId) -> store::Result<bool> {
        if self.begun.contains(&id) {
            return Ok(true);
        }
        let begun = self.shared.store.begin(id, now())?;
        if begun {
            self.begun.insert(id);
        }
        Ok(begun)
    }

    fn wait_for_store(&self, error: &store::Error) -> bool {
        self.store_failed("the begin of a job", error);
        std::thread::sleep(super::STORE_RETRY);
        false
    }

    /// Brings the run that was used least recently to disk when there are too many.
    fn make_room(&mut self, others: &[JobId]) {
        while self.active.len() >= self.max_active {
            let idle = self.active.iter().filter(|(id, _)| !others.contains(id));
            let Some(id) = idle
                .min_by_key(|(_, active)| active.used)
                .map(|(id, _)| *id)
            else {
                return;
            };
            if let Err(error) = self.save(&[id]) {
                return self.store_failed("a checkpoint", &error);
            }
            self.active.remove(&id);
        }
    }

    /// Loads a model, after unloading others as the budget demands.
    fn load(&mut self, model: usize) -> Result<(), Outcome> {
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
            if let Err(error) = self.save(&runs) {
                // They start again from the checkpoint before.
                self.store_failed("a checkpoint", &error);
            }
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
            failed(ErrorCode::ModelUnavailable, message)
        })
    }

    fn start(&mut self, job: &Job, model: usize) -> Result<Active, Outcome> {
        let id = job.id;
        let begin = Instant::now();
        let Some(pipeline) = self.models.touch(model) else {
            return Err(failed(ErrorCode::Internal, "the model is gone"));
        };
        let _span = tracing::info_span!("start", job = %id).entered();
        let unreadable = |error: store::Error| {
            tracing::error!("cannot read the job: {error}");
            failed(ErrorCode::Internal, "its record cannot be read")
        };
        let snapshot = self.shared.store.snapshot(id).map_err(unreadable)?;
        let resumed = snapshot.and_then(|snapshot| resumed(pipeline, &snapshot, id));
        let (run, calls, step) = match resumed {
            Some(run) => {
                let board = self.shared.board();
                let calls = board.schedule.get(id).map_or(0, |task| task.calls);
                (run, calls, job.step)
            }
            None => {
                let request = self.shared.store.request(id).map_err(unreadable)?;
                let Some(request) = request else {
                    return Err(failed(ErrorCode::Internal, "its request is gone"));
                };
                (guarded(|| pipeline.start(&request))?, 0, 0)
            }
        };
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

/// The run of a checkpoint. None if it does not fit the model, which may be another one now: then the job starts again.
fn resumed(pipeline: &Pipeline, snapshot: &[u8], id: JobId) -> Option<Run> {
    match guarded(|| pipeline.resume(snapshot)) {
        Ok(run) => Some(run),
        Err(outcome) => {
            tracing::warn!(job = %id, "starts again, its checkpoint is of no use: {outcome:?}");
            None
        }
    }
}
