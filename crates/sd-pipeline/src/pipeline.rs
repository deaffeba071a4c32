//! The loaded model, and what can be done with it.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use sd_config::{LatentRgb, ModelConfig};
use sd_models::{
    LoadOptions, Model, ModelMemory, ModelSource,
    nn::AttentionSlice,
    vae::{Posterior, TinyDecoder},
};

use crate::{
    Error, Job, MemoryEstimate, Progress, Request, Resolver, Result, Run, batch, job::wrong,
    memory, snapshot,
};

/// A loaded model. Immutable and shareable between threads; all state of a generation is in its [`Run`].
///
/// ```
/// use std::ops::ControlFlow;
///
/// use sd_pipeline::{Pipeline, Request, builtin_model};
///
/// let pipeline = Pipeline::builder(builtin_model()).build()?;
/// let request = Request { num_inference_steps: Some(1), ..Request::new("a blue star on a white background") };
/// let made = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
/// assert_eq!(made.images.len(), 1);
/// # Ok::<(), sd_pipeline::Error>(())
/// ```
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) model: Arc<Model>,
    pub(crate) tiny_vae: Option<TinyDecoder>,
    /// Fitted when it is first needed.
    pub(crate) latent_rgb: OnceLock<LatentRgb>,
    name: String,
    attention_slice: AttentionSlice,
    max_memory: Option<u64>,
    /// Counted when it is first asked for.
    memory: OnceLock<ModelMemory>,
}

/// The result of [`Pipeline::generate`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Images {
    /// What was made, with every default and the seed.
    pub job: Job,
    /// The pictures, [`Job::num_images`] of them.
    pub images: Vec<RgbImage>,
}

impl Pipeline {
    /// Chooses how to load a model.
    pub fn builder(source: ModelSource) -> PipelineBuilder {
        PipelineBuilder {
            source,
            options: LoadOptions::default(),
            tiny_vae: None,
            attention_slice: AttentionSlice::default(),
            max_memory: None,
        }
    }

    /// A pipeline of a model loaded by other means. `name` is what the pictures' metadata call it.
    pub fn from_model(name: impl Into<String>, model: Model) -> Self {
        Self {
            name: name.into(),
            model: Arc::new(model),
            tiny_vae: None,
            latent_rgb: OnceLock::new(),
            attention_slice: AttentionSlice::default(),
            max_memory: None,
            memory: OnceLock::new(),
        }
    }

    /// The model's name: its folder's, its repository's, or that of the built-in one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The SHA-256 of the UNet's file, hexadecimal, by which other programs know a model too. The first call reads the
    /// file, unless the hub told its hash or [`LoadOptions::hashes`] knows it.
    ///
    /// # Errors
    /// The files are gone.
    pub fn weights_sha256(&self) -> Result<&str> {
        Ok(self.model.weights_sha256()?)
    }

    /// Oddities of the model's files that do no harm, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.model.warnings
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// The complete job that [`start`](Self::start) makes of a request, within
    /// [`max_memory`](PipelineBuilder::max_memory).
    ///
    /// # Errors
    /// As [`Request::resolve`]; [`Error::Memory`].
    pub fn resolve(&self, request: &Request) -> Result<Job> {
        let job = request.resolve(self.config())?;
        match self.max_memory {
            Some(limit) => memory::within(limit, self.memory()?, self.config(), request, job),
            None => Ok(job),
        }
    }

    /// What a job will take, its pictures included.
    ///
    /// ```
    /// use sd_pipeline::{Pipeline, Request, builtin_model};
    ///
    /// let pipeline = Pipeline::builder(builtin_model()).build()?;
    /// let job = pipeline.resolve(&Request::new("a red circle"))?;
    /// assert!(pipeline.predict_memory(&job)?.peak() < 64 << 20);
    /// # Ok::<(), sd_pipeline::Error>(())
    /// ```
    ///
    /// # Errors
    /// The model's configuration contradicts itself, which it does not once it is loaded.
    pub fn predict_memory(&self, job: &Job) -> Result<MemoryEstimate> {
        Ok(MemoryEstimate::new(self.memory()?, self.config(), job))
    }

    fn memory(&self) -> Result<&ModelMemory> {
        if let Some(known) = self.memory.get() {
            return Ok(known);
        }
        let mut memory = ModelMemory::of(&self.model)?;
        memory.set_attention_slice(self.attention_slice);
        Ok(self.memory.get_or_init(|| memory))
    }

    /// Starts a generation: completes the request, encodes its text and pictures and draws its noise.
    ///
    /// # Errors
    /// As [`Request::resolve`]; a request with `denoising_start`; the text encoder or the autoencoder failed.
    pub fn start(&self, request: &Request) -> Result<Run> {
        Run::start(self, self.resolve(request)?)
    }

    /// Starts a generation that goes on where another one stopped: XL's refiner after its base model. `latents`
    /// `[num_images, c, h, w]` are those of [`Run::latents`] at the end of a run with `denoising_end`, the request's
    /// `denoising_start` the same share. Width, height and number of pictures are the latents'.
    ///
    /// # Errors
    /// As [`Request::resolve`]; the request has no `denoising_start` or is at odds with the latents' shape; the text
    /// encoder failed.
    pub fn start_from(&self, request: &Request, latents: &Tensor) -> Result<Run> {
        if request.denoising_start.is_none() {
            let expected = "the share that the latents are at";
            return Err(wrong("denoising_start", "none", expected));
        }
        let factor = self.config().vae.factor();
        let [num_images, _, height, width] = *latents.dims() else {
            return Err(Error::NotLatents {
                found: latents.dims().to_vec(),
                expected: "four dimensions".into(),
            });
        };
        let job = self.resolve(&Request {
            num_images: request.num_images.or(Some(num_images)),
            height: request.height.or(Some(height.saturating_mul(factor))),
            width: request.width.or(Some(width.saturating_mul(factor))),
            ..request.clone()
        })?;
        let expected = self.latent_shape(&job);
        if latents.dims() != expected {
            return Err(Error::NotLatents {
                found: latents.dims().to_vec(),
                expected: format!("{expected:?}"),
            });
        }
        Run::start_from(self, job, latents)
    }

    /// Goes on with a run from the bytes of [`Run::snapshot`]. Bytes from anywhere are safe to pass.
    ///
    /// # Errors
    /// The bytes are no snapshot of a run with this pipeline's weights.
    pub fn resume(&self, snapshot: &[u8]) -> Result<Run> {
        snapshot::read(snapshot, self)
    }

    /// Makes one UNet call that advances all runs, which may differ in everything but the shape of their latents. Each
    /// run's latents are the same bits as if it were advanced alone. Entry i of the result is the progress of run i, None
    /// if it was done before.
    ///
    /// ```
    /// use sd_pipeline::{Pipeline, Request, builtin_model};
    ///
    /// let pipeline = Pipeline::builder(builtin_model()).build()?;
    /// let short = Request { num_inference_steps: Some(1), ..Request::new("a red circle") };
    /// let long = Request { num_inference_steps: Some(2), scheduler: Some("euler".into()), ..Request::new("a blue star") };
    /// let (mut short, mut long) = (pipeline.start(&short)?, pipeline.start(&long)?);
    /// while !(short.is_done() && long.is_done()) {
    ///     pipeline.advance_many(&mut [&mut short, &mut long])?;
    /// }
    /// # Ok::<(), sd_pipeline::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Batch`] if shapes differ; otherwise as [`Run::advance`]. When a scheduler fails, the runs before its own
    /// have advanced.
    pub fn advance_many(&self, runs: &mut [&mut Run]) -> Result<Vec<Option<Progress>>> {
        batch::advance(self, runs)
    }

    /// Starts a run, advances it to its end and decodes it; `observer` sees every UNet call and may stop.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`Run::advance`]; [`Error::Stopped`] when the observer breaks.
    pub fn generate(
        &self,
        request: &Request,
        mut observer: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Images> {
        let job = self.resolve(request)?;
        let _span = tracing::info_span!(
            "generate",
            seed = job.seed,
            steps = job.num_inference_steps,
            width = job.width,
            height = job.height,
            scheduler = job.scheduler,
        )
        .entered();
        let mut run = Run::start(self, job)?;
        let denoise = tracing::info_span!("denoise").entered();
        while let Some(progress) = run.advance(self)? {
            if observer(&progress).is_break() {
                return Err(Error::Stopped {
                    call: progress.call,
                });
            }
        }
        denoise.exit();
        Ok(Images {
            images: run.finish(self)?,
            job: run.job,
        })
    }

    pub(crate) fn check_owns(&self, run: &Run) -> Result<()> {
        if run.model.as_ptr() == Arc::as_ptr(&self.model) {
            Ok(())
        } else {
            Err(Error::OtherPipeline)
        }
    }

    /// The latents of pictures `[b, 3, height, width]` in -1..1, made in tiles if the job says so.
    pub(crate) fn encode(&self, job: &Job, images: &Tensor) -> Result<Posterior> {
        let vae = &self.model.vae;
        Ok(match job.vae_tiling {
            true => vae.encode_tiled(images)?,
            false => vae.encode(images)?,
        })
    }

    /// The pictures of latents, about -1..1, made in tiles if the job says so.
    pub(crate) fn decode(&self, job: &Job, latents: &Tensor) -> Result<Tensor> {
        let vae = &self.model.vae;
        Ok(match job.vae_tiling {
            true => vae.decode_tiled(latents)?,
            false => vae.decode(latents)?,
        })
    }

    /// Whether the UNet sees the mask and what to keep beside the latents.
    pub(crate) fn takes_mask(&self) -> bool {
        self.config().unet.in_channels > self.config().vae.latent_channels
    }

    pub(crate) fn latent_shape(&self, job: &Job) -> [usize; 4] {
        let vae = &self.config().vae;
        [
            job.num_images,
            vae.latent_channels,
            job.height / vae.factor(),
            job.width / vae.factor(),
        ]
    }
}

/// How to load a model, see [`Pipeline::builder`]. Without further choices: f32 weights on the CPU.
#[derive(Clone)]
#[must_use]
pub struct PipelineBuilder {
    source: ModelSource,
    options: LoadOptions,
    tiny_vae: Option<PathBuf>,
    attention_slice: AttentionSlice,
    max_memory: Option<u64>,
}

impl PipelineBuilder {
    /// Where to compute.
    pub fn device(mut self, device: Device) -> Self {
        self.options.device = device;
        self
    }

    /// How weights are kept: f32, f16 or bf16. On the CPU bf16 is also what products are computed in.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = dtype;
        self
    }

    /// Everything else about loading: the files' variant, the progress of downloads.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// How many queries attend at a time on a GPU without FlashAttention: fewer take less memory and more time. On the CPU
    /// it does not matter: the scores of few queries exist at a time.
    pub fn attention_slice(mut self, slice: AttentionSlice) -> Self {
        self.attention_slice = slice;
        self
    }

    /// Refuses what would take more than so many bytes, weights included, before it takes them: the model, then each
    /// request. Where a request leaves it open, its pictures are made in tiles instead if that suffices; and
    /// [`AttentionSlice::Automatic`] takes at most an eighth of what the weights leave. Without this there is no limit.
    ///
    /// Each run is held against the limit alone: whoever has several at a time adds up what they take beside the weights.
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Loads a tiny decoder for previews ([`PreviewKind::Tiny`](crate::PreviewKind::Tiny)) too: a file like
    /// `taesd_decoder.safetensors`, or a folder of diffusers' `AutoencoderTiny`. It has to be made for the model's
    /// family: TAESD for v1 and v2, TAESDXL for XL.
    pub fn tiny_vae(mut self, path: impl Into<PathBuf>) -> Self {
        self.tiny_vae = Some(path.into());
        self
    }

    /// Reads and checks the model's configuration only, enough for [`Request::resolve`].
    ///
    /// # Errors
    /// A file is missing or damaged, or the files contradict each other.
    pub fn config(&self) -> Result<ModelConfig> {
        Ok(sd_models::config(&self.source, &self.options)?)
    }

    /// The memory of the model that [`build`](Self::build) would load, from its configuration alone: with it,
    /// [`MemoryEstimate::new`] tells what a job would take.
    ///
    /// # Errors
    /// As [`config`](Self::config).
    pub fn model_memory(&self) -> Result<ModelMemory> {
        let options = &self.options;
        let mut memory = ModelMemory::new(&self.config()?, options.dtype, &options.device)?;
        memory.set_attention_slice(self.attention_slice);
        Ok(memory)
    }

    /// What completes requests for the model that [`build`](Self::build) would load, from its configuration alone.
    ///
    /// # Errors
    /// As [`config`](Self::config).
    pub fn resolver(&self) -> Result<Resolver> {
        let mut memory = self.model_memory()?;
        let weights = memory.weights();
        memory.set_attention_slice(self.slice_beside(weights));
        Ok(Resolver {
            config: self.config()?,
            memory,
            max_memory: self.max_memory,
        })
    }

    /// Finds, checks and loads the model: seconds to minutes.
    ///
    /// # Errors
    /// A file is missing, damaged, or does not fit the model's configuration; [`Error::Memory`].
    pub fn build(self) -> Result<Pipeline> {
        let attention_slice = self.slice_within_limit()?;
        let tiny_vae = self.load_tiny_vae()?;
        let mut model = sd_models::load(&self.source, &self.options)?;
        model.unet.set_attention_slice(attention_slice);
        model.vae.set_attention_slice(attention_slice);
        Ok(Pipeline {
            tiny_vae,
            attention_slice,
            max_memory: self.max_memory,
            ..Pipeline::from_model(name(&self.source), model)
        })
    }

    /// How to cut attention; an error if the weights do not fit into the limit.
    fn slice_within_limit(&self) -> Result<AttentionSlice> {
        let Some(limit) = self.max_memory else {
            return Ok(self.attention_slice);
        };
        let weights = self.model_memory()?.weights();
        if weights > limit {
            return Err(Error::Memory {
                needed: weights,
                limit,
                advice: "these are the weights alone; f16 and bf16 take half as much as f32".into(),
            });
        }
        Ok(self.slice_beside(weights))
    }

    /// How to cut attention where the weights take so many bytes of the limit.
    fn slice_beside(&self, weights: u64) -> AttentionSlice {
        match (self.attention_slice, self.max_memory) {
            (AttentionSlice::Automatic, Some(limit)) => {
                AttentionSlice::Bytes((limit.saturating_sub(weights) / 8).min(1 << 30))
            }
            (slice, _) => slice,
        }
    }

    /// Before the model, so that a wrong file is known before gigabytes are loaded.
    fn load_tiny_vae(&self) -> Result<Option<TinyDecoder>> {
        let load = |path: &PathBuf| {
            let model = sd_models::config(&self.source, &self.options)?;
            sd_models::load_tiny_decoder(path, &model.vae, &self.options)
        };
        Ok(self.tiny_vae.as_ref().map(load).transpose()?)
    }
}

fn name(source: &ModelSource) -> String {
    match source {
        // The whole path says more about a machine than its pictures should.
        ModelSource::Dir(path) => path
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or_default(),
        other => other.to_string(),
    }
}
