//! The orderly end.

use super::Worker;
use crate::jobs::JobId;

impl Worker {
    /// Brings everything to disk. What fails here is found again at the next start, as after a crash.
    pub(super) fn stop(&mut self) {
        for (id, outcome) in std::mem::take(&mut self.unsaved) {
            if let Err(error) = self.shared.finish(id, outcome) {
                self.shared.store_failed("the end of a job", &error);
            }
        }
        let jobs: Vec<JobId> = self.active.keys().copied().collect();
        if let Err(error) = self.save(&jobs) {
            self.shared.store_failed("a checkpoint", &error);
        }
        self.shared.take_back();
        tracing::info!(jobs = jobs.len(), "running jobs brought to disk");
    }
}
