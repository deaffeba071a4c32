//! What a Stable Diffusion model is, as plain data.
//!
//! A model in the layout of diffusers is a folder of JSON files and weights. This crate turns the
//! JSON files into structs whose fields carry the names of the JSON keys, fills missing keys with
//! the defaults of the diffusers or transformers class that reads them, and refuses whatever the
//! networks cannot build, before any weight is touched. It does no input or output: a caller passes
//! the text of the files.
//!
//! ```
//! use sd_config::{ModelConfig, Version};
//!
//! let config = ModelConfig::preset(Version::Xl);
//! assert_eq!((config.defaults.width, config.defaults.height), (1024, 1024));
//! assert_eq!(config.vae.scaling_factor, 0.13025);
//! let down = config.unet.down_blocks();
//! let depths: Vec<_> = down.iter().map(|block| block.attention.map(|a| a.depth)).collect();
//! assert_eq!(depths, [None, Some(2), Some(10)]);
//! ```

mod blocks;
mod check;
mod clip;
mod detect;
mod error;
pub mod files;
mod fit;
mod index;
mod json;
mod model;
mod preset;
mod schedule;
mod tiny_vae;
mod unet;
mod vae;
mod version;

pub use blocks::{BlockAttention, UnetBlock};
pub use clip::{Activation, ClipConfig};
pub use error::{Error, Result};
pub use index::{ModelIndex, RunDefaults};
pub use model::{Defaults, MAX_SIDE, ModelConfig, TextEncoderConfig};
pub use schedule::{BetaSchedule, PredictionType, SchedulerFile, TimestepSpacing};
pub use tiny_vae::TinyVaeConfig;
pub use unet::{
    AdditionEmbedType, ClassEmbedType, DownBlockType, MidBlockType, PerBlock, UnetConfig,
    UpBlockType,
};
pub use vae::{DecoderBlockType, EncoderBlockType, LatentRgb, VaeConfig};
pub use version::Version;
