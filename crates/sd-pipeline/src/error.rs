//! Everything that can go wrong between a request and its pictures.

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a request has a value this model cannot work with.
    #[error("{field}: got {value}, expected {expected}")]
    Field {
        /// The request's field.
        field: &'static str,
        /// What was asked for.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// A field of a request's JSON is unknown or has the wrong type.
    #[error("{field}: cannot be read")]
    FieldJson {
        /// The JSON key.
        field: String,
        /// What was found and expected.
        #[source]
        source: serde_json::Error,
    },
    /// A request's JSON is not an object, or has no prompt.
    #[error("the request is not a JSON object with a prompt")]
    RequestJson(#[source] serde_json::Error),
    /// A picture of a request is damaged, too large or of an unknown format, or cannot be brought to size.
    #[error("{field}: the picture cannot be used")]
    Picture {
        /// The request's field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: sd_image::Error,
    },
    /// The prompts of a run are too long, or change too often, to keep all encoded.
    #[error(
        "the prompts: {texts} texts of {windows} windows of 75 tokens each are too many, expected at most {limit} windows in all"
    )]
    PromptTooLong {
        /// Different texts of the run's steps, as far as they were read.
        texts: usize,
        /// Windows of each.
        windows: usize,
        /// Most windows in all.
        limit: usize,
    },
    /// A request, or a model, would take more memory than [`PipelineBuilder::max_memory`](crate::PipelineBuilder::max_memory)
    /// allows.
    #[error("{} of memory are needed, the limit is {}: {advice}", size(*.needed), size(*.limit))]
    Memory {
        /// Bytes, with tiles where the request allows them.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
        /// What would fit.
        advice: String,
    },
    /// The model does something else than turning text into images.
    #[error("this model cannot turn text alone into images: {reason}")]
    NotTextToImage {
        /// What is different about it.
        reason: &'static str,
    },
    /// A model's files are wrong or missing, or one of its networks failed.
    #[error(transparent)]
    Model(#[from] sd_models::Error),
    /// The scheduler refused its configuration or a call.
    #[error(transparent)]
    Scheduler(#[from] sd_scheduler::Error),
    /// A tensor operation failed: on a device, most often for want of memory.
    #[error("{doing} failed")]
    Tensor {
        /// What was being computed.
        doing: &'static str,
        /// The device's reason.
        #[source]
        source: candle_core::Error,
    },
    /// A run met another pipeline than the one that started or resumed it, or that one is gone.
    #[error("the run belongs to another pipeline")]
    OtherPipeline,
    /// A snapshot is of a run with other weights.
    #[error("the snapshot is of a run with weights {expected}, this pipeline has {found}")]
    OtherWeights {
        /// Fingerprint of the weights the run was started with.
        expected: String,
        /// Fingerprint of the pipeline's weights.
        found: String,
    },
    /// Runs that cannot share a UNet call were advanced together.
    #[error("runs advanced together must agree in their {what}, got {first:?} and {other:?}")]
    Batch {
        /// What differs, `latents` or `text`.
        what: &'static str,
        /// Shape for one picture of the first run.
        first: Vec<usize>,
        /// The differing shape.
        other: Vec<usize>,
    },
    /// The pictures of a run were asked for before its last UNet call.
    #[error("the run is at UNet call {call} of {num_calls}, there is no picture yet")]
    Unfinished {
        /// Calls made.
        call: usize,
        /// Calls needed.
        num_calls: usize,
    },
    /// The pictures have values that are infinite or not numbers.
    #[error(
        "the model computed values that are not finite: its weights are damaged, or too large for their dtype"
    )]
    NotFinite,
    /// A preview by a tiny decoder was asked for.
    #[error(
        "this pipeline has no tiny decoder: load one (PipelineBuilder::tiny_vae), or take a linear preview"
    )]
    NoTinyVae,
    /// A tensor is no batch of pictures.
    #[error("pictures are [batch, 3, height, width], got {found:?}")]
    NotImages {
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// A tensor is not the latents of the request's pictures.
    #[error("latents are {found:?}, expected {expected}")]
    NotLatents {
        /// The tensor's shape.
        found: Vec<usize>,
        /// The shape they need.
        expected: String,
    },
    /// The observer of [`Pipeline::generate`](crate::Pipeline::generate) stopped the run.
    #[error("stopped after UNet call {call}")]
    Stopped {
        /// Calls made.
        call: usize,
    },
    /// A snapshot is not a whole safetensors file.
    #[error("the snapshot is not a whole safetensors file: {reason}")]
    SnapshotFile {
        /// What is wrong with it.
        reason: String,
    },
    /// A run cannot be written as a safetensors file.
    #[error("the snapshot cannot be written")]
    SnapshotWrite(#[source] safetensors::SafeTensorError),
    /// A snapshot's description of the run cannot be read.
    #[error("the snapshot's description of its run cannot be read")]
    SnapshotJson(#[from] serde_json::Error),
    /// A part of a snapshot is missing or does not fit the rest.
    #[error("snapshot: {part} is missing or wrong, expected {expected}")]
    SnapshotPart {
        /// Which part.
        part: String,
        /// What it has to be.
        expected: String,
    },
}

/// Bytes as a person reads them.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    if mib < 10 << 10 {
        format!("{mib} MiB")
    } else {
        format!("{:.1} GiB", mib as f64 / 1024.)
    }
}

/// Names what was being computed when a tensor operation failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for candle_core::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| Error::Tensor { doing, source })
    }
}
