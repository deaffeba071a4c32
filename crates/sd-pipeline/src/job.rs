//! From optional fields to a complete job, the one place where defaults and limits are decided.

use std::{
    fmt::Display,
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
};

use sd_config::ModelConfig;
use serde::Serialize;

use crate::{Error, Request, Result, SeedMode, scheduler};

/// Longest side of a picture, in pixels.
const MAX_SIDE: usize = 8192;
/// Largest number of XL's size conditioning, in pixels.
const MAX_CONDITION: usize = 65_536;

/// A [`Request`] with every default filled in and every limit checked, see [`Request::resolve`].
///
/// Its fields are the request's, and so is its JSON: read as a request and resolved again, it is the same job. `None` is
/// left only where the model has no use for the field, and for a negative prompt of zeros.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "documented at the fields of `Request`")]
pub struct Job {
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub prompt_2: Option<String>,
    pub negative_prompt_2: Option<String>,
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
    pub original_size: Option<(usize, usize)>,
    pub crops_coords_top_left: Option<(usize, usize)>,
    pub target_size: Option<(usize, usize)>,
    pub negative_original_size: Option<(usize, usize)>,
    pub negative_crops_coords_top_left: Option<(usize, usize)>,
    pub negative_target_size: Option<(usize, usize)>,
}

impl Job {
    /// The seed that makes picture `image` of this job again: alone in [`SeedMode::PerImage`], with all the others in
    /// [`SeedMode::Batch`].
    pub fn image_seed(&self, image: usize) -> u64 {
        match self.seed_mode {
            SeedMode::PerImage => self.seed.wrapping_add(image as u64),
            SeedMode::Batch => self.seed,
        }
    }
}

impl Request {
    /// Completes the request with the model's defaults, and draws a seed if none is given.
    ///
    /// # Errors
    /// [`Error::Field`] names the first field whose value this model cannot work with, the value, and what is allowed;
    /// [`Error::NotTextToImage`] if the model needs more than text.
    pub fn resolve(&self, model: &ModelConfig) -> Result<Job> {
        turns_text_into_images(model)?;
        let defaults = &model.defaults;
        let (negative_prompt, negative_prompt_2) = self.negative_prompts(model)?;
        let width = side("width", self.width.unwrap_or(defaults.width), model)?;
        let height = side("height", self.height.unwrap_or(defaults.height), model)?;
        let [
            original_size,
            crops_coords_top_left,
            target_size,
            negative_original_size,
            negative_crops,
            negative_target_size,
        ] = self.sizes(model, (height, width))?;
        let layers = model
            .text_encoders
            .iter()
            .map(|encoder| encoder.clip.num_hidden_layers)
            .min();
        let job = Job {
            prompt: self.prompt.clone(),
            negative_prompt,
            prompt_2: second_prompt("prompt_2", &self.prompt_2, &self.prompt, model)?,
            negative_prompt_2,
            num_inference_steps: within(
                "num_inference_steps",
                self.num_inference_steps
                    .unwrap_or(defaults.num_inference_steps),
                1..=1000,
            )?,
            guidance_scale: within(
                "guidance_scale",
                self.guidance_scale.unwrap_or(defaults.guidance_scale),
                0.0..=100.0,
            )?,
            guidance_rescale: within(
                "guidance_rescale",
                self.guidance_rescale.unwrap_or(0.0),
                0.0..=1.0,
            )?,
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
            original_size,
            crops_coords_top_left,
            target_size,
            negative_original_size,
            negative_crops_coords_top_left: negative_crops,
            negative_target_size,
        };
        // Not every number of steps suits every scheduler: better said now than when the run starts.
        scheduler::build(model, &job)?;
        Ok(job)
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

    /// The six pairs of XL's size conditioning, in the order of [`Job`]'s fields; none for a model without it.
    fn sizes(
        &self,
        model: &ModelConfig,
        picture: (usize, usize),
    ) -> Result<[Option<(usize, usize)>; 6]> {
        let conditioned = model.is_xl();
        let given = [
            ("original_size", self.original_size),
            ("crops_coords_top_left", self.crops_coords_top_left),
            ("target_size", self.target_size),
            ("negative_original_size", self.negative_original_size),
            (
                "negative_crops_coords_top_left",
                self.negative_crops_coords_top_left,
            ),
            ("negative_target_size", self.negative_target_size),
        ];
        for (field, pair) in given {
            let Some(pair) = pair else {
                continue;
            };
            if !conditioned {
                return Err(wrong(
                    field,
                    format!("{pair:?}"),
                    "none: this model is not conditioned on sizes",
                ));
            }
            within(field, pair.0, 0..=MAX_CONDITION)?;
            within(field, pair.1, 0..=MAX_CONDITION)?;
        }
        if !conditioned {
            return Ok([None; 6]);
        }
        let positive = [
            self.original_size.unwrap_or(picture),
            self.crops_coords_top_left.unwrap_or_default(),
            self.target_size.unwrap_or(picture),
        ];
        let negative = match (self.negative_original_size, self.negative_target_size) {
            (Some(original), Some(target)) => [
                original,
                self.negative_crops_coords_top_left.unwrap_or_default(),
                target,
            ],
            _ => positive,
        };
        let ([a, b, c], [d, e, f]) = (positive, negative);
        Ok([a, b, c, d, e, f].map(Some))
    }
}

/// Refuses the models that need an image, a mask or a class beside the text.
fn turns_text_into_images(model: &ModelConfig) -> Result<()> {
    let unet = &model.unet;
    let reason = if model.index.requires_aesthetics_score {
        "it is a refiner, which goes on with another model's images"
    } else if unet.in_channels != model.vae.latent_channels {
        "its UNet also takes an image, and a mask if it is an inpainting model"
    } else if unet.class_embed_type.is_some() || unet.num_class_embeds.is_some() {
        "its UNet also takes a class label"
    } else {
        return Ok(());
    };
    Err(Error::NotTextToImage { reason })
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
