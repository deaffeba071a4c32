//! One generation: everything it needs beside the weights, between any two UNet calls.

use std::sync::{Arc, Weak};

use candle_core::Tensor;
use image::RgbImage;
use sd_models::Model;
use sd_scheduler::{Scheduler, SeededNoise};

use crate::{
    Conditions, Error, Job, Pipeline, Result,
    error::Doing,
    image::{finite, to_rgb, unit_range},
    init, scheduler, snapshot,
};

/// One generation, started by [`Pipeline::start`]. The caller owns the loop: drop a run to cancel it, look at
/// [`denoised`](Self::denoised) for a preview, keep a [`snapshot`](Self::snapshot) to go on after a crash.
///
/// ```
/// use sd_pipeline::{Pipeline, Request, builtin_model};
///
/// let pipeline = Pipeline::builder(builtin_model()).build()?;
/// let request = Request { num_inference_steps: Some(2), ..Request::new("a red circle on a white background") };
/// let mut run = pipeline.start(&request)?;
/// while let Some(progress) = run.advance(&pipeline)? {
///     println!("step {} of {}", progress.step, progress.num_steps);
/// }
/// let images = run.finish(&pipeline)?;
/// assert_eq!(images[0].dimensions(), (128, 128));
/// # Ok::<(), sd_pipeline::Error>(())
/// ```
#[derive(Debug)]
pub struct Run {
    pub(crate) job: Job,
    /// Weak, as a paused run is no reason to keep gigabytes of weights.
    pub(crate) model: Weak<Model>,
    pub(crate) conditions: Conditions,
    pub(crate) scheduler: Box<dyn Scheduler>,
    pub(crate) noise: SeededNoise,
    /// `[num_images, c, h, w]` f32, variance-preserving.
    pub(crate) latents: Tensor,
    pub(crate) denoised: Option<Tensor>,
    /// UNet calls made.
    pub(crate) call: usize,
}

/// Where a run is after a UNet call.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Steps complete.
    pub step: usize,
    /// Steps asked for.
    pub num_steps: usize,
    /// UNet calls made; some schedulers make more than one a step.
    pub call: usize,
    /// UNet calls needed.
    pub num_calls: usize,
    /// Training timestep of this call, 0 to 999, fractional for some schedulers.
    pub timestep: f64,
    /// Share of noise in this call's latents, 0 to 1: they were sqrt(1 - sigma^2) picture + sigma noise.
    pub sigma: f64,
}

impl Run {
    pub(crate) fn start(pipeline: &Pipeline, job: Job) -> Result<Self> {
        let scheduler = scheduler::build(pipeline.config(), &job)?;
        let conditions = Conditions::encode(&pipeline.model, &job)?;
        let mut noise = init::noise(&job);
        let shape = pipeline.latent_shape(&job);
        let latents = init::latents(shape, conditions.device(), scheduler.plan(), &mut noise)?;
        let model = Arc::downgrade(&pipeline.model);
        Ok(Self {
            job,
            model,
            conditions,
            scheduler,
            noise,
            latents,
            denoised: None,
            call: 0,
        })
    }

    /// Makes one UNet call and moves the latents by it. Returns None when there is nothing left to do.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`], or the UNet failed: the run is as before, and can be tried again.
    pub fn advance(&mut self, pipeline: &Pipeline) -> Result<Option<Progress>> {
        let _span = tracing::debug_span!("step", call = self.call).entered();
        let progress = pipeline.advance_many(&mut [self])?;
        Ok(progress[0])
    }

    /// Whether the last UNet call is made, and [`finish`](Self::finish) has pictures to give.
    pub fn is_done(&self) -> bool {
        self.call >= self.scheduler.plan().calls()
    }

    /// The job this run works on.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The encoded prompts and the rest of what steers the UNet.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// The ends of prompts that the text encoders had no room for, decoded from their tokens.
    pub fn truncated(&self) -> &[String] {
        &self.conditions.truncated
    }

    /// The latents `[num_images, c, height / 8, width / 8]` f32, at the scale diffusers shows at this point: before the
    /// first call, noise times the scheduler's `init_noise_sigma`.
    ///
    /// # Errors
    /// The device failed.
    pub fn latents(&self) -> Result<Tensor> {
        match self.scheduler.plan().reference_scale(self.call) {
            1.0 => Ok(self.latents.clone()),
            scale => (&self.latents * scale).doing("scaling the latents"),
        }
    }

    /// What the last UNet call took the finished latents to be, shaped as [`latents`](Self::latents): the material of a
    /// preview. None before the first call and just after [`Pipeline::resume`].
    pub fn denoised(&self) -> Option<&Tensor> {
        self.denoised.as_ref()
    }

    /// Everything the run needs to go on elsewhere, as a safetensors file: latents, the scheduler's memory, the
    /// generators and the job. [`Pipeline::resume`] goes on to the same bytes, given the same weights, device and dtype.
    ///
    /// The first snapshot of a pipeline's runs reads the UNet's weights, to hash them.
    ///
    /// # Errors
    /// The pipeline or its files are gone, or the tensors cannot be read back from their device.
    pub fn snapshot(&self) -> Result<Vec<u8>> {
        snapshot::write(self)
    }

    /// Decodes the latents as they are now: pictures `[num_images, 3, height, width]` f32, red, green, blue in 0..1.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`], [`Error::NotFinite`], or the autoencoder failed.
    pub fn decode(&self, pipeline: &Pipeline) -> Result<Tensor> {
        pipeline.check_owns(self)?;
        let _span = tracing::info_span!("vae_decode", images = self.job.num_images).entered();
        let decoded = pipeline.model.vae.decode(&self.latents()?)?;
        // Clamped and rounded, they would look like a picture.
        if !finite(&decoded).doing("checking the pictures")? {
            return Err(Error::NotFinite);
        }
        unit_range(&decoded).doing("clamping the pictures")
    }

    /// The pictures of a finished run.
    ///
    /// # Errors
    /// [`Error::Unfinished`] before the last UNet call; otherwise as [`decode`](Self::decode).
    pub fn finish(&self, pipeline: &Pipeline) -> Result<Vec<RgbImage>> {
        if !self.is_done() {
            return Err(Error::Unfinished {
                call: self.call,
                num_calls: self.scheduler.plan().calls(),
            });
        }
        to_rgb(&self.decode(pipeline)?)
    }

    /// The encoded prompt, `[1, tokens, features]`.
    pub(crate) fn text(&self) -> &Tensor {
        &self.conditions.positive.hidden
    }

    /// Samples of this run in a UNet call.
    pub(crate) fn samples(&self) -> usize {
        self.conditions.branches().count() * self.job.num_images
    }

    /// The training timestep of the next UNet call.
    pub(crate) fn timestep(&self) -> f64 {
        self.scheduler.plan().levels()[self.call].timestep
    }

    /// Moves the latents by a guided prediction `[num_images, c, h, w]`.
    pub(crate) fn step(&mut self, prediction: &Tensor) -> Result<Progress> {
        // A failed step must leave the generators as they were, too.
        let mut noise = self.noise.clone();
        let step = self
            .scheduler
            .step(self.call, prediction, &self.latents, &mut noise)?;
        self.noise = noise;
        self.latents = step.sample;
        self.denoised = Some(step.denoised);
        self.call += 1;
        let plan = self.scheduler.plan();
        let level = &plan.levels()[self.call - 1];
        Ok(Progress {
            step: plan.steps_done(self.call),
            num_steps: plan.steps(),
            call: self.call,
            num_calls: plan.calls(),
            timestep: level.timestep,
            sigma: level.sigma,
        })
    }
}
