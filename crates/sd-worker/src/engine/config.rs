//! What the engine is told, and what it tells of itself.

use std::{sync::Arc, time::Duration};

use sd_pipeline::{ModelConfig, PipelineBuilder};

use crate::{store::Retention, webhook::WebhookConfig};

/// How the engine works.
pub struct EngineConfig {
    /// The models, one or more. The first is loaded at once, the others when a job needs them.
    pub models: Vec<ModelEntry>,
    /// Bytes for weights and the runs of a call. The model in use and one run have their place in any case, unless the
    /// model's own limit ([`PipelineBuilder::max_memory`]) refuses them. None: no limit.
    pub model_memory: Option<u64>,
    /// Jobs that may be queued or running.
    pub max_queue: usize,
    /// Pictures in one UNet call. A job with more than that runs alone.
    pub max_batch: usize,
    /// Jobs whose latents are in memory at once; others wait on disk. At least `max_batch`.
    pub max_active: usize,
    /// When running jobs are brought to disk.
    pub checkpoints: Checkpoints,
    /// How long finished jobs are kept.
    pub retention: Retention,
    /// How long a stop waits for what is under way.
    pub stop_limit: Duration,
    /// Signed callbacks; None: a submission with a callback is refused.
    pub webhooks: Option<WebhookConfig>,
}

/// A model that jobs may ask for.
pub struct ModelEntry {
    /// What jobs and listings call it.
    pub name: String,
    /// Where it is and how to load it.
    pub builder: PipelineBuilder,
}

/// When a running job is brought to disk: whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// UNet calls since the last time.
    pub calls: usize,
    /// Time since the last time.
    pub interval: Duration,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self {
            calls: 10,
            interval: Duration::from_secs(5),
        }
    }
}

impl EngineConfig {
    /// The defaults, for these models.
    pub fn new(models: Vec<ModelEntry>) -> Self {
        Self {
            models,
            model_memory: None,
            max_queue: 256,
            max_batch: 4,
            max_active: 16,
            checkpoints: Checkpoints::default(),
            retention: Retention::default(),
            stop_limit: Duration::from_secs(10),
            webhooks: None,
        }
    }
}

/// A model as a client sees it.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Whether it is in memory.
    pub loaded: bool,
    /// What it is: its version, its defaults.
    pub config: Arc<ModelConfig>,
    /// SHA-256 of the UNet's weights, once they have been read.
    pub sha256: Option<String>,
}

/// Whether the engine works on jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether it does.
    pub ready: bool,
    /// Why it does not.
    pub reason: Option<String>,
}

/// Numbers about the engine.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs that work has begun on.
    pub running: usize,
    /// Jobs that may be queued or running.
    pub max_queue: usize,
    /// UNet calls made since the start.
    pub calls: u64,
    /// Steps made since the start, summed over jobs.
    pub steps: u64,
    /// Jobs in the last UNet call.
    pub batch: usize,
    /// Largest number of jobs in a UNet call since the start.
    pub max_batch_seen: usize,
    /// Time of a UNet call, smoothed, in seconds.
    pub seconds_per_call: f64,
}
