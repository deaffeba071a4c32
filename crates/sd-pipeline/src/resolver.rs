//! What a model makes of requests, known before its weights are loaded.

use sd_config::ModelConfig;
use sd_models::ModelMemory;

use crate::{Job, Request, Result, memory};

/// Completes requests as the [`Pipeline`](crate::Pipeline) would that
/// [`PipelineBuilder::build`](crate::PipelineBuilder::build) makes, without its weights.
#[derive(Debug)]
pub struct Resolver {
    pub(crate) config: ModelConfig,
    pub(crate) memory: ModelMemory,
    pub(crate) max_memory: Option<u64>,
}

impl Resolver {
    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// As [`Pipeline::resolve`](crate::Pipeline::resolve).
    ///
    /// # Errors
    /// As [`Request::resolve`]; [`Error::Memory`](crate::Error::Memory).
    pub fn resolve(&self, request: &Request) -> Result<Job> {
        let job = request.resolve(&self.config)?;
        match self.max_memory {
            Some(limit) => memory::within(limit, &self.memory, &self.config, request, job),
            None => Ok(job),
        }
    }
}
