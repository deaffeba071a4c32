//! What steers the UNet: the encoded prompts, and for XL the sizes the picture is said to have had.

use std::{collections::BTreeSet, sync::Arc};

use candle_core::{Device, Tensor};
use sd_config::ModelConfig;
use sd_models::{Model, text::Conditioning};

use crate::{
    Job, Result,
    error::Doing,
    guidance,
    pass::Pass,
    prompt,
    text::{Encoder, Side, Texts},
    timeline::Timeline,
};

/// The inputs of the UNet beside latents and timestep, for one picture.
///
/// They stay the same during a run, but for prompts that change from step to step and for XL's sizes in a second pass. Their
/// shapes always stay: all texts of a run are encoded to as many tokens as its longest.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Conditions {
    /// From the prompt.
    pub positive: Branch,
    /// From the negative prompt; None when the job is not guided.
    pub negative: Option<Branch>,
    /// The guidance scale as a UNet input, `[1, time_cond_proj_dim]` f32, for models distilled under guidance (LCM).
    pub guidance_embedding: Option<Tensor>,
    /// The ends of prompts that the text encoders had no room for, decoded from their tokens.
    pub truncated: Vec<String>,
}

/// One side of classifier-free guidance.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Branch {
    /// The encoded text, `[1, tokens, features]` f32: diffusers' `prompt_embeds` or `negative_prompt_embeds`.
    pub hidden: Tensor,
    /// XL: the text in one vector, `[1, features]` f32.
    pub pooled: Option<Tensor>,
    /// XL: original height and width, top and left of the crop, target height and width, `[1, 6]` f32. Its refiner, `[1, 5]`:
    /// the aesthetic score in place of the target.
    ///
    /// Always those of this branch. diffusers mixes up the branches' when there are several pictures and negative sizes:
    /// it repeats `[negative, positive]` beside samples that are all negative first.
    pub time_ids: Option<Tensor>,
}

impl Conditions {
    /// Encodes a job's prompts for the steps of a run, which are counted through all its passes.
    pub(crate) fn encode(model: &Model, job: &Job, passes: &[Pass]) -> Result<Timeline<Self>> {
        let _span = tracing::info_span!("encode_text").entered();
        let steps: Vec<usize> = passes.iter().map(Pass::steps).collect();
        let texts = |field, prompts: &[&str]| {
            prompt::timeline(field, prompts, job.prompt_weighting, &steps)
        };
        let positive = texts("prompt", &prompts(&job.prompt, &job.prompt_2))?;
        let negative = match &job.negative_prompt {
            _ if !is_guided(&model.config, job) => None,
            Some(prompt) => Some(prompts(prompt, &job.negative_prompt_2)),
            None => Some(vec![]),
        };
        let negative = negative
            .map(|negative| texts("negative_prompt", &negative))
            .transpose()?;
        let all = positive
            .values()
            .chain(negative.iter().flat_map(Timeline::values))
            .map(Arc::as_ref);
        let encoder = Encoder::new(&model.text, job, all)?;

        let mut truncated = Vec::new();
        let mut encode = |texts: &Texts, side| {
            let text = encoder.encode(texts, side)?;
            truncated.extend_from_slice(&text.truncated);
            Ok(text)
        };
        let positive = positive.try_map(|texts| encode(texts, Side::Positive))?;
        let negative = negative
            .as_ref()
            .map(|negative| negative.try_map(|texts| encode(texts, Side::Negative)))
            .transpose()?;
        let mut ids = Timeline::new(time_ids(job));
        if let Some(second) = job.second_pass() {
            ids.change(steps[0], time_ids(&second));
        }
        let device = positive.at(0).hidden.device();
        let guidance_embedding = guidance_embedding(model, job, device)?;

        let changes = negative.iter().flat_map(Timeline::changes);
        let changes = changes.chain(positive.changes()).chain(ids.changes());
        Timeline::try_from_fn(changes.collect::<BTreeSet<_>>(), |step| {
            let [positive_ids, negative_ids] = ids.at(step);
            Ok(Self {
                positive: Branch::new(positive.at(step), positive_ids)?,
                negative: negative
                    .as_ref()
                    .map(|negative| Branch::new(negative.at(step), negative_ids))
                    .transpose()?,
                guidance_embedding: guidance_embedding.clone(),
                truncated: truncated.clone(),
            })
        })
    }

    /// Where the model computes.
    pub(crate) fn device(&self) -> &Device {
        self.positive.hidden.device()
    }

    /// The branches a UNet call computes, in diffusers' order.
    pub(crate) fn branches(&self) -> impl Iterator<Item = &Branch> {
        self.negative.iter().chain([&self.positive])
    }
}

impl Branch {
    fn new(text: &Conditioning, time_ids: &[f32]) -> Result<Self> {
        let count = time_ids.len();
        let time_ids = (count > 0)
            .then(|| Tensor::from_slice(time_ids, (1, count), text.hidden.device()))
            .transpose()
            .doing("placing the size conditioning")?;
        Ok(Self {
            hidden: text.hidden.clone(),
            pooled: text.pooled.clone(),
            time_ids,
        })
    }
}

/// What XL is told about the picture beside the text, and the same for the negative prompt; nothing for other models.
fn time_ids(job: &Job) -> [Vec<f32>; 2] {
    let ids = |pairs: [Option<(usize, usize)>; 3], score: Option<f64>| {
        let sizes = pairs.into_iter().flatten();
        let sizes = sizes.flat_map(|(a, b)| [a as f32, b as f32]);
        sizes.chain(score.map(|score| score as f32)).collect()
    };
    [
        ids(
            [
                job.original_size,
                job.crops_coords_top_left,
                job.target_size,
            ],
            job.aesthetic_score,
        ),
        ids(
            [
                job.negative_original_size,
                job.negative_crops_coords_top_left,
                job.negative_target_size,
            ],
            job.negative_aesthetic_score,
        ),
    ]
}

/// Whether a job takes two UNet samples a picture.
pub(crate) fn is_guided(model: &ModelConfig, job: &Job) -> bool {
    job.guidance_scale > 1.0 && !model.uses_guidance_embedding()
}

/// One prompt for each text encoder.
fn prompts<'a>(first: &'a str, second: &'a Option<String>) -> Vec<&'a str> {
    [first].into_iter().chain(second.as_deref()).collect()
}

fn guidance_embedding(model: &Model, job: &Job, device: &Device) -> Result<Option<Tensor>> {
    let Some(size) = model.config.unet.time_cond_proj_dim else {
        return Ok(None);
    };
    let embedding = guidance::embedding(job.guidance_scale, size);
    Tensor::from_vec(embedding, (1, size), device)
        .doing("placing the guidance embedding")
        .map(Some)
}
