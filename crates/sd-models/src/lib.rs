//! Stable Diffusion's networks on [Candle](candle_core): CLIP text encoder, UNet and autoencoder,
//! their tokenizer, and where their weights come from.
//!
//! Numbers equal those of `diffusers` and `transformers` to f32 rounding. Weights stay in the dtype
//! they were asked for; on the CPU all activations are f32.
//!
//! ```no_run
//! use sd_models::{LoadOptions, ModelSource, load};
//!
//! let model = load(&"models/sd15".parse::<ModelSource>()?, &LoadOptions::default())?;
//! let conditioning = model.text.encode(&["a rusty robot"], None)?;
//! assert_eq!(conditioning.hidden.dims(), [1, 77, 768]);
//! # Ok::<(), sd_models::Error>(())
//! ```

mod error;
mod hashes;
mod load;
mod memory;
mod model;
mod sha256;
mod source;
mod weights;

pub mod nn;
pub mod text;
pub mod unet;
pub mod vae;

pub use error::{Component, Error, Result};
pub use hashes::FileHashes;
pub use load::{LoadOptions, config, load, load_tiny_decoder};
pub use memory::ModelMemory;
pub use model::Model;
pub use source::{DownloadProgress, EmbeddedModel, ModelSource, ProgressFn};
#[cfg(feature = "hub")]
pub use source::{HubError, HubOptions, Token};
pub use weights::{LoadReport, Mismatch, Weights, safetensors_header};
