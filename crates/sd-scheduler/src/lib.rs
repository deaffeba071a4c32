//! How noise is removed: diffusion samplers on Candle, each checked against diffusers.
//!
//! A sample at a [`NoiseLevel`] is `alpha * x0 + sigma * noise` with `alpha^2 + sigma^2 = 1`,
//! whatever the sampler: a network's input never needs scaling. A [`SchedulerConfig`] is a recipe
//! to share; asked for a number of steps, it builds a [`Scheduler`], the state of one run, with its
//! [`Plan`]. The caller owns the loop and the noise:
//!
//! ```
//! use std::num::NonZeroUsize;
//!
//! use candle_core::{Device, Tensor};
//! use sd_config::SchedulerFile;
//! use sd_scheduler::{NoiseSource, Overrides, SeededNoise};
//!
//! // A network that sees a black picture in any noise.
//! let network = |sample: &Tensor, alpha: f64, sigma: f64| (sample + alpha)? / sigma;
//!
//! let file = SchedulerFile::parse(r#"{"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}"#)?;
//! let config = sd_scheduler::from_file(&file, &Overrides::default())?;
//! let mut scheduler = config.build(NonZeroUsize::new(20).unwrap())?;
//!
//! let mut noise = SeededNoise::new(42);
//! let mut sample = Tensor::zeros((1, 4, 8, 8), candle_core::DType::F32, &Device::Cpu)?;
//! sample = (noise.noise(&sample)? * scheduler.plan().init_noise_std())?;
//! for call in 0..scheduler.plan().calls() {
//!     let level = scheduler.plan().levels()[call];
//!     let output = network(&sample, level.alpha, level.sigma)?;
//!     sample = scheduler.step(call, &output, &sample, &mut noise)?.sample;
//! }
//! let mean = sample.mean_all()?.to_scalar::<f32>()?;
//! assert!((mean + 1.0).abs() < 1e-4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cephes;
mod curve;
mod error;
mod exponential;
mod level;
mod noise;
mod plan;
mod prediction;
mod registry;
pub mod rng;
mod run;
mod schedule;
mod scheduler;
mod sigmas;
mod solver;
mod spacing;
mod tensor;
#[cfg(feature = "testing")]
pub mod testing;
mod train;

pub use error::{Error, Result};
pub use level::NoiseLevel;
pub use noise::{NoiseSource, RecordedNoise, SeededNoise};
pub use plan::Plan;
pub use registry::{
    Entry, Setting, SigmaSupport, canonical_name, entry, from_file, from_file_as, label,
};
pub use schedule::SigmaSchedule;
pub use scheduler::{
    Churn, Overrides, Scheduler, SchedulerConfig, SchedulerState, Step, Trajectory,
};
pub use solver::ALL;
