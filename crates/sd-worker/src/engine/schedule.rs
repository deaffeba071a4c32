//! Whose turn it is: pure bookkeeping, without models and clocks.
//!
//! - A job that may have killed the worker runs alone, before all others, until it is past the call where that happened.
//! - Otherwise the jobs of the highest priority that is waiting go first.
//! - Among these, clients take turns (stride scheduling; Waldspurger 1995): each has a `pass`, the work done for it, and
//!   the client with the least leads. A client that comes back starts where the others are, not at zero.
//! - A client leads for [`TURN`] calls, so that runs are not brought to disk and back at every call when there are more
//!   clients than places in memory.
//! - A client's own jobs go by age, except that each gives way after [`SLICE`] calls to those that came meanwhile.
//! - What the leader leaves free in a call is filled with jobs that can share it, by the same rules.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use crate::jobs::JobId;

/// Calls for which a client leads.
pub(super) const TURN: u64 = 4;
/// Calls after which a job gives way to younger ones of its client.
pub(super) const SLICE: u64 = 64;

/// Jobs that may share a UNet call: the same model and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Index of the model.
    pub(super) model: usize,
    /// In pixels.
    pub(super) height: usize,
    /// In pixels.
    pub(super) width: usize,
}

/// An unfinished job.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) client: String,
    pub(super) priority: i32,
    pub(super) group: Group,
    /// Pictures, 1 or more.
    pub(super) pictures: usize,
    /// UNet calls made.
    pub(super) calls: usize,
    /// Whether work on it ever began.
    pub(super) started: bool,
    /// The call at which the worker died with it, if it is not past that.
    pub(super) suspect: Option<usize>,
}

impl Task {
    /// What one UNet call costs, in latent pixels.
    fn cost(&self) -> u64 {
        let Group { height, width, .. } = self.group;
        (self.pictures * (height / 8).max(1) * (width / 8).max(1)) as u64
    }
}

#[derive(Debug)]
struct Entry {
    task: Task,
    /// Calls made for its client before it came.
    arrival: u64,
    /// Calls made for it since it came.
    served: u64,
}

impl Entry {
    /// Place among its client's jobs.
    fn rank(&self) -> u64 {
        self.arrival + self.served / SLICE * SLICE
    }
}

#[derive(Debug, Default)]
struct Client {
    /// Work done for it.
    pass: u64,
    /// Calls made for it.
    calls: u64,
    /// Jobs it has here.
    tasks: usize,
}

/// The unfinished jobs.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    tasks: BTreeMap<JobId, Entry>,
    clients: HashMap<String, Client>,
    /// The pass at which a client that comes (back) starts: that of the last leader.
    floor: u64,
    /// The client that leads, and for how many more calls.
    turn: Option<(String, u64)>,
}

impl Schedule {
    pub(super) fn contains(&self, id: JobId) -> bool {
        self.tasks.contains_key(&id)
    }

    pub(super) fn get(&self, id: JobId) -> Option<&Task> {
        self.tasks.get(&id).map(|entry| &entry.task)
    }

    pub(super) fn get_mut(&mut self, id: JobId) -> Option<&mut Task> {
        self.tasks.get_mut(&id).map(|entry| &mut entry.task)
    }

    pub(super) fn push(&mut self, id: JobId, task: Task) {
        let client = self.clients.entry(task.client.clone()).or_default();
        client.pass = client.pass.max(self.floor);
        client.tasks += 1;
        let entry = Entry {
            arrival: client.calls,
            served: 0,
            task,
        };
        self.tasks.insert(id, entry);
    }

    pub(super) fn remove(&mut self, id: JobId) -> Option<Task> {
        let task = self.tasks.remove(&id)?.task;
        if let Some(client) = self.clients.get_mut(&task.client) {
            client.tasks -= 1;
        }
        // Who has had more than the others is remembered until they have caught up.
        let floor = self.floor;
        self.clients
            .retain(|_, client| client.tasks > 0 || client.pass > floor);
        if self.tasks.is_empty() {
            *self = Self::default();
        }
        Some(task)
    }

    /// The jobs of the next UNet call, the leader first: no more than `max_pictures`, unless the leader alone has more.
    /// If jobs of equal right have models that are `ready`, no other is loaded for now.
    pub(super) fn pick(&self, max_pictures: usize, ready: impl Fn(usize) -> bool) -> Vec<JobId> {
        let suspect = |entry: &&Entry| entry.task.suspect.is_some();
        if let Some((id, _)) = self.tasks.iter().find(|(_, entry)| suspect(entry)) {
            return vec![*id];
        }
        let Some(priority) = self.tasks.values().map(|entry| entry.task.priority).max() else {
            return vec![];
        };
        let first = |entry: &Entry| entry.task.priority == priority;
        let any_ready = self
            .tasks
            .values()
            .any(|entry| first(entry) && ready(entry.task.group.model));
        let mut candidates: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, entry)| first(entry) && (!any_ready || ready(entry.task.group.model)))
            .map(|(id, entry)| (*id, entry))
            .collect();

        let mut passes: HashMap<&str, u64> = HashMap::new();
        let mut picked = vec![];
        let mut free = max_pictures;
        let mut lead = self.turn.as_ref().map(|(client, _)| client.as_str());
        loop {
            let pass = |client: &str| passes.get(client).copied().unwrap_or(self.pass(client));
            let best = candidates.iter().min_by_key(|(id, entry)| {
                let client = entry.task.client.as_str();
                (lead != Some(client), pass(client), entry.rank(), *id)
            });
            let Some(&(id, entry)) = best else {
                return picked;
            };
            let task = &entry.task;
            lead = None;
            free = free.saturating_sub(task.pictures);
            *passes
                .entry(&task.client)
                .or_insert(self.pass(&task.client)) += task.cost();
            picked.push(id);
            candidates.retain(|(other, entry)| {
                *other != id && entry.task.group == task.group && entry.task.pictures <= free
            });
        }
    }

    fn pass(&self, client: &str) -> u64 {
        self.clients.get(client).map_or(0, |client| client.pass)
    }

    /// Records that `leader` led a UNet call.
    pub(super) fn lead(&mut self, leader: JobId) {
        let Some(entry) = self.tasks.get(&leader) else {
            return;
        };
        let client = entry.task.client.clone();
        self.floor = self.floor.max(self.pass(&client));
        let left = match self.turn.take() {
            Some((last, left)) if last == client => left,
            _ => TURN,
        };
        self.turn = (left > 1).then_some((client, left - 1));
    }

    /// Records a UNet call made for a job, `calls` in all.
    pub(super) fn charge(&mut self, id: JobId, calls: usize) {
        let Some(entry) = self.tasks.get_mut(&id) else {
            return;
        };
        entry.task.calls = calls;
        entry.served += 1;
        let cost = entry.task.cost();
        if let Some(client) = self.clients.get_mut(&entry.task.client) {
            client.pass = client.pass.saturating_add(cost);
            client.calls += 1;
        }
    }

    /// The jobs that work has not begun on, in the order in which it is likely to.
    pub(super) fn waiting(&self) -> Vec<JobId> {
        let mut waiting: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, entry)| !entry.task.started)
            .collect();
        waiting.sort_by_key(|(id, entry)| (Reverse(entry.task.priority), entry.rank(), **id));
        // The nth job of a client comes after the nth-1 of all others.
        let mut turns: HashMap<(i32, &str), usize> = HashMap::new();
        let mut ordered: Vec<_> = waiting
            .into_iter()
            .map(|(id, entry)| {
                let task = &entry.task;
                let turn = turns.entry((task.priority, &task.client)).or_default();
                *turn += 1;
                let place = (Reverse(task.priority), *turn, self.pass(&task.client), *id);
                (place, *id)
            })
            .collect();
        ordered.sort();
        ordered.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Group = Group {
        model: 0,
        height: 64,
        width: 64,
    };

    fn task(client: &str, priority: i32) -> Task {
        Task {
            client: client.into(),
            priority,
            group: SMALL,
            pictures: 1,
            calls: 0,
            started: false,
            suspect: None,
        }
    }

    fn add(schedule: &mut Schedule, task: Task) -> JobId {
        let id = JobId::new();
        schedule.push(id, task);
        id
    }

    /// Makes one call and returns who was in it.
    fn call(schedule: &mut Schedule, max_pictures: usize) -> Vec<JobId> {
        let picked = schedule.pick(max_pictures, |_| true);
        schedule.lead(picked[0]);
        for id in &picked {
            let calls = schedule.get(*id).unwrap().calls;
            schedule.charge(*id, calls + 1);
        }
        picked
    }

    /// Calls until `id` is in one.
    fn wait(schedule: &mut Schedule, id: JobId) -> usize {
        (0..).find(|_| call(schedule, 1).contains(&id)).unwrap()
    }

    #[test]
    fn higher_priorities_go_first_and_then_the_oldest() {
        let mut schedule = Schedule::default();
        let low = add(&mut schedule, task("a", -1));
        let first = add(&mut schedule, task("b", 5));
        let second = add(&mut schedule, task("b", 5));
        for expected in [first, second, low] {
            assert_eq!(call(&mut schedule, 1), [expected]);
            schedule.remove(expected);
        }
        assert_eq!(schedule.pick(1, |_| true), []);
    }

    #[test]
    fn a_hundred_jobs_of_one_client_delay_anothers_by_one_turn() {
        let mut schedule = Schedule::default();
        for _ in 0..100 {
            add(&mut schedule, task("many", 0));
        }
        for made in 0..50 {
            for _ in 0..made {
                call(&mut schedule, 1);
            }
            let single = add(&mut schedule, task("one", 0));
            let waited = wait(&mut schedule, single);
            assert!(waited <= TURN as usize, "{waited} calls after {made}");
            // It then has its turns, one for each of the other's.
            let shared = (0..20 * TURN)
                .filter(|_| call(&mut schedule, 1) == [single])
                .count();
            assert!((36..=44).contains(&shared), "{shared} of 80");
            schedule.remove(single);
        }
    }

    #[test]
    fn a_client_that_went_away_does_not_come_back_with_a_credit() {
        let mut schedule = Schedule::default();
        let long = add(&mut schedule, task("stays", 0));
        for _ in 0..1000 {
            call(&mut schedule, 1);
        }
        for _ in 0..3 {
            add(&mut schedule, task("comes", 0));
        }
        assert!(
            (0..100)
                .filter(|_| call(&mut schedule, 1) == [long])
                .count()
                >= 40
        );
    }

    #[test]
    fn large_pictures_count_for_more() {
        let mut schedule = Schedule::default();
        let large = Group {
            height: 128,
            width: 128,
            ..SMALL
        };
        let large = add(
            &mut schedule,
            Task {
                group: large,
                ..task("large", 0)
            },
        );
        add(&mut schedule, task("small", 0));
        let led = (0..200)
            .filter(|_| call(&mut schedule, 1) == [large])
            .count();
        assert!((36..=44).contains(&led), "{led} of 200, expected a fifth");
    }

    #[test]
    fn a_long_job_gives_way_to_short_ones_of_the_same_client_and_is_not_starved_by_them() {
        let mut schedule = Schedule::default();
        let long = add(&mut schedule, task("a", 0));
        for _ in 0..10 {
            call(&mut schedule, 1);
        }
        let short = add(&mut schedule, task("a", 0));
        assert!(wait(&mut schedule, short) <= SLICE as usize);
        schedule.remove(short);
        let mut led = 0;
        for _ in 0..200 {
            let short = add(&mut schedule, task("a", 0));
            for _ in 0..4 {
                led += usize::from(call(&mut schedule, 1) == [long]);
            }
            schedule.remove(short);
        }
        assert!(led >= 200, "{led} of 800");
    }

    #[test]
    fn a_call_is_shared_by_what_fits_and_fairly() {
        let mut schedule = Schedule::default();
        let many: Vec<_> = (0..5)
            .map(|_| add(&mut schedule, task("many", 0)))
            .collect();
        let pair = add(
            &mut schedule,
            Task {
                pictures: 2,
                ..task("pair", 0)
            },
        );
        add(
            &mut schedule,
            Task {
                group: Group {
                    width: 128,
                    ..SMALL
                },
                ..task("wide", 0)
            },
        );
        let low = add(&mut schedule, task("low", -1));
        let picked = schedule.pick(4, |_| true);
        assert_eq!(picked.len(), 3);
        assert_eq!(picked[0], many[0]);
        assert_eq!(picked[1], pair);
        assert_eq!(picked[2], many[1]);
        assert!(!schedule.pick(100, |_| true).contains(&low));
        // A job larger than a call still runs, alone.
        let huge = Task {
            pictures: 9,
            ..task("huge", 9)
        };
        let huge = add(&mut schedule, huge);
        assert_eq!(schedule.pick(4, |_| true), [huge]);
    }

    #[test]
    fn suspects_run_alone_and_first() {
        let mut schedule = Schedule::default();
        add(&mut schedule, task("a", 100));
        let suspects: Vec<_> = (0..2)
            .map(|_| {
                let suspect = Task {
                    suspect: Some(3),
                    ..task("a", -100)
                };
                add(&mut schedule, suspect)
            })
            .collect();
        assert_eq!(schedule.pick(4, |_| true), suspects[..1]);
        schedule.get_mut(suspects[0]).unwrap().suspect = None;
        assert_eq!(schedule.pick(4, |_| true), suspects[1..]);
    }

    #[test]
    fn a_loaded_model_is_used_first_but_not_before_a_higher_priority() {
        let mut schedule = Schedule::default();
        let of_model = |model, priority| Task {
            group: Group { model, ..SMALL },
            ..task("a", priority)
        };
        add(&mut schedule, of_model(1, 0));
        let loaded = add(&mut schedule, of_model(0, 0));
        assert_eq!(schedule.pick(4, |model| model == 0), [loaded]);
        let urgent = add(&mut schedule, of_model(1, 1));
        assert_eq!(schedule.pick(4, |model| model == 0), [urgent]);
    }

    #[test]
    fn places_in_the_queue_follow_priorities_and_turns() {
        let mut schedule = Schedule::default();
        let a: Vec<_> = (0..3).map(|_| add(&mut schedule, task("a", 0))).collect();
        let b = add(&mut schedule, task("b", 0));
        let urgent = add(&mut schedule, task("b", 1));
        assert_eq!(schedule.waiting(), [urgent, a[0], b, a[1], a[2]]);
        schedule.get_mut(a[0]).unwrap().started = true;
        assert_eq!(schedule.waiting(), [urgent, a[1], b, a[2]]);
    }
}
