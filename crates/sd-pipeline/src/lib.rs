//! Stable Diffusion on [Candle](candle_core), with the numbers of diffusers: the same weights, request and seed give the
//! same latents and the same picture. Text-to-image, image-to-image, inpainting, the hand-over to a refiner and a second
//! pass at a larger size.
//!
//! A [`Pipeline`] is a loaded model. A [`Request`] says what to draw and becomes a complete [`Job`]; a [`Run`] is one
//! generation, which its caller advances one UNet call at a time. [`Pipeline::generate`] does it all at once:
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use sd_pipeline::{Pipeline, Request, builtin_model};
//!
//! let pipeline = Pipeline::builder(builtin_model()).build()?;
//! let request = Request {
//!     num_inference_steps: Some(2),
//!     seed: Some(42),
//!     ..Request::new("a red circle on a white background")
//! };
//! let made = pipeline.generate(&request, |progress| {
//!     println!("step {} of {}", progress.step, progress.num_steps);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(made.images[0].dimensions(), (128, 128));
//! # Ok::<(), sd_pipeline::Error>(())
//! ```
//!
//! Latents are variance-preserving f32 inside; what the API shows is scaled as diffusers shows it.

mod batch;
mod conditioning;
mod error;
mod guidance;
mod hires;
mod image;
mod init;
mod inpaint;
mod interpolate;
mod job;
mod latent_rgb;
mod memory;
mod metadata;
mod pass;
mod pipeline;
mod preview;
mod prompt;
mod request;
mod resolver;
mod run;
mod scheduler;
mod snapshot;
mod source;
mod text;
mod timeline;
mod variation;

pub use crate::image::to_rgb;
pub use ::image::RgbImage;
pub use candle_core::{DType, Device, Tensor};
pub use conditioning::{Branch, Conditions};
pub use error::{Error, Result};
pub use job::Job;
pub use latent_rgb::LatentRgbFit;
pub use memory::MemoryEstimate;
pub use pipeline::{Images, Pipeline, PipelineBuilder};
pub use preview::PreviewKind;
pub use prompt::PromptWeighting;
pub use request::{Hires, MaskPolarity, Request, SeedMode, Upscaler};
pub use resolver::Resolver;
pub use run::{Progress, Run};
pub use sd_config::{LatentRgb, ModelConfig, Version};
pub use sd_image::{Picture, ResizeMode};
pub use sd_models::{LoadOptions, ModelMemory, ModelSource, nn::AttentionSlice, text::Piece};

/// The small model inside this crate, which draws shapes at 128x128 pixels and needs no download.
#[cfg(feature = "builtin")]
pub fn builtin_model() -> ModelSource {
    ModelSource::Embedded(sd_models::EmbeddedModel {
        name: "builtin",
        files: sd_demo_model::FILES,
    })
}
