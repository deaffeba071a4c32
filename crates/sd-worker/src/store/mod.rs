//! Where jobs are kept.

mod error;

pub use error::{Error, Result};

use std::time::Duration;

/// How long finished jobs are kept, with their pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Since they finished.
    pub max_age: Duration,
    /// Bytes of pictures; the oldest jobs go first.
    pub max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(7 * 24 * 60 * 60),
            max_bytes: 4 << 30,
        }
    }
}

/// Durable jobs.
pub trait JobStore: Send + Sync {}
