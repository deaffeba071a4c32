//! Everything that can go wrong in this crate.

use std::path::PathBuf;

use crate::LoadReport;

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A network of a model, and the folder its weights lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    /// The CLIP text encoder of v1 and v2, and the first one of XL.
    TextEncoder,
    /// The second text encoder of XL.
    TextEncoder2,
    /// The noise predictor.
    Unet,
    /// The autoencoder between pixels and latents.
    Vae,
    /// The small decoder of previews, which is no part of a model.
    TinyVae,
}

impl Component {
    /// The component's folder in the diffusers layout; a name in messages for the one that has none.
    pub fn folder(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::Unet => "unet",
            Self::Vae => "vae",
            Self::TinyVae => "tiny_vae",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.folder())
    }
}

/// What can go wrong while a model is found, loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration file does not describe a model this crate can build.
    #[error("{model}: the configuration cannot be used")]
    Config {
        /// The folder, repository or built-in model.
        model: String,
        /// The file and what is wrong in it.
        #[source]
        source: Box<sd_config::Error>,
    },

    /// A file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },

    /// The model has no such file.
    #[error("{model}: no {expected}{hint}")]
    MissingFile {
        /// The folder, repository or built-in model that was searched.
        model: String,
        /// The file, or the files any one of which would do.
        expected: String,
        /// What to do about it; empty, or starts with `: `.
        hint: &'static str,
    },

    /// The model's weights exist only as Python pickles.
    #[error(
        "{model}: {file} is a Python pickle, which can run any code when it is opened: \
         convert it to safetensors (diffusers: save_pretrained(.., safe_serialization=True))"
    )]
    Pickle {
        /// The folder or repository.
        model: String,
        /// The refused file.
        file: String,
    },

    /// A file of weights is not what its name says.
    #[error("{component}: {file} is not a valid safetensors file: {reason}")]
    Corrupt {
        /// The network it belongs to.
        component: Component,
        /// The file.
        file: String,
        /// The rule it breaks.
        reason: String,
    },

    /// A file holds the weights of something else.
    #[error("{component}: {} is of another network: it has no tensor `{tensor}`", path.display())]
    OtherNetwork {
        /// The network it was taken for.
        component: Component,
        /// The file or its folder.
        path: PathBuf,
        /// A tensor that the network has in any size.
        tensor: &'static str,
    },

    /// A tiny decoder is made for the latents of another family of models.
    #[error(
        "{}: it decodes latents of {} channels to {} pixels each way, the model has latents of {} to {}",
        path.display(), .found.0, .found.1, .expected.0, .expected.1
    )]
    OtherLatents {
        /// The decoder's file or folder.
        path: PathBuf,
        /// Channels of its latents, and pixels that one of them becomes, each way.
        found: (usize, usize),
        /// Those of the model.
        expected: (usize, usize),
    },

    /// Weights are missing, or of another shape or type than the configuration asks for.
    #[error("{0}")]
    Tensors(Box<LoadReport>),

    /// The tokenizer's files do not make a tokenizer.
    #[error("{folder}: {reason}")]
    Tokenizer {
        /// The tokenizer's folder.
        folder: String,
        /// What is wrong in it.
        reason: String,
    },

    /// A network was called with something it cannot take.
    #[error("{component}: {what} is {found}, expected {expected}")]
    Input {
        /// The network.
        component: Component,
        /// The argument.
        what: &'static str,
        /// What it was.
        found: String,
        /// What it may be.
        expected: String,
    },

    /// The configuration asks for a network this crate does not build.
    #[error("{component}: {what} is not supported")]
    Unsupported {
        /// The network.
        component: Component,
        /// The feature.
        what: String,
    },

    /// A tensor operation failed: out of memory, or the device is lost.
    #[error("{component}: a tensor operation failed")]
    Candle {
        /// The network that was built or run.
        component: Component,
        /// The operation and why.
        #[source]
        source: candle_core::Error,
    },

    /// Weights cannot be kept in this type.
    #[error("weights cannot be kept as {0:?}, expected F32, F16 or BF16")]
    Dtype(candle_core::DType),

    /// A variant was named in a way that no file is.
    #[error("`{0}` is not the name of a variant, such as fp16")]
    Variant(String),

    /// A model was named in a way that means neither a folder nor a repository.
    #[error(
        "`{0}` is neither an existing folder nor a repository id (org/name or org/name@revision)"
    )]
    Source(String),

    /// The model has to be fetched from a hub, which this build or these options leave out.
    #[error("{repo}: cannot be fetched: {reason}")]
    HubUnavailable {
        /// The repository.
        repo: String,
        /// What is left out.
        reason: &'static str,
    },

    /// A hub did not deliver.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::HubError),
}

impl Error {
    /// Names the component in which a tensor operation failed:
    /// `.map_err(Error::candle(Component::Unet))`.
    pub(crate) fn candle(component: Component) -> impl Fn(candle_core::Error) -> Self {
        move |source| Self::Candle { component, source }
    }
}
