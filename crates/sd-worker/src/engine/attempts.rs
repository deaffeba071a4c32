//! What the store is told of this life of the worker: whose attempt counts, and who is worked on at this moment.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    jobs::JobId,
    store::{self, JobStore},
};

/// Nothing more is recorded once an orderly end has taken it back: whatever then ends the process is no death.
#[derive(Default)]
pub(super) struct Attempts(Mutex<State>);

#[derive(Default)]
struct State {
    over: bool,
    /// The jobs whose attempt is counted, also those whose runs are on disk again.
    begun: HashSet<JobId>,
}

impl Attempts {
    /// Counts an attempt at a job, once. False if there is no more to be done for it.
    pub(super) fn begin(&self, id: JobId, store: &dyn JobStore) -> store::Result<bool> {
        let mut state = self.state();
        if state.over || state.begun.contains(&id) {
            return Ok(!state.over);
        }
        let begun = store.begin(id, super::now())?;
        if begun {
            state.begun.insert(id);
        }
        Ok(begun)
    }

    /// Says who is to blame if the worker dies.
    pub(super) fn mark(&self, jobs: &[(JobId, usize)], store: &dyn JobStore) -> store::Result<()> {
        let state = self.state();
        if state.over {
            return Ok(());
        }
        store.mark(jobs)
    }

    /// Forgets the jobs that have come to their end.
    pub(super) fn retain(&self, unfinished: impl Fn(JobId) -> bool) {
        self.state().begun.retain(|id| unfinished(*id));
    }

    /// Takes back what has not come to its end.
    pub(super) fn release(&self, store: &dyn JobStore) -> store::Result<()> {
        let mut state = self.state();
        state.over = true;
        let begun: Vec<_> = state.begun.drain().collect();
        store.release(&begun)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
