//! What goes wrong, in words for whoever typed the command.

use std::{error::Error as _, io, net::SocketAddr, path::PathBuf};

use sd_config::Version;

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag has a value that the model cannot work with.
    #[error("--{flag}: got {value}, expected {expected}")]
    Flag {
        /// The flag's name.
        flag: String,
        /// What was asked for.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// A picture is damaged, too large or of an unknown format.
    #[error("--{flag}: the picture cannot be used")]
    Picture {
        /// The flag's name.
        flag: &'static str,
        /// What is wrong with it.
        #[source]
        source: sd_image::Error,
    },
    /// The build lacks the asked device.
    #[error(
        "--device {0}: this build cannot use it; build with `--features {0}` or take --device cpu"
    )]
    DeviceNotBuilt(&'static str),
    /// The device exists in the build but not on this machine.
    #[error("--device {name}: cannot be opened; check the driver or take --device cpu")]
    DeviceNotFound {
        /// The device.
        name: String,
        /// What the driver says.
        #[source]
        source: candle_core::Error,
    },
    /// The model is not the kind that was asked for.
    #[error("--version {asked}: model {model} is {found}; leave out --version or --model")]
    Version {
        /// The model, as typed.
        model: String,
        /// `--version`.
        asked: Version,
        /// What the files say.
        found: &'static str,
    },
    /// Several pictures for one pipe.
    #[error(
        "--output -: standard output takes one picture, not {images}; give a file name or --num-images 1"
    )]
    SeveralToStdout {
        /// How many were asked for.
        images: usize,
    },
    /// Previews have no place in a pipe.
    #[error("--preview-every: standard output takes one picture; give --output a file name")]
    PreviewToStdout,
    /// A picture would be shown as text.
    #[error(
        "--output -: standard output is a terminal; redirect it (> out.png) or give a file name"
    )]
    StdoutIsTerminal,
    /// The pipe is closed or full.
    #[error("standard output: cannot write the picture")]
    Stdout {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The target's folder is not there.
    #[error("{}: there is no folder {}; create it first", path.display(), folder.display())]
    NoFolder {
        /// The target.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The target is a folder.
    #[error("{}: is a folder; give the name of a file", path.display())]
    IsFolder {
        /// The target.
        path: PathBuf,
    },
    /// The target cannot be written.
    #[error("{}: cannot be written; give another path", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The configuration file is not TOML, or has an unknown key or a wrong value.
    #[error("{}, line {line}, `{text}`: {problem}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The settings of flags and environment do not make a configuration.
    #[error("the settings cannot be put together")]
    ConfigMerge(#[source] Box<toml::de::Error>),
    /// The settings cannot be written as TOML.
    #[error("the settings cannot be written as TOML")]
    ConfigFlags(#[source] toml::ser::Error),
    /// A setting does not fit the others.
    #[error("--{setting}: {problem}")]
    Setting {
        /// The flag.
        setting: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// What is to be logged is not told in the syntax of `RUST_LOG`.
    #[error("{origin}: `{text}` is no filter, expected such as info or sd_worker=debug")]
    LogFilter {
        /// The flag or variable.
        origin: &'static str,
        /// What it says.
        text: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The service would be open to everybody.
    #[error(
        "--listen {listen}: others could use this worker; give --api-key-file, or --insecure-no-auth to let them"
    )]
    OpenToAll {
        /// The address.
        listen: SocketAddr,
    },
    /// A file of API keys is not one.
    #[error("{}: {problem}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Which line, and what was expected.
        problem: String,
    },
    /// The address cannot be listened on.
    #[error("--listen {listen}: cannot be listened on")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The service's runtime cannot be set up.
    #[error("cannot set up the service")]
    Runtime(#[source] io::Error),
    /// The jobs cannot be kept.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    /// The picture cannot be encoded.
    #[error("cannot encode the picture as PNG")]
    Png(#[from] png::EncodingError),
    /// The tensors cannot be serialised.
    #[error("cannot serialise the tensors")]
    Tensors(#[from] safetensors::SafeTensorError),
    /// The library refused the request or failed at it.
    #[error(transparent)]
    Pipeline(sd_pipeline::Error),
    /// The model cannot be found or loaded.
    #[error(transparent)]
    Models(#[from] sd_models::Error),
}

impl Error {
    /// The exit code: 2 when the command has to be typed differently, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag { .. }
            | Self::DeviceNotBuilt(_)
            | Self::ConfigFile { .. }
            | Self::Setting { .. }
            | Self::LogFilter { .. }
            | Self::OpenToAll { .. }
            | Self::SeveralToStdout { .. }
            | Self::PreviewToStdout
            | Self::Pipeline(sd_pipeline::Error::Memory { .. })
            | Self::StdoutIsTerminal => 2,
            _ => 1,
        }
    }

    /// The error and its causes in one or two lines; a log at level info shows what is cut.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        let lines: Vec<_> = text.lines().collect();
        if lines.len() <= 2 {
            return text;
        }
        tracing::info!("{text}");
        let more = lines.len() - 2;
        format!(
            "{}\n{} (and {more} more, shown with RUST_LOG=info)",
            lines[0], lines[1]
        )
    }
}

impl From<sd_pipeline::Error> for Error {
    /// The library names fields of its request; whoever typed the command knows them as flags.
    fn from(error: sd_pipeline::Error) -> Self {
        match error {
            sd_pipeline::Error::Field {
                field,
                value,
                expected,
            } => {
                let flag = match field {
                    "num_inference_steps" => "steps".to_owned(),
                    "hires.num_inference_steps" => "hires-steps".to_owned(),
                    "mask_image" => "mask".to_owned(),
                    "padding_mask_crop" => "only-masked".to_owned(),
                    "denoising_start" | "denoising_end" => "refiner-start".to_owned(),
                    field => field.replace(['_', '.'], "-"),
                };
                Self::Flag {
                    flag,
                    value,
                    expected,
                }
            }
            error => Self::Pipeline(error),
        }
    }
}
