//! What is known of the unfinished jobs at this moment.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Stats, metrics, schedule::Schedule};
use crate::jobs::{Job, JobId};

/// What is assumed of a job's time before the first is done.
const SECONDS_PER_JOB: f64 = 5.0;
/// Weight of the latest value in a smoothed one.
const SMOOTHING: f64 = 0.2;

/// What changes. The lock is held for bookkeeping only, never while a model or a disk works.
pub(super) struct Board {
    pub(super) schedule: Schedule,
    pub(super) live: HashMap<JobId, Live>,
    /// Places taken by submissions on their way to disk.
    pub(super) reserved: usize,
    pub(super) closing: bool,
    /// Why nothing can be recorded, if so.
    pub(super) store_trouble: Option<&'static str>,
    /// Why the first model is not there, if so.
    pub(super) model_trouble: Option<String>,
    /// By model: the SHA-256 of its weights while it is loaded.
    pub(super) loaded: Vec<Option<String>>,
    pub(super) stats: Stats,
    last_end: Option<Instant>,
    pub(super) seconds_per_job: f64,
}

/// An unfinished job.
pub(super) struct Live {
    pub(super) status: watch::Sender<Status>,
    pub(super) deadline: Option<OffsetDateTime>,
    pub(super) accepted: Instant,
}

/// What listeners see of a job: the present alone, as the past follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Status {
    /// Jobs before it, while it waits.
    pub(super) position: Option<usize>,
    pub(super) step: usize,
    pub(super) total: usize,
    /// The latest, and the step it shows.
    pub(super) preview: Option<(usize, Arc<[u8]>)>,
    /// The job, once it is at its end.
    pub(super) end: Option<Arc<Job>>,
}

impl Board {
    pub(super) fn new(max_queue: usize, models: usize) -> Self {
        Self {
            schedule: Schedule::default(),
            live: HashMap::new(),
            reserved: 0,
            closing: false,
            store_trouble: None,
            model_trouble: Some("model loading".into()),
            loaded: vec![None; models],
            stats: Stats {
                max_queue,
                ..Stats::default()
            },
            last_end: None,
            seconds_per_job: SECONDS_PER_JOB,
        }
    }

    /// The jobs whose deadline has passed, and the time to the next one.
    pub(super) fn overdue(&self, now: OffsetDateTime) -> (Vec<JobId>, Option<Duration>) {
        let (mut overdue, mut next) = (vec![], None);
        for (id, live) in &self.live {
            match live.deadline.map(|deadline| deadline - now) {
                Some(left) if !left.is_positive() => overdue.push(*id),
                Some(left) => {
                    let left = left.unsigned_abs();
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                }
                None => {}
            }
        }
        (overdue, next)
    }

    /// Records a UNet call.
    pub(super) fn called(&mut self, jobs: usize, took: Duration) {
        let stats = &mut self.stats;
        let seconds = took.as_secs_f64();
        stats.seconds_per_call = match stats.calls {
            0 => seconds,
            _ => smoothed(stats.seconds_per_call, seconds),
        };
        stats.calls += 1;
        stats.batch = jobs;
        stats.max_batch_seen = stats.max_batch_seen.max(jobs);
    }

    pub(super) fn completed(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last_end.replace(now) {
            let seconds = (now - last).as_secs_f64();
            self.seconds_per_job = smoothed(self.seconds_per_job, seconds);
        }
        if self.live.is_empty() {
            // The time until somebody comes is none of a job's.
            self.last_end = None;
        }
    }

    pub(super) fn publish_positions(&mut self) {
        let waiting = self.schedule.waiting();
        metrics::queue(
            waiting.len(),
            self.live.len() - waiting.len().min(self.live.len()),
        );
        let positions: HashMap<_, _> = waiting
            .into_iter()
            .enumerate()
            .map(|(position, id)| (id, position))
            .collect();
        for (id, live) in &self.live {
            let position = positions.get(id).copied();
            live.status.send_if_modified(|status| {
                let changed = status.position != position;
                status.position = position;
                changed
            });
        }
    }
}

fn smoothed(before: f64, latest: f64) -> f64 {
    before + SMOOTHING * (latest - before)
}
