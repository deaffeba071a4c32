//! What listeners are told.

use std::{fmt, num::ParseIntError, str::FromStr, sync::Arc};

use super::{Job, JobError};

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It waits.
    Queued {
        /// Jobs that go before it.
        position: usize,
    },
    /// A step is done.
    Progress {
        /// Steps done, 1 to `total`.
        step: usize,
        /// Steps to make.
        total: usize,
    },
    /// How the first picture looks so far.
    Preview {
        /// Steps done.
        step: usize,
        /// Steps to make.
        total: usize,
        /// A PNG file.
        png: Arc<[u8]>,
    },
    /// The pictures are there.
    Complete(Box<Job>),
    /// It failed.
    Error(JobError),
    /// The client no longer wants it.
    Cancelled,
}

/// An event's place in its job: a function of the step, so that a step which is made again after a crash is the same
/// event. Later events have larger ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u64);

impl EventId {
    /// Of [`Event::Queued`].
    pub const QUEUED: Self = Self(0);

    /// Of [`Event::Progress`] at `step`.
    pub fn progress(step: usize) -> Self {
        Self((step as u64).saturating_mul(2))
    }

    /// Of [`Event::Preview`] at `step`, which follows its progress.
    pub fn preview(step: usize) -> Self {
        Self((step as u64).saturating_mul(2).saturating_add(1))
    }

    /// Of the event that ends a job of `total` steps.
    pub fn end(total: usize) -> Self {
        Self::progress(total.saturating_add(1))
    }

    /// The last step that a listener has seen whose last event this is.
    pub(crate) fn step(self) -> usize {
        usize::try_from(self.0 / 2).unwrap_or(usize::MAX)
    }

    /// The step of the preview that it stands for.
    pub(crate) fn preview_step(self) -> Option<usize> {
        (self.0 % 2 == 1).then(|| self.step())
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for EventId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}
