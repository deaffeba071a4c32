//! The command line as data. Spelling is checked here; what a model allows is the library's to say.

mod memory;
mod passes;
mod preview;
mod source;

use std::{
    fmt::Write as _,
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
};

use candle_core::DType;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
pub use memory::MemoryArgs;
pub use passes::{HiresArgs, RefinerArgs};
pub use preview::PreviewArgs;
use sd_config::Version;
use sd_pipeline::{PromptWeighting, SeedMode};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IntoDeserializer, value},
};
pub use source::SourceArgs;

use crate::{
    config::{ByteSize, LogFormat, ModelEntry},
    output::{DumpPath, Output},
};

/// Stable Diffusion from the command line: pictures that match diffusers number for number.
#[derive(Debug, Parser)]
#[command(name = "sd-worker", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make pictures of a prompt
    Generate(Box<GenerateArgs>),
    /// List the known models and those on this machine
    Models,
    /// Serve pictures over HTTP
    Serve(Box<ServeArgs>),
    /// Print the configuration that `serve` would run with, as a file for --config
    Config(Box<ServeArgs>),
}

/// `sd-worker generate`. A value that is not given is the model's own default.
#[derive(Args, Debug)]
#[command(
    disable_version_flag = true,
    allow_negative_numbers = true,
    after_help = "Exit codes: 0 done, 2 wrong usage, 1 anything else.\n\
                  Set RUST_LOG=info (or debug) for a log on standard error."
)]
pub struct GenerateArgs {
    /// What to draw
    pub prompt: String,

    /// What to keep out of the picture
    #[arg(long, short, value_name = "TEXT")]
    pub negative_prompt: Option<String>,

    /// Prompt of the second text encoder, for models that have two [default: PROMPT]
    #[arg(long, value_name = "TEXT")]
    pub prompt_2: Option<String>,

    /// How brackets in prompts are read: as text, or as weights and edits in the manner of a web UI [default: plain]
    #[arg(long, value_name = "MANNER", value_parser = one_of::<PromptWeighting>(&["plain", "a1111", "comfyui"]))]
    pub prompt_weighting: Option<PromptWeighting>,

    /// `builtin`, a folder in diffusers layout, or a Hugging Face id, ORG/NAME or ORG/NAME@REVISION [default: builtin]
    #[arg(long, short, value_name = "MODEL", help_heading = "Model")]
    pub model: Option<String>,

    /// Kind of model: alone, its official repository is used; with --model, what that model must be
    #[arg(long, value_name = "VERSION", help_heading = "Model", value_parser = version_parser())]
    pub version: Option<Version>,

    /// Denoising steps
    #[arg(long, short, value_name = "N", help_heading = "Sampling")]
    pub steps: Option<usize>,

    /// How closely to follow the prompt; 1 or less turns guidance off
    #[arg(long, short, value_name = "SCALE", help_heading = "Sampling")]
    pub guidance_scale: Option<f64>,

    /// Share of the guided prediction rescaled to its unguided spread, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Sampling")]
    pub guidance_rescale: Option<f64>,

    /// Sampler; the help lists those that there are.
    #[arg(long, value_name = "NAME", help_heading = "Sampling", help = scheduler_help(), value_parser = scheduler_name)]
    pub scheduler: Option<String>,

    /// Share of fresh noise in each step of a DDIM-like scheduler, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Sampling")]
    pub eta: Option<f64>,

    /// Last layers of the text encoder to leave out
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub clip_skip: Option<usize>,

    /// Start of the noise, torch's CPU generator; drawn and printed when not given
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<u64>,

    /// Whether each picture has its own seed (SEED, SEED + 1, ...) or all are drawn from one
    #[arg(long, value_name = "MODE", help_heading = "Sampling", value_parser = one_of::<SeedMode>(&["per-image", "batch"]))]
    pub seed_mode: Option<SeedMode>,

    /// How far the noise is bent towards that of another seed, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Sampling")]
    pub variation_strength: Option<f64>,

    /// The other seed; drawn when not given
    #[arg(
        long,
        value_name = "N",
        help_heading = "Sampling",
        requires = "variation_strength"
    )]
    pub variation_seed: Option<u64>,

    /// Width in pixels, a multiple of 8
    #[arg(long, short = 'W', value_name = "N", help_heading = "Picture")]
    pub width: Option<usize>,

    /// Height in pixels, a multiple of 8
    #[arg(long, short = 'H', value_name = "N", help_heading = "Picture")]
    pub height: Option<usize>,

    /// Pictures to make
    #[arg(long, value_name = "N", help_heading = "Picture")]
    pub num_images: Option<usize>,

    /// What to start from.
    #[command(flatten)]
    pub source: SourceArgs,

    /// The enlarged second pass.
    #[command(flatten)]
    pub hires: HiresArgs,

    /// The hand-over to a refiner.
    #[command(flatten)]
    pub refiner: RefinerArgs,

    /// What is shown on the way.
    #[command(flatten)]
    pub preview: PreviewArgs,

    /// PNG to write, or `-` for standard output; several pictures become NAME-1.png, NAME-2.png, ...
    #[arg(
        long,
        short,
        value_name = "PATH",
        help_heading = "Output",
        default_value = "out.png"
    )]
    pub output: Output,

    /// Write embeddings, latents after each step and the picture to a .safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub dump_tensors: Option<DumpPath>,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(
        long,
        value_name = "DEVICE",
        help_heading = "Machine",
        default_value = "auto"
    )]
    pub device: DeviceArg,

    /// How weights are kept; f16 also prefers a repository's fp16 files
    #[arg(
        long,
        value_name = "DTYPE",
        help_heading = "Machine",
        default_value = "f32"
    )]
    pub dtype: DtypeArg,

    /// How much memory to take.
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// `sd-worker serve`. Every flag is also a key of the TOML file and a variable of the environment.
#[derive(Args, Clone, Debug, Serialize)]
#[command(
    disable_version_flag = true,
    after_help = "A flag comes before its variable, SD_WORKER_*, and that before the file's key of the same name.\n\
                  SIGTERM or SIGINT: running jobs are saved and go on at the next start; a second one ends at once."
)]
#[serde(rename_all = "kebab-case")]
pub struct ServeArgs {
    /// TOML file of these settings, by the flags' names
    #[arg(long, value_name = "FILE", env = "SD_WORKER_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Address and port to listen on [default: 127.0.0.1:7860]
    #[arg(long, value_name = "ADDRESS", env = "SD_WORKER_LISTEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,

    /// Folder of the jobs and their pictures [default: the platform's data folder]
    #[arg(long, value_name = "DIR", env = "SD_WORKER_DATA_DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,

    /// How the service's log is written [default: human]
    #[arg(long, value_name = "FORMAT", env = "SD_WORKER_LOG_FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,

    /// What is logged, in the syntax of RUST_LOG [default: what RUST_LOG says, or else info]
    #[arg(long, value_name = "FILTER", env = "SD_WORKER_LOG")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,

    /// Send spans to the OpenTelemetry collector there, http://localhost:4318 for instance
    #[arg(long, value_name = "URL", env = "SD_WORKER_OTLP_ENDPOINT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,

    /// A model that requests can name: SOURCE is `builtin`, a folder in diffusers layout, or `ORG/NAME[@REVISION]`;
    /// the first is the default one [default: builtin]
    #[arg(
        long = "model",
        short,
        value_name = "[NAME=]SOURCE",
        env = "SD_WORKER_MODEL",
        value_delimiter = ',',
        help_heading = "Models"
    )]
    #[serde(rename = "model", skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelEntry>,

    /// A folder whose sub-folders are models by name
    #[arg(
        long = "model-root",
        value_name = "DIR",
        env = "SD_WORKER_MODEL_ROOT",
        value_delimiter = ',',
        help_heading = "Models"
    )]
    #[serde(rename = "model-root", skip_serializing_if = "Vec::is_empty")]
    pub model_roots: Vec<PathBuf>,

    /// File of API keys, NAME:KEY a line; without one everybody may ask
    #[arg(
        long,
        value_name = "FILE",
        env = "SD_WORKER_API_KEY_FILE",
        help_heading = "Access"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,

    /// Listen beyond loopback without API keys
    #[arg(long, env = "SD_WORKER_INSECURE_NO_AUTH", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Access")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_no_auth: Option<bool>,

    /// A host name to answer under, beside the loopback ones [default: any, if not listening on loopback]
    #[arg(
        long = "allowed-host",
        value_name = "HOST",
        env = "SD_WORKER_ALLOWED_HOST",
        value_delimiter = ',',
        help_heading = "Access"
    )]
    #[serde(rename = "allowed-host", skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,

    /// An origin whose pages may use the worker, or *
    #[arg(
        long = "cors-origin",
        value_name = "ORIGIN",
        env = "SD_WORKER_CORS_ORIGIN",
        value_delimiter = ',',
        help_heading = "Access"
    )]
    #[serde(rename = "cors-origin", skip_serializing_if = "Vec::is_empty")]
    pub cors_origins: Vec<String>,

    /// Call the URLs that jobs name when they end
    #[arg(long, env = "SD_WORKER_CALLBACKS", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Access")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callbacks: Option<bool>,

    /// Let callbacks reach private and loopback addresses
    #[arg(long, env = "SD_WORKER_CALLBACK_PRIVATE_ADDRESSES", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Access")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_private_addresses: Option<bool>,

    /// File of the secret that signs callbacks
    #[arg(
        long,
        value_name = "FILE",
        env = "SD_WORKER_CALLBACK_SECRET_FILE",
        help_heading = "Access"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_secret_file: Option<PathBuf>,

    /// Jobs that may be waiting or running; a further one is refused [default: 256]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_MAX_QUEUE",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<NonZeroUsize>,

    /// Longest request body, such as 64MiB [default: 64MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "SD_WORKER_MAX_BODY",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<ByteSize>,

    /// Most denoising steps that a request may ask for [default: 1000]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_MAX_STEPS",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<NonZeroUsize>,

    /// Most pixels of one picture, given or made [default: 4194304]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_MAX_PIXELS",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<NonZeroU64>,

    /// Most pictures of a job [default: 16]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_MAX_IMAGES",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_images: Option<NonZeroUsize>,

    /// Open connections; further ones wait [default: 1024]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_MAX_CONNECTIONS",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroUsize>,

    /// Time for a request's headers to arrive [default: 10]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SD_WORKER_HEADER_TIMEOUT_SECONDS",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_timeout_seconds: Option<u64>,

    /// Time for a request's body to arrive [default: 60]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SD_WORKER_BODY_TIMEOUT_SECONDS",
        help_heading = "Limits"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_timeout_seconds: Option<u64>,

    /// Steps between two checkpoints of a running job [default: 5]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_CHECKPOINT_STEPS",
        help_heading = "Store"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<NonZeroUsize>,

    /// Seconds after which a running job is checkpointed in any case [default: 5]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SD_WORKER_CHECKPOINT_SECONDS",
        help_heading = "Store"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_seconds: Option<u64>,

    /// Hours that finished jobs and their pictures are kept [default: 24]
    #[arg(
        long,
        value_name = "HOURS",
        env = "SD_WORKER_KEEP_HOURS",
        help_heading = "Store"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hours: Option<u64>,

    /// Bytes of finished jobs' pictures that are kept, such as 10GiB; the oldest go first [default: 10GiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "SD_WORKER_MAX_STORE",
        help_heading = "Store"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_store: Option<ByteSize>,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal [default: auto]
    #[arg(
        long,
        value_name = "DEVICE",
        env = "SD_WORKER_DEVICE",
        help_heading = "Machine"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceArg>,

    /// How weights are kept; f16 also prefers a repository's fp16 files [default: f32]
    #[arg(
        long,
        value_name = "DTYPE",
        env = "SD_WORKER_DTYPE",
        help_heading = "Machine"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DtypeArg>,

    /// Pictures in one UNet call [default: 4]
    #[arg(
        long,
        value_name = "N",
        env = "SD_WORKER_MAX_BATCH",
        help_heading = "Machine"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<NonZeroUsize>,

    /// Memory for models and jobs, such as 8GiB [default: what the machine has, on the CPU]
    #[arg(
        long,
        value_name = "SIZE",
        env = "SD_WORKER_MAX_MEMORY",
        help_heading = "Machine"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<ByteSize>,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeArg {
    /// 32-bit floats, as the reference computes
    F32,
    /// 16-bit floats: half the memory; on the CPU computes as f32
    F16,
    /// Brain floats: half the memory, and much faster on a CPU with AMX or AVX-512 BF16; pictures differ slightly
    Bf16,
}

impl From<DtypeArg> for DType {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::BF16,
        }
    }
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceArg {
    /// The first graphics device this build can use, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
    /// Apple's graphics device.
    Metal,
}

impl FromStr for DeviceArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or("expected auto, cpu, cuda, cuda:N or metal"),
        }
    }
}

impl TryFrom<String> for DeviceArg {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceArg> for String {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Auto => "auto".to_owned(),
            DeviceArg::Cpu => "cpu".to_owned(),
            DeviceArg::Cuda(index) => format!("cuda:{index}"),
            DeviceArg::Metal => "metal".to_owned(),
        }
    }
}

/// Reads one of `names`, spelled with dashes, as the JSON name of a `T`.
fn one_of<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    names: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|name| -> Result<T, value::Error> {
        T::deserialize(name.replace('-', "_").into_deserializer())
    })
}

fn version_parser() -> impl TypedValueParser<Value = Version> {
    PossibleValuesParser::new(Version::ALL.map(Version::name))
        .try_map(|name| name.parse::<Version>())
}

fn scheduler_name(name: &str) -> sd_scheduler::Result<String> {
    sd_scheduler::entry(name)?;
    Ok(name.to_owned())
}

fn scheduler_help() -> String {
    let mut help =
        "Sampler, by short name or diffusers class, set up from the model's own [default: the model's]:"
            .to_owned();
    let width = sd_scheduler::ALL
        .iter()
        .map(|entry| entry.name.len())
        .max()
        .unwrap_or(0);
    for entry in sd_scheduler::ALL {
        // Writing to a String cannot fail.
        let _ = write!(help, "\n  {:width$}  {}", entry.name, entry.class);
    }
    help
}
