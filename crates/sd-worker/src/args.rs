//! The command line as data. Spelling is checked here; what a model allows is the library's to say.

use std::{fmt::Write as _, str::FromStr};

use candle_core::DType;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use sd_config::Version;

use crate::output::{DumpPath, Output};

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
    #[arg(long, value_name = "MODE", help_heading = "Sampling")]
    pub seed_mode: Option<SeedMode>,

    /// Width in pixels, a multiple of 8
    #[arg(long, short = 'W', value_name = "N", help_heading = "Picture")]
    pub width: Option<usize>,

    /// Height in pixels, a multiple of 8
    #[arg(long, short = 'H', value_name = "N", help_heading = "Picture")]
    pub height: Option<usize>,

    /// Pictures to make
    #[arg(long, value_name = "N", help_heading = "Picture")]
    pub num_images: Option<usize>,

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
}

/// `--seed-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeedMode {
    /// Picture i is drawn from seed + i
    PerImage,
    /// One generator draws every picture's noise
    Batch,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// 32-bit floats, as the reference computes
    F32,
    /// 16-bit floats
    F16,
    /// Brain floats
    Bf16,
}

impl From<SeedMode> for sd_pipeline::SeedMode {
    fn from(mode: SeedMode) -> Self {
        match mode {
            SeedMode::PerImage => Self::PerImage,
            SeedMode::Batch => Self::Batch,
        }
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
