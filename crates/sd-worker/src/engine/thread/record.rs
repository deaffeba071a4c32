//! What the thread tells the store: how far jobs are, who is worked on, and how jobs end.

use std::time::Instant;

use super::Worker;
use crate::{
    engine::{batch, metrics, now, shared::Shared},
    jobs::JobId,
    store::{self, Checkpoint, Outcome},
};

impl Worker {
    /// Brings those jobs of a call to disk for which it is time.
    pub(super) fn checkpoint(&mut self, jobs: &[JobId]) {
        let due: Vec<_> = jobs
            .iter()
            .copied()
            .filter(|id| {
                let suspect = self.is_suspect(*id);
                self.active.get(id).is_some_and(|active| {
                    let (calls, at) = active.saved;
                    suspect
                        || active.calls >= calls.saturating_add(self.checkpoints.calls.max(1))
                        || at.elapsed() >= self.checkpoints.interval
                })
            })
            .collect();
        if due.is_empty() {
            return;
        }
        if let Err(error) = self.save(&due) {
            self.shared.store_failed("a checkpoint", &error);
            return;
        }
        // Who is past the call at which the worker died is no longer suspected.
        let mut board = self.shared.board();
        for id in due {
            if let Some(task) = board.schedule.get_mut(id)
                && task.suspect.is_some_and(|died_at| task.calls > died_at)
            {
                task.suspect = None;
            }
        }
    }

    fn is_suspect(&self, id: JobId) -> bool {
        let board = self.shared.board();
        board
            .schedule
            .get(id)
            .is_some_and(|task| task.suspect.is_some())
    }

    /// Brings runs to disk.
    pub(super) fn save(&mut self, jobs: &[JobId]) -> store::Result<()> {
        let start = Instant::now();
        let mut checkpoints = vec![];
        for id in jobs {
            let Some(active) = self.active.get(id) else {
                continue;
            };
            let snapshot = batch::guarded(|| {
                #[cfg(test)]
                batch::tests::panic_on_snapshot(&active.run);
                active.run.snapshot()
            });
            match snapshot {
                Ok(snapshot) => checkpoints.push(Checkpoint {
                    id: *id,
                    calls: active.calls,
                    step: active.step,
                    total: active.total,
                    snapshot,
                }),
                // It can go on without, and starts at its last one if it must.
                Err(outcome) => tracing::warn!(job = %id, "no checkpoint: {outcome:?}"),
            }
        }
        self.shared.store.checkpoint(&checkpoints)?;
        for Checkpoint { id, calls, .. } in &checkpoints {
            if let Some(active) = self.active.get_mut(id) {
                active.saved = (*calls, Instant::now());
            }
        }
        metrics::stage("checkpoint", start.elapsed());
        Ok(())
    }

    /// Ends a job, now or when the store works again.
    pub(super) fn end(&mut self, id: JobId, outcome: Outcome) {
        self.active.remove(&id);
        if let Err(error) = self.shared.finish(id, outcome.clone()) {
            self.shared.store_failed("the end of a job", &error);
            self.shared.unschedule(id);
            if !error.is_damage() {
                self.unsaved.push((id, outcome));
            }
        }
    }

    /// Says what is worked on at this moment: who is to blame if the worker dies.
    pub(super) fn mark(&self, jobs: &[JobId]) {
        let calls = |id: &JobId| self.active.get(id).map_or(0, |active| active.calls);
        let marks: Vec<_> = jobs.iter().map(|id| (*id, calls(id))).collect();
        let Shared {
            attempts, store, ..
        } = &*self.shared;
        if let Err(error) = attempts.mark(&marks, &**store) {
            self.shared.store_failed("what is worked on", &error);
        }
    }

    pub(super) fn sweep(&mut self) {
        self.swept = Some(Instant::now());
        metrics::memory();
        let shared = &self.shared;
        shared
            .attempts
            .retain(|id| shared.board().schedule.contains(id));
        let unsaved = std::mem::take(&mut self.unsaved);
        for (id, outcome) in unsaved {
            self.end(id, outcome);
        }
        let expired = self.shared.store.expire(&self.retention, now());
        match &expired {
            Ok(expired) if expired.is_empty() => {}
            Ok(expired) => tracing::info!(jobs = expired.len(), "expired jobs removed"),
            Err(error) => self.shared.store_failed("expired jobs", error),
        }
        // The trouble is over when all that waited has been written, and what is written now, too.
        let in_trouble = self.shared.board().store_trouble.is_some();
        if in_trouble && self.unsaved.is_empty() && expired.is_ok() {
            match self.shared.store.probe() {
                Ok(()) => self.shared.board().store_trouble = None,
                Err(error) => self.shared.store_failed("anything", &error),
            }
        }
    }
}
