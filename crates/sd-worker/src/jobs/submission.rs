//! What a client hands in.

use std::collections::BTreeMap;

pub use sd_pipeline::PreviewKind;
use sd_pipeline::Request;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A job as a client asks for it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What kind of job the client calls it.
    pub operation: Operation,
    /// The model's name, one of [`Engine::models`](crate::engine::Engine::models).
    pub model: String,
    /// What to draw. It is resolved when it is accepted, so a job is the same picture from then on.
    pub request: Request,
    /// Who asks. Clients share the worker fairly; idempotency keys are each client's own.
    pub client: String,
    /// -100 to 100. Jobs of a higher priority go first, whoever asks for them.
    pub priority: i32,
    /// When the pictures are no longer wanted.
    pub deadline: Option<OffsetDateTime>,
    /// Where to send the finished job, if webhooks are configured.
    pub callback_url: Option<String>,
    /// Whether and how to show pictures on the way.
    pub previews: Option<Previews>,
    /// Makes a repeated submission the same job.
    pub idempotency: Option<Idempotency>,
    /// What the client wants to find on the job again, such as its own names for it.
    pub labels: BTreeMap<String, String>,
}

/// What kind of job it is to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// From text.
    ImageGeneration,
    /// From text and a picture.
    ImageTransform,
    /// From text, a picture and a mask.
    ImageInpaint,
}

impl Operation {
    /// Its name in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageGeneration => "image_generation",
            Self::ImageTransform => "image_transform",
            Self::ImageInpaint => "image_inpaint",
        }
    }
}

/// Pictures of a job on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previews {
    /// Steps from one to the next, at least 1.
    pub every: usize,
    /// How they are made.
    pub kind: PreviewKind,
}

/// A client's own name for a submission, which makes sending it twice harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's name for it.
    pub key: String,
    /// SHA-256 of what was sent, to tell a repetition from another submission under the same key.
    pub body_sha256: [u8; 32],
}
