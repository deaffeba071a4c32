//! What a run starts from.
//!
//! Random numbers are drawn in diffusers' order: for the original's latents where those are used, the initial noise, for
//! the masked original's latents. With one generator for all pictures the original is encoded once for all of them; with
//! one each, once for each, as diffusers does when the picture is given to it as often.

use candle_core::{DType, Device, Tensor};
use sd_models::vae::Posterior;
use sd_scheduler::{NoiseSource, SeededNoise};

use crate::{
    Job, Pipeline, Result, SeedMode, error::Doing, inpaint::Inpaint, pass::Pass, source::Source,
    variation,
};

/// Latents at the level of a pass's first call, f32, and what keeps the rest of a picture.
pub(crate) struct Start {
    pub(crate) latents: Tensor,
    pub(crate) inpaint: Option<Inpaint>,
}

/// Draws a run's beginning from its fresh generators.
pub(crate) fn start(
    pipeline: &Pipeline,
    job: &Job,
    pass: &Pass,
    device: &Device,
    noise: &mut SeededNoise,
) -> Result<Start> {
    let shape = pipeline.latent_shape(job);
    let Some(source) = Source::new(job)? else {
        return Ok(Start {
            latents: pure_noise(&initial_noise(shape, job, device, noise)?, pass)?,
            inpaint: None,
        });
    };
    let image = source.image(device)?;
    let mask = source.mask(device)?;
    let blends = mask.is_some() && !pipeline.takes_mask();
    // As in diffusers only inpainting, and only at exactly this strength.
    let from_noise = mask.is_some() && job.strength == Some(1.0);

    let original = if blends || !from_noise {
        let posterior = pipeline.encode(job, &image)?;
        Some(sample(&posterior, job, noise)?)
    } else {
        None
    };
    let fresh = initial_noise(shape, job, device, noise)?;
    let latents = match &original {
        Some(original) if !from_noise => pass.plan().noised(pass.first, original, &fresh)?,
        _ => pure_noise(&fresh, pass)?,
    };
    let inpaint = match (mask, original) {
        (None, _) => None,
        (Some(mask), Some(original)) if blends => {
            // Not used, but diffusers draws it, and the scheduler's own noise comes after it.
            original
                .narrow(0, 0, draws(job, 1))
                .and_then(|like| noise.noise(&like))
                .doing("drawing the masked picture's latents")?;
            Some(Inpaint::blending(original, fresh, &mask)?)
        }
        (Some(mask), _) => {
            let kept = masked(&image, &mask).doing("masking the picture")?;
            let posterior = pipeline.encode(job, &kept)?;
            Some(Inpaint::channels(sample(&posterior, job, noise)?, &mask)?)
        }
    };
    Ok(Start { latents, inpaint })
}

/// The run's torch generators, which first draw what a run starts from and then, call by call, what a stochastic
/// scheduler asks for.
pub(crate) fn noise(job: &Job) -> SeededNoise {
    generators(job, |image| job.image_seed(image))
}

/// One generator a picture, or one for all.
pub(crate) fn generators(job: &Job, seed: impl Fn(usize) -> u64) -> SeededNoise {
    let generators = match job.seed_mode {
        SeedMode::PerImage => job.num_images,
        SeedMode::Batch => 1,
    };
    SeededNoise::per_sample(&(0..generators).map(seed).collect::<Vec<_>>())
}

/// Standard normal noise of the latents' shape, bent to the job's variation.
pub(crate) fn initial_noise(
    shape: [usize; 4],
    job: &Job,
    device: &Device,
    noise: &mut SeededNoise,
) -> Result<Tensor> {
    let zeros = Tensor::zeros(&shape, DType::F32, device).doing("drawing the initial noise")?;
    let fresh = noise.noise(&zeros).doing("drawing the initial noise")?;
    variation::bent(fresh, job)
}

/// The latents `[num_images, ..]` of one picture, or of as many as the job's.
pub(crate) fn sample(posterior: &Posterior, job: &Job, noise: &mut SeededNoise) -> Result<Tensor> {
    let given = posterior.mean.dims()[0];
    let draws = draws(job, given);
    let posterior = posterior.repeat(draws / given)?;
    let drawn = noise
        .noise(&posterior.mean)
        .doing("drawing the picture's latents")?;
    posterior
        .sample(&drawn)?
        .repeat((job.num_images / draws, 1, 1, 1))
        .doing("repeating the picture's latents")
}

/// Pictures whose latents are drawn apart, when there are `given` of them.
fn draws(job: &Job, given: usize) -> usize {
    match job.seed_mode {
        SeedMode::PerImage => job.num_images,
        SeedMode::Batch => given,
    }
}

/// Noise for the plan's first level.
fn pure_noise(fresh: &Tensor, pass: &Pass) -> Result<Tensor> {
    (fresh * pass.plan().init_noise_std()).doing("drawing the initial noise")
}

/// A picture -1..1 that is grey where the mask is 1.
fn masked(image: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
    image.broadcast_mul(&mask.affine(-1.0, 1.0)?)
}
