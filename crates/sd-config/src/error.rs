//! The one error type of the crate.

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the description of a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that the model needs is absent.
    #[error("{file}: not found")]
    Missing {
        /// Path of the file inside the model's folder.
        file: String,
    },
    /// A file is not JSON, or not a JSON object.
    #[error("{file}: not a JSON object")]
    Json {
        /// Path of the file inside the model's folder.
        file: String,
        /// What the JSON parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A value of the wrong type, out of range, at odds with another one, or that the networks
    /// cannot build.
    #[error("{file}: `{key}` is {value}: {expected}")]
    Value {
        /// Path of the file inside the model's folder.
        file: String,
        /// The JSON key.
        key: String,
        /// The value as JSON, shortened when long.
        value: String,
        /// What was expected instead.
        expected: String,
    },
    /// The folder holds another kind of model.
    #[error("model_index.json: {pipeline} {found}: expected a Stable Diffusion 1, 2 or XL model")]
    Kind {
        /// The pipeline's class.
        pipeline: String,
        /// What it has, or lacks.
        found: String,
    },
    /// A name that is none of [`Version::ALL`](crate::Version::ALL).
    #[error(
        "unknown version `{name}`: expected one of {}",
        crate::Version::ALL.map(|version| version.name()).join(", ")
    )]
    Version {
        /// The name as given.
        name: String,
    },
    /// A picture size that the model cannot make.
    #[error("{axis} is {value}: expected a multiple of {factor} from {factor} to {max}")]
    Size {
        /// `width` or `height`.
        axis: &'static str,
        /// The size as given, in pixels.
        value: usize,
        /// Pixels that a latent pixel stands for.
        factor: usize,
        /// The largest size, in pixels.
        max: usize,
    },
}
