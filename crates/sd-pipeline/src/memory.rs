//! What a job will take in memory, and jobs that fit into a limit.

use sd_config::ModelConfig;
use sd_image::{Limits, Picture};
use sd_models::ModelMemory;

use crate::{
    Error, Job, PromptWeighting, Request, Result, Upscaler, conditioning::is_guided, error::size,
    text::MAX_WINDOWS,
};

/// Tensors of its latents' shape that a run has at its busiest: the latents, what they are taken to become, the noise, the
/// scheduler's memory, and a UNet call's input, output and guided prediction, some of them once a branch of guidance.
const LATENTS: u64 = 16;
/// Those that inpainting adds: the original, its noise, and the five channels more of an inpainting model's input.
const INPAINT_LATENTS: u64 = 8;
/// Bytes a pixel of a picture as f32, and while it is turned to or from 8 bits.
const F32: u64 = 3 * 4;
const CONVERTED: u64 = 4 * F32;
/// Bytes a pixel of a finished picture, and of one that is being read, resized and laid over another.
const RGB: u64 = 3;
const READ: u64 = 16;
/// Bytes a pixel of a picture that was read and of its mask, and of both as the autoencoder takes them.
const ORIGINAL: u64 = 8;
const PLACED: u64 = 3 * F32;

/// What a job takes in memory, in bytes: the larger of its phases on top of what stays.
///
/// Of a process, add what the program itself takes, some 50 MB. Measured peaks differ by a few per cent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The model's weights.
    pub weights: u64,
    /// The encoded prompts, the latents of the run and of its schedulers, and snapshots of them.
    pub run: u64,
    /// Encoding the prompts.
    pub text: u64,
    /// Reading a picture and encoding it, and a second pass's enlarged pictures; 0 for a job without.
    pub encode: u64,
    /// A UNet call.
    pub unet: u64,
    /// Decoding the pictures, one after the other, and keeping them.
    pub decode: u64,
}

impl MemoryEstimate {
    /// For a job on a model.
    pub fn new(memory: &ModelMemory, model: &ModelConfig, job: &Job) -> Self {
        let second = job.second_pass();
        let passes = || [Some(job), second.as_ref()].into_iter().flatten();
        let last = second.as_ref().unwrap_or(job);
        let images = job.num_images as u64;
        let original = original_pixels(job);
        let windows = Windows::of(job);
        let overlaid = match job.overlay {
            Some(true) => original.saturating_mul(RGB * images + READ),
            _ => 0,
        };
        Self {
            weights: memory.weights(),
            run: latent_bytes(model, last)
                .saturating_mul(LATENTS + job.mask_image.as_ref().map_or(0, |_| INPAINT_LATENTS))
                .saturating_add(text_bytes(model, windows.of_all)),
            text: memory.text(),
            encode: passes()
                .map(|pass| encode(memory, job, pass, original))
                .max()
                .unwrap_or(0),
            unet: passes()
                .map(|pass| {
                    let samples = pass.num_images * if is_guided(model, pass) { 2 } else { 1 };
                    memory.unet(
                        samples,
                        latents(model, pass),
                        windows.of_one * tokens(model),
                    )
                })
                .max()
                .unwrap_or(0),
            decode: decode(memory, model, last)
                .saturating_add(pixels(last).saturating_mul(RGB * images))
                .saturating_add(overlaid),
        }
    }

    /// The most that is there at a time.
    pub fn peak(&self) -> u64 {
        let phases = [self.text, self.encode, self.unet, self.decode];
        let busiest = phases.into_iter().max().unwrap_or(0);
        self.weights
            .saturating_add(self.run)
            .saturating_add(busiest)
    }
}

/// The job if it takes no more than `limit`; in tiles where `request` leaves that open and it helps.
pub(crate) fn within(
    limit: u64,
    memory: &ModelMemory,
    model: &ModelConfig,
    request: &Request,
    job: Job,
) -> Result<Job> {
    let needed = |job: &Job| MemoryEstimate::new(memory, model, job).peak();
    let whole = needed(&job);
    if whole <= limit {
        return Ok(job);
    }
    let tiled = Job {
        vae_tiling: model.vae.tile().is_some(),
        ..job.clone()
    };
    let in_tiles = needed(&tiled);
    if in_tiles <= limit && request.vae_tiling.is_none() {
        return Ok(tiled);
    }
    let (needed, advice) = if in_tiles <= limit {
        (whole, format!("with vae_tiling {} suffice", size(in_tiles)))
    } else {
        let open = request.vae_tiling.is_none() || job.vae_tiling;
        let job = if open { &tiled } else { &job };
        let fits = |job: &Job| needed(job) <= limit;
        (needed(job), smaller(model, job, memory.weights(), fits))
    };
    Err(Error::Memory {
        needed,
        limit,
        advice,
    })
}

/// Words for the largest job like this one that fits.
fn smaller(model: &ModelConfig, job: &Job, weights: u64, fits: impl Fn(&Job) -> bool) -> String {
    let alone = Job {
        num_images: 1,
        ..job.clone()
    };
    if fits(&alone) {
        let fits = |&images: &usize| {
            fits(&Job {
                num_images: images,
                ..job.clone()
            })
        };
        let most = (1..job.num_images).rev().find(fits).unwrap_or(1);
        return format!("num_images of {most} fits");
    }
    // Other sizes hang together: a second pass follows the first, a picture its original.
    let free = job.hires.is_none() && job.init_image.is_none();
    let factor = model.vae.factor();
    let scaled = |eighths: usize| {
        let side = |side: usize| side * eighths / 8 / factor * factor;
        Job {
            width: side(job.width),
            height: side(job.height),
            ..alone.clone()
        }
    };
    let usable = |job: &Job| job.width > 0 && job.height > 0;
    match (1..8)
        .rev()
        .map(scaled)
        .find(|job| usable(job) && fits(job))
    {
        Some(job) if free => format!("one picture of {}x{} fits", job.width, job.height),
        Some(_) => "one smaller picture fits".into(),
        None => format!("the weights alone take {}", size(weights)),
    }
}

/// What reading a job's picture, or enlarging those of its first pass, takes together with encoding it at a pass's size.
fn encode(memory: &ModelMemory, job: &Job, pass: &Job, original: u64) -> u64 {
    let encoded = memory.encode([pass.height, pass.width], job.vae_tiling);
    let upscaler = job.hires.as_ref().and_then(|hires| hires.upscaler);
    if pass.hires.is_none() && upscaler == Some(Upscaler::Lanczos) {
        let images = job.num_images as u64;
        let [first, second] = [job, pass].map(|pass| pixels(pass).saturating_mul(images));
        let enlarging = first
            .saturating_mul(CONVERTED)
            .saturating_add(second.saturating_mul(2 * F32 + RGB));
        enlarging.max(encoded.saturating_add(second.saturating_mul(F32)))
    } else if job.init_image.is_some() {
        let given = original.saturating_mul(ORIGINAL);
        encoded
            .saturating_add(given)
            .saturating_add(pixels(pass).saturating_mul(PLACED))
            .max(original.saturating_mul(READ))
    } else {
        0
    }
}

/// Decoding one picture, then turning it to 8 bits.
fn decode(memory: &ModelMemory, model: &ModelConfig, job: &Job) -> u64 {
    let decoded = memory.decode(latents(model, job), job.vae_tiling);
    decoded.max(pixels(job).saturating_mul(CONVERTED))
}

fn pixels(job: &Job) -> u64 {
    (job.width as u64).saturating_mul(job.height as u64)
}

/// Pixels of the larger of a job's pictures.
fn original_pixels(job: &Job) -> u64 {
    let pictures = [&job.init_image, &job.mask_image].into_iter().flatten();
    let pixels = |picture: &Picture| {
        // A job's pictures have been read.
        let (width, height) = picture.size(&Limits::default()).unwrap_or_default();
        u64::from(width) * u64::from(height)
    };
    pictures.map(pixels).max().unwrap_or(0)
}

/// Height and width in latents.
fn latents(model: &ModelConfig, job: &Job) -> [usize; 2] {
    [job.height, job.width].map(|side| side / model.vae.factor())
}

fn latent_bytes(model: &ModelConfig, job: &Job) -> u64 {
    let [height, width] = latents(model, job);
    let sizes = [job.num_images, model.vae.latent_channels, height, width];
    sizes
        .iter()
        .fold(4, |bytes: u64, &size| bytes.saturating_mul(size as u64))
}

/// Windows of text at most, as counting them takes a tokenizer.
struct Windows {
    /// Of the longest prompt.
    of_one: usize,
    /// Of all texts that the run keeps, as prompts may change from step to step.
    of_all: usize,
}

impl Windows {
    fn of(job: &Job) -> Self {
        let second = [&job.prompt_2, &job.negative_prompt, &job.negative_prompt_2];
        let prompts = [Some(&job.prompt)]
            .into_iter()
            .chain(second.map(Option::as_ref));
        let prompts: Vec<&String> = prompts.flatten().collect();
        if job.prompt_weighting == PromptWeighting::Plain {
            return Self {
                of_one: 1,
                of_all: prompts.len(),
            };
        }
        // One that wraps text in front of a comma or a word may end up to 19 tokens early.
        let windows = |text: &&String| {
            1 + tokens_at_most(text).div_ceil(75 - 19) + text.matches("BREAK").count()
        };
        let of_one = prompts
            .iter()
            .map(windows)
            .max()
            .unwrap_or(1)
            .min(MAX_WINDOWS);
        let steps =
            job.num_inference_steps + job.second_pass().map_or(0, |pass| pass.num_inference_steps);
        // An edit changes the text once, an alternation in every step.
        let texts = |text: &&String| match text.contains('|') {
            true => steps,
            false => (1 + text.matches(':').count()).min(steps),
        };
        let texts: usize = prompts.iter().map(texts).sum();
        Self {
            of_one,
            of_all: (texts * of_one).min(MAX_WINDOWS),
        }
    }
}

/// A token has a byte at least, of text that the tokenizer has normalised: NFC and lower case make of no character more
/// than three times its bytes, and no more of ASCII.
fn tokens_at_most(text: &str) -> usize {
    let bytes = text.bytes();
    bytes.map(|byte| if byte.is_ascii() { 1 } else { 3 }).sum()
}

/// Bytes of so many windows of encoded text.
fn text_bytes(model: &ModelConfig, windows: usize) -> u64 {
    let width = model.unet.cross_attention_dim.get(0);
    let sizes = [windows, tokens(model), width, size_of::<f32>()];
    sizes
        .iter()
        .fold(1, |bytes: u64, &size| bytes.saturating_mul(size as u64))
}

/// Tokens of a window.
fn tokens(model: &ModelConfig) -> usize {
    let encoders = model.text_encoders.iter();
    encoders
        .map(|encoder| encoder.clip.max_position_embeddings)
        .max()
        .unwrap_or(0)
}
