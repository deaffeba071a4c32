//! One generation: everything it needs beside the weights, between any two UNet calls.

use std::sync::{Arc, Weak};

use candle_core::{DType, Tensor};
use image::RgbImage;
use sd_models::Model;
use sd_scheduler::SeededNoise;

use crate::{
    Conditions, Error, Job, Pipeline, Result,
    error::Doing,
    hires,
    image::{to_rgb, unit_range},
    init::{self, Start},
    inpaint::Inpaint,
    job::wrong,
    pass::Pass,
    snapshot,
    source::Source,
    timeline::Timeline,
};

/// One generation, started by [`Pipeline::start`]. The caller owns the loop: drop a run to cancel it, look at
/// [`preview`](Self::preview), keep a [`snapshot`](Self::snapshot) to go on after a crash.
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
    /// By steps of the run.
    pub(crate) conditions: Timeline<Conditions>,
    /// One, or two with [`Job::hires`].
    pub(crate) passes: Vec<Pass>,
    /// Which pass the next call belongs to: the last one when there is none.
    pub(crate) pass: usize,
    /// The next call of that pass's plan.
    pub(crate) call: usize,
    pub(crate) noise: SeededNoise,
    /// `[num_images, c, h, w]` f32, variance-preserving.
    pub(crate) latents: Tensor,
    pub(crate) inpaint: Option<Inpaint>,
    pub(crate) denoised: Option<Tensor>,
}

/// Where a run is after a UNet call.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Steps complete.
    pub step: usize,
    /// Steps of the run, of both passes if it has two: less than were asked for where [`Job::strength`] leaves some out.
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
        if let Some(share) = job.denoising_start {
            let expected = "none: only a run started from latents goes on";
            return Err(wrong("denoising_start", share, expected));
        }
        let passes = Pass::all(pipeline.config(), &job)?;
        let conditions = Conditions::encode(&pipeline.model, &job, &passes)?;
        let device = conditions.at(0).device();
        let mut noise = init::noise(&job);
        let start = init::start(pipeline, &job, &passes[0], device, &mut noise)?;
        Ok(Self::at_start(
            pipeline, job, conditions, passes, noise, start,
        ))
    }

    /// Goes on with latents `[num_images, c, h, w]` at the scale diffusers shows.
    pub(crate) fn start_from(pipeline: &Pipeline, job: Job, latents: &Tensor) -> Result<Self> {
        let passes = Pass::all(pipeline.config(), &job)?;
        let conditions = Conditions::encode(&pipeline.model, &job, &passes)?;
        let noise = init::noise(&job);
        let scale = passes[0].plan().reference_scale(passes[0].first);
        let latents = latents
            .to_device(conditions.at(0).device())
            .and_then(|latents| latents.to_dtype(DType::F32)? / scale)
            .doing("placing the latents")?;
        let start = Start {
            latents,
            inpaint: None,
        };
        Ok(Self::at_start(
            pipeline, job, conditions, passes, noise, start,
        ))
    }

    fn at_start(
        pipeline: &Pipeline,
        job: Job,
        conditions: Timeline<Conditions>,
        passes: Vec<Pass>,
        noise: SeededNoise,
        start: Start,
    ) -> Self {
        Self {
            job,
            model: Arc::downgrade(&pipeline.model),
            conditions,
            call: passes[0].first,
            passes,
            pass: 0,
            noise,
            latents: start.latents,
            inpaint: start.inpaint,
            denoised: None,
        }
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
        self.call >= self.passes[self.pass].end
    }

    /// The job this run works on.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The encoded prompts and the rest of what steers the UNet, in the next call; at the end of the run, those of the last.
    pub fn conditions(&self) -> &Conditions {
        let before = self.passes[..self.pass].iter().map(Pass::steps);
        let here = self.passes[self.pass].steps_done(self.call);
        self.conditions.at(before.sum::<usize>() + here)
    }

    /// The ends of prompts that the text encoders had no room for, decoded from their tokens.
    pub fn truncated(&self) -> &[String] {
        &self.conditions().truncated
    }

    /// Whether [`Pipeline::advance_many`] takes this run and another in one UNet call, as they are now.
    pub fn joins(&self, other: &Self) -> bool {
        self.model.ptr_eq(&other.model)
            && self.latents.dims()[1..] == other.latents.dims()[1..]
            && self.text().dims() == other.text().dims()
    }

    /// The latents `[num_images, c, height / 8, width / 8]` f32, at the scale diffusers shows at this point: before the
    /// first call of text-to-image, noise times the scheduler's `init_noise_sigma`. With [`Job::hires`] they grow after
    /// the first pass's last call.
    ///
    /// # Errors
    /// The device failed.
    pub fn latents(&self) -> Result<Tensor> {
        match self.passes[self.pass].plan().reference_scale(self.call) {
            1.0 => Ok(self.latents.clone()),
            scale => (&self.latents * scale).doing("scaling the latents"),
        }
    }

    /// What the last UNet call took the finished latents to be, shaped as its [`latents`](Self::latents): the material of
    /// a preview. None before the first call and just after [`Pipeline::resume`].
    pub fn denoised(&self) -> Option<&Tensor> {
        self.denoised.as_ref()
    }

    /// Everything the run needs to go on elsewhere, as a safetensors file: latents, the scheduler's memory, the
    /// generators and the job. [`Pipeline::resume`] goes on to the same bytes, given the same weights, device and dtype.
    ///
    /// The first snapshot of a pipeline's runs reads the files of all weights, to hash them, unless their hashes are known
    /// from the hub or from [`LoadOptions::hashes`](crate::LoadOptions::hashes).
    ///
    /// # Errors
    /// The pipeline or its files are gone, or the tensors cannot be read back from their device.
    pub fn snapshot(&self) -> Result<Vec<u8>> {
        snapshot::write(self)
    }

    /// Decodes the latents as they are now: pictures `[num_images, 3, height, width]` f32, red, green, blue in 0..1.
    /// [`Job::overlay`] has no part in it.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`], [`Error::NotFinite`], or the autoencoder failed.
    pub fn decode(&self, pipeline: &Pipeline) -> Result<Tensor> {
        pipeline.check_owns(self)?;
        unit_range(&self.decoded(pipeline, &self.latents()?)?)
    }

    /// The pictures of a finished run.
    ///
    /// # Errors
    /// [`Error::Unfinished`] before the last UNet call; otherwise as [`decode`](Self::decode).
    pub fn finish(&self, pipeline: &Pipeline) -> Result<Vec<RgbImage>> {
        if !self.is_done() {
            return Err(Error::Unfinished {
                call: self.calls_made(),
                num_calls: self.calls(),
            });
        }
        pipeline.check_owns(self)?;
        self.overlaid(self.rgb(pipeline, &self.latents()?)?)
    }

    /// The pictures of what [`decode`](Self::decode) returned: [`to_rgb`], and with [`Job::overlay`] laid over the
    /// original.
    ///
    /// # Errors
    /// [`Error::NotImages`], or the tensor cannot be read back from its device.
    pub fn pictures(&self, decoded: &Tensor) -> Result<Vec<RgbImage>> {
        self.overlaid(to_rgb(decoded)?)
    }

    /// The pictures of latents of this run's shape. One after the other, as each takes more memory than its result.
    fn rgb(&self, pipeline: &Pipeline, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let mut pictures = Vec::with_capacity(self.job.num_images);
        for image in 0..self.job.num_images {
            let one = latents
                .narrow(0, image, 1)
                .doing("taking a picture's latents")?;
            pictures.extend(to_rgb(&unit_range(&self.decoded(pipeline, &one)?)?)?);
        }
        Ok(pictures)
    }

    fn overlaid(&self, pictures: Vec<RgbImage>) -> Result<Vec<RgbImage>> {
        if self.job.overlay != Some(true) {
            return Ok(pictures);
        }
        match Source::new(&self.job)? {
            Some(source) => pictures
                .iter()
                .map(|picture| source.overlay(picture))
                .collect(),
            None => Ok(pictures),
        }
    }

    /// What the autoencoder makes of latents of this run's size, about -1..1.
    pub(crate) fn decoded(&self, pipeline: &Pipeline, latents: &Tensor) -> Result<Tensor> {
        let _span = tracing::info_span!("vae_decode", images = latents.dims()[0]).entered();
        pipeline.decode(&self.job, latents)
    }

    /// The encoded prompt, `[1, tokens, features]`.
    pub(crate) fn text(&self) -> &Tensor {
        &self.conditions().positive.hidden
    }

    /// Samples of this run in a UNet call.
    pub(crate) fn samples(&self) -> usize {
        self.conditions().branches().count() * self.job.num_images
    }

    /// The latents as the UNet sees them, with the channels of an inpainting model.
    pub(crate) fn unet_input(&self) -> Result<Tensor> {
        match &self.inpaint {
            Some(inpaint) => inpaint
                .input(&self.latents)
                .doing("joining latents and mask"),
            None => Ok(self.latents.clone()),
        }
    }

    /// The training timestep of the next UNet call.
    pub(crate) fn timestep(&self) -> f64 {
        self.passes[self.pass].plan().levels()[self.call].timestep
    }

    /// UNet calls made, in all passes.
    pub(crate) fn calls_made(&self) -> usize {
        let before = self.passes[..self.pass].iter().map(Pass::calls);
        before.sum::<usize>() + self.call - self.passes[self.pass].first
    }

    /// UNet calls of the run.
    pub(crate) fn calls(&self) -> usize {
        self.passes.iter().map(Pass::calls).sum()
    }

    /// Moves the latents by a guided prediction `[num_images, c, h, w]`. When that fails nothing has changed.
    pub(crate) fn step(&mut self, pipeline: &Pipeline, prediction: &Tensor) -> Result<Progress> {
        let before = self.passes[self.pass].scheduler.state();
        let (pass, call) = (self.pass, self.call);
        self.try_step(pipeline, prediction)
            .inspect_err(|_| {
                // It is the scheduler's own state.
                let _ = self.passes[pass].scheduler.restore(before);
            })
            .map(|()| self.progress(pass, call))
    }

    fn try_step(&mut self, pipeline: &Pipeline, prediction: &Tensor) -> Result<()> {
        let pass = &mut self.passes[self.pass];
        let mut noise = self.noise.clone();
        let step = pass
            .scheduler
            .step(self.call, prediction, &self.latents, &mut noise)?;
        let pass = &self.passes[self.pass];
        let next = self.call + 1;
        let mut latents = step.sample;
        if let Some(inpaint) = &self.inpaint {
            latents = inpaint.keep(latents, pass.plan(), next, next == pass.end)?;
        }
        if next < pass.end || self.pass + 1 == self.passes.len() {
            self.call = next;
        } else if let (Some(second), Some(hires)) = (self.job.second_pass(), &self.job.hires) {
            // As `finish` would decode them: not of scale 1 where the schedule ends before the noise does.
            let scale = pass.plan().reference_scale(next);
            let made = (latents * scale).doing("scaling the latents")?;
            let pass = &self.passes[self.pass + 1];
            let upscaler = hires.upscaler.unwrap_or_default();
            (latents, noise) = hires::start(pipeline, &second, upscaler, pass, &made)?;
            (self.pass, self.call) = (self.pass + 1, pass.first);
        }
        self.noise = noise;
        self.latents = latents;
        self.denoised = Some(step.denoised);
        Ok(())
    }

    /// After a call of a pass's plan.
    fn progress(&self, pass: usize, call: usize) -> Progress {
        let (before, pass) = (&self.passes[..pass], &self.passes[pass]);
        let level = &pass.plan().levels()[call];
        Progress {
            step: before.iter().map(Pass::steps).sum::<usize>() + pass.steps_done(call + 1),
            num_steps: self.passes.iter().map(Pass::steps).sum(),
            call: before.iter().map(Pass::calls).sum::<usize>() + call + 1 - pass.first,
            num_calls: self.calls(),
            timestep: level.timestep,
            sigma: level.sigma,
        }
    }
}
