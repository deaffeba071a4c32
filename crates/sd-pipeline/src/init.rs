//! What a run starts from.

use candle_core::{DType, Device, Tensor};
use sd_scheduler::{NoiseSource, Plan, SeededNoise};

use crate::{Job, Result, SeedMode, error::Doing};

/// The run's torch generators, which first draw the initial noise and then, call by call, what a stochastic scheduler
/// asks for.
pub(crate) fn noise(job: &Job) -> SeededNoise {
    let generators = match job.seed_mode {
        SeedMode::PerImage => job.num_images,
        SeedMode::Batch => 1,
    };
    let seeds: Vec<u64> = (0..generators).map(|image| job.image_seed(image)).collect();
    SeededNoise::per_sample(&seeds)
}

/// Pure noise at the plan's first level, f32.
pub(crate) fn latents(
    shape: [usize; 4],
    device: &Device,
    plan: &Plan,
    noise: &mut SeededNoise,
) -> Result<Tensor> {
    Tensor::zeros(&shape, DType::F32, device)
        .and_then(|zeros| noise.noise(&zeros)? * plan.init_noise_std())
        .doing("drawing the initial noise")
}
