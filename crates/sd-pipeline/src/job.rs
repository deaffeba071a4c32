//! From optional fields to a complete job, the one place where defaults and limits are decided.

mod passes;
mod sizes;
mod task;

use std::{
    fmt::Display,
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
};

use sd_config::ModelConfig;
use sd_image::{Picture, ResizeMode};
use serde::Serialize;

use self::task::{Task, unused};
use crate::{
    Error, Hires, MaskPolarity, PromptWeighting, Request, Result, SeedMode, pass::Pass, scheduler,
    source::Source,
};

/// Longest prompt, in bytes of UTF-8.
const MAX_PROMPT: usize = 64 << 10;
/// Longest side of a picture, in pixels.
const MAX_SIDE: usize = 8192;
/// Largest softening of a mask, in pixels.
const MAX_BLUR: f64 = 1024.0;

/// A [`Request`] with every default filled in and every limit checked, see [`Request::resolve`].
///
/// Its fields are the request's, and so is its JSON: read as a request and resolved again, it is the same job. `None` is
/// left only where the model or the task has no use for the field, and for a negative prompt of zeros.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "documented at the fields of `Request`")]
pub struct Job {
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub prompt_2: Option<String>,
    pub negative_prompt_2: Option<String>,
    pub prompt_weighting: PromptWeighting,
    pub num_inference_steps: usize,
    pub guidance_scale: f64,
    pub guidance_rescale: f64,
    pub width: usize,
    pub height: usize,
    pub seed: u64,
    pub seed_mode: SeedMode,
    pub num_images: usize,
    /// The scheduler: its short name, with that of its sigma schedule if one was asked for, or its diffusers class where
    /// the model's file tells more than a short name can.
    pub scheduler: String,
    pub eta: f64,
    pub clip_skip: usize,
    pub vae_tiling: bool,
    pub original_size: Option<(usize, usize)>,
    pub crops_coords_top_left: Option<(usize, usize)>,
    pub target_size: Option<(usize, usize)>,
    pub negative_original_size: Option<(usize, usize)>,
    pub negative_crops_coords_top_left: Option<(usize, usize)>,
    pub negative_target_size: Option<(usize, usize)>,
    pub init_image: Option<Picture>,
    pub strength: Option<f64>,
    pub resize_mode: Option<ResizeMode>,
    pub mask_image: Option<Picture>,
    pub mask_polarity: Option<MaskPolarity>,
    pub mask_blur: Option<f64>,
    pub padding_mask_crop: Option<usize>,
    pub overlay: Option<bool>,
    pub variation_seed: Option<u64>,
    pub variation_strength: Option<f64>,
    pub denoising_end: Option<f64>,
    pub denoising_start: Option<f64>,
    pub aesthetic_score: Option<f64>,
    pub negative_aesthetic_score: Option<f64>,
    /// Complete, but for `scale`, which `width` and `height` stand for.
    pub hires: Option<Hires>,
}

impl Job {
    /// The seed that makes picture `image` of this job again: alone in [`SeedMode::PerImage`], with all the others in
    /// [`SeedMode::Batch`].
    pub fn image_seed(&self, image: usize) -> u64 {
        match (self.seed_mode, self.variation_seed) {
            (SeedMode::PerImage, None) => self.seed.wrapping_add(image as u64),
            _ => self.seed,
        }
    }

    /// The variation seed that makes picture `image` again, if the job has one.
    pub fn image_variation_seed(&self, image: usize) -> Option<u64> {
        let seed = self.variation_seed?;
        Some(match self.seed_mode {
            SeedMode::PerImage => seed.wrapping_add(image as u64),
            SeedMode::Batch => seed,
        })
    }
}

impl Request {
    /// Completes the request with the model's defaults, and draws a seed if none is given.
    ///
    /// # Errors
    /// [`Error::Field`] names the first field whose value this model cannot work with, the value, and what is allowed;
    /// [`Error::NotTextToImage`] if the model needs more than text, [`Error::Picture`] if a picture cannot be read.
    pub fn resolve(&self, model: &ModelConfig) -> Result<Job> {
        self.check_prompts()?;
        let task = Task::of(self, model)?;
        let defaults = &model.defaults;
        let (negative_prompt, negative_prompt_2) = self.negative_prompts(model)?;
        let (width, height) = self.size(model)?;
        let num_inference_steps = within(
            "num_inference_steps",
            self.num_inference_steps
                .unwrap_or(defaults.num_inference_steps),
            1..=1000,
        )?;
        let [
            original_size,
            crops_coords_top_left,
            target_size,
            negative_original_size,
            negative_crops,
            negative_target_size,
        ] = self.size_conditioning(model, task, (height, width))?;
        let (aesthetic_score, negative_aesthetic_score) = self.aesthetic_scores(model)?;
        let (denoising_start, denoising_end) = self.hand_over(model)?;
        let (variation_seed, variation_strength) = self.variation()?;
        let layers = model
            .text_encoders
            .iter()
            .map(|encoder| encoder.clip.num_hidden_layers)
            .min();
        let inpaints = task == Task::Inpaint;
        let job = Job {
            prompt: self.prompt.clone(),
            negative_prompt,
            prompt_2: second_prompt("prompt_2", &self.prompt_2, &self.prompt, model)?,
            negative_prompt_2,
            prompt_weighting: self.prompt_weighting.unwrap_or_default(),
            num_inference_steps,
            guidance_scale: within(
                "guidance_scale",
                self.guidance_scale
                    .unwrap_or_else(|| default_guidance(model, task)),
                0.0..=100.0,
            )?,
            guidance_rescale: self.guidance_rescale(model, task)?,
            width,
            height,
            seed: self.seed.unwrap_or_else(drawn_seed),
            seed_mode: self.seed_mode.unwrap_or_default(),
            num_images: within("num_images", self.num_images.unwrap_or(1), 1..=64)?,
            scheduler: scheduler::name(model, self.scheduler.as_deref())?,
            eta: within("eta", self.eta.unwrap_or(0.0), 0.0..=1.0)?,
            clip_skip: within(
                "clip_skip",
                self.clip_skip.unwrap_or(0),
                0..=layers.unwrap_or(1).saturating_sub(1),
            )?,
            vae_tiling: self.vae_tiling(model)?,
            original_size,
            crops_coords_top_left,
            target_size,
            negative_original_size,
            negative_crops_coords_top_left: negative_crops,
            negative_target_size,
            init_image: self.init_image.clone(),
            strength: self.strength(model, task)?,
            resize_mode: self.resize_mode(task)?,
            mask_image: self.mask_image.clone(),
            mask_polarity: inpaints.then(|| self.mask_polarity.unwrap_or_default()),
            mask_blur: inpaints
                .then(|| within("mask_blur", self.mask_blur.unwrap_or(0.0), 0.0..=MAX_BLUR))
                .transpose()?,
            padding_mask_crop: self
                .padding_mask_crop
                .map(|padding| within("padding_mask_crop", padding, 0..=MAX_SIDE))
                .transpose()?,
            overlay: inpaints.then(|| self.overlays()).transpose()?,
            variation_seed,
            variation_strength,
            denoising_end,
            denoising_start,
            aesthetic_score,
            negative_aesthetic_score,
            hires: self.second_pass(model, (width, height), num_inference_steps)?,
        };
        // Not every number of steps suits every scheduler, nor every mask a picture: better said now than when the run
        // starts.
        Pass::all(model, &job)?;
        Source::new(&job)?;
        Ok(job)
    }

    /// Texts are read, and kept, once for every step that changes them.
    fn check_prompts(&self) -> Result<()> {
        for (field, prompt) in [
            ("prompt", Some(&self.prompt)),
            ("negative_prompt", self.negative_prompt.as_ref()),
            ("prompt_2", self.prompt_2.as_ref()),
            ("negative_prompt_2", self.negative_prompt_2.as_ref()),
        ] {
            let length = prompt.map_or(0, String::len);
            if length > MAX_PROMPT {
                let found = format!("a text of {length} bytes");
                return Err(wrong(field, found, format!("at most {MAX_PROMPT} bytes")));
            }
        }
        Ok(())
    }

    fn vae_tiling(&self, model: &ModelConfig) -> Result<bool> {
        match self.vae_tiling {
            Some(true) if model.vae.tile().is_none() => {
                let expected =
                    "false: the autoencoder's sample_size is no multiple of four latents";
                Err(wrong("vae_tiling", true, expected))
            }
            tiling => Ok(tiling.unwrap_or(false)),
        }
    }

    fn guidance_rescale(&self, model: &ModelConfig, task: Task) -> Result<f64> {
        let share = within(
            "guidance_rescale",
            self.guidance_rescale.unwrap_or(0.0),
            0.0..=1.0,
        )?;
        if share > 0.0 && task != Task::TextToImage && !model.is_xl() {
            let expected = "0: only XL has it when there is an init_image";
            return Err(wrong("guidance_rescale", share, expected));
        }
        Ok(share)
    }

    fn resize_mode(&self, task: Task) -> Result<Option<ResizeMode>> {
        // Putting a picture back undoes how it was brought to size.
        let only = match (self.padding_mask_crop, self.overlay) {
            _ if matches!(task, Task::TextToImage | Task::HandOver) => return Ok(None),
            (Some(_), _) => Some(("fill, with padding_mask_crop", ResizeMode::Fill)),
            (None, Some(true)) => Some(("stretch, with overlay", ResizeMode::Stretch)),
            (None, _) => None,
        };
        match (self.resize_mode, only) {
            (Some(mode), Some((expected, only))) if mode != only => {
                Err(wrong("resize_mode", format!("{mode:?}"), expected))
            }
            (mode, only) => Ok(Some(
                mode.or(only.map(|(_, only)| only)).unwrap_or_default(),
            )),
        }
    }

    fn overlays(&self) -> Result<bool> {
        match (self.padding_mask_crop, self.overlay) {
            (Some(_), Some(false)) => Err(wrong("overlay", false, "true, with padding_mask_crop")),
            (Some(_), _) => Ok(true),
            (None, overlay) => Ok(overlay.unwrap_or(false)),
        }
    }

    fn negative_prompts(&self, model: &ModelConfig) -> Result<(Option<String>, Option<String>)> {
        let first = self.negative_prompt.clone();
        // Only XL's pipeline in diffusers knows the key.
        let zeros = first.is_none() && model.is_xl() && model.index.force_zeros_for_empty_prompt;
        let first = first.unwrap_or_default();
        let second = second_prompt("negative_prompt_2", &self.negative_prompt_2, &first, model)?;
        Ok(if zeros {
            (None, None)
        } else {
            (Some(first), second)
        })
    }
}

/// The model's guidance scale, but where diffusers' pipeline for the task has another.
fn default_guidance(model: &ModelConfig, task: Task) -> f64 {
    let default = model.defaults.guidance_scale;
    let of_pipeline = model.index.sd_defaults.guidance_scale.is_none() && default > 1.0;
    match task {
        Task::Inpaint if model.is_xl() && of_pipeline => 7.5,
        _ => default,
    }
}

/// A prompt of the second text encoder, which defaults to the first one's; none for a model with one encoder.
fn second_prompt(
    field: &'static str,
    given: &Option<String>,
    first: &str,
    model: &ModelConfig,
) -> Result<Option<String>> {
    let given = given.as_deref().filter(|text| !text.is_empty());
    if model.text_encoders.len() > 1 {
        return Ok(Some(given.unwrap_or(first).into()));
    }
    match given {
        Some(_) => Err(wrong(
            field,
            "a text",
            "none: this model has one text encoder",
        )),
        None => Ok(None),
    }
}

fn side(field: &'static str, value: usize, model: &ModelConfig) -> Result<usize> {
    let factor = model.vae.factor();
    if value.is_multiple_of(factor) && (factor..=MAX_SIDE).contains(&value) {
        Ok(value)
    } else {
        Err(wrong(
            field,
            value,
            format!("a multiple of {factor} from {factor} to {MAX_SIDE}"),
        ))
    }
}

fn within<T: PartialOrd + Display>(
    field: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T> {
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(wrong(
            field,
            value,
            format!("{} to {}", range.start(), range.end()),
        ))
    }
}

pub(crate) fn wrong(field: &'static str, value: impl Display, expected: impl Display) -> Error {
    Error::Field {
        field,
        value: value.to_string(),
        expected: expected.to_string(),
    }
}

/// A seed from the operating system's entropy, which the standard library seeds its hashers with. Of 32 bits, as torch's
/// generator uses no more.
fn drawn_seed() -> u64 {
    RandomState::new().hash_one("seed") & u64::from(u32::MAX)
}
