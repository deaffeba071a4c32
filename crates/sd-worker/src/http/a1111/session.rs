//! What each client has set and is waiting for: the web UI's endpoints ask without naming a job.
//!
//! Lives in memory and ends with the worker, as the web UI's does.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::options::Overrides;
use crate::{http::Client, jobs::JobId};

/// Names of finished tasks that are remembered for a client, as many as in the web UI.
const MAX_FINISHED: usize = 16;

/// All clients. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<Arc<str>, Session>>>);

#[derive(Default)]
struct Session {
    options: Overrides,
    /// In the order of their submission.
    tasks: Vec<Task>,
    finished: VecDeque<String>,
}

/// A request that is waiting for its pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub job: JobId,
    /// The client's name for it, `force_task_id`.
    pub name: Option<String>,
}

/// Ends a task when it is dropped.
pub(super) struct TaskGuard {
    sessions: Sessions,
    client: Arc<str>,
    job: JobId,
}

impl Sessions {
    /// What the client has set.
    pub(super) fn options(&self, client: &Client) -> Overrides {
        let sessions = self.lock();
        sessions
            .get(&client.0)
            .map(|session| session.options.clone())
            .unwrap_or_default()
    }

    /// Sets options for the client's later requests; those that `options` lacks stay.
    pub(super) fn set(&self, client: &Client, options: Overrides) {
        let mut sessions = self.lock();
        let session = sessions.entry(Arc::clone(&client.0)).or_default();
        session.options = options.or(&session.options);
    }

    /// Lists a task until the guard is dropped.
    pub(super) fn begin(&self, client: &Client, task: Task) -> TaskGuard {
        let job = task.job;
        let mut sessions = self.lock();
        let session = sessions.entry(Arc::clone(&client.0)).or_default();
        session.tasks.push(task);
        TaskGuard {
            sessions: self.clone(),
            client: Arc::clone(&client.0),
            job,
        }
    }

    /// The client's tasks, oldest first.
    pub(super) fn tasks(&self, client: &Client) -> Vec<Task> {
        let sessions = self.lock();
        sessions
            .get(&client.0)
            .map(|session| session.tasks.clone())
            .unwrap_or_default()
    }

    /// Whether a task of this name has come to its end.
    pub(super) fn has_finished(&self, client: &Client, name: &str) -> bool {
        let sessions = self.lock();
        sessions
            .get(&client.0)
            .is_some_and(|session| session.finished.iter().any(|finished| finished == name))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Session>> {
        // Every change is complete at once, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock();
        let Some(session) = sessions.get_mut(&self.client) else {
            return;
        };
        let Some(index) = session.tasks.iter().position(|task| task.job == self.job) else {
            return;
        };
        if let Some(name) = session.tasks.remove(index).name {
            session.finished.push_back(name);
            if session.finished.len() > MAX_FINISHED {
                session.finished.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Client {
        Client(name.into())
    }

    fn task(name: &str) -> Task {
        Task {
            job: JobId::new(),
            name: Some(name.into()),
        }
    }

    #[test]
    fn a_task_is_listed_until_its_guard_is_dropped() {
        let sessions = Sessions::default();
        let (alice, bob) = (client("alice"), client("bob"));
        let first = task("one");
        let guard = sessions.begin(&alice, first.clone());
        let second = sessions.begin(&alice, task("two"));
        assert_eq!(sessions.tasks(&alice)[0], first);
        assert_eq!(sessions.tasks(&bob), []);
        assert!(!sessions.has_finished(&alice, "one"));
        drop(guard);
        assert_eq!(sessions.tasks(&alice).len(), 1);
        assert!(sessions.has_finished(&alice, "one"));
        assert!(!sessions.has_finished(&bob, "one"));
        drop(second);
        for number in 0..MAX_FINISHED {
            drop(sessions.begin(&alice, task(&number.to_string())));
        }
        assert!(!sessions.has_finished(&alice, "two"));
        assert!(sessions.has_finished(&alice, "0"));
    }

    #[test]
    fn options_are_each_clients_own() {
        let sessions = Sessions::default();
        let options = Overrides {
            model: Some("m".into()),
            clip_skip: None,
        };
        sessions.set(&client("alice"), options.clone());
        sessions.set(&client("alice"), Overrides::default());
        assert_eq!(sessions.options(&client("alice")), options);
        assert_eq!(sessions.options(&client("bob")), Overrides::default());
    }
}
