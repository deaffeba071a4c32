//! Signed callbacks about finished jobs.

use std::sync::Arc;

use crate::jobs::Job;

/// Whether and how finished jobs are sent to the URL in their submission.
#[derive(Clone)]
pub struct WebhookConfig {
    /// Key of the signature.
    pub secret: Vec<u8>,
    /// Whether to allow plain HTTP.
    pub allow_http: bool,
    /// Whether to allow addresses that are not public: loopback, private networks and the like.
    pub allow_private: bool,
    /// The JSON body for a job.
    pub body: Arc<dyn Fn(&Job) -> Vec<u8> + Send + Sync>,
}
