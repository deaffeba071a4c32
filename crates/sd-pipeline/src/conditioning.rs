//! What steers the UNet: the encoded prompts, and for XL the sizes the picture is said to have had.

use candle_core::{Device, Tensor};
use sd_models::{Model, text::Conditioning};

use crate::{Job, Result, error::Doing, guidance};

/// The inputs of the UNet that stay the same during a run, for one picture.
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
    /// Encodes a job's prompts.
    pub(crate) fn encode(model: &Model, job: &Job) -> Result<Self> {
        let _span = tracing::info_span!("encode_text").entered();
        let text = &model.text;
        let positive = text.encode(&prompts(&job.prompt, &job.prompt_2), Some(job.clip_skip))?;
        let negative = match &job.negative_prompt {
            _ if !is_guided(model, job) => None,
            None => Some(text.zeros()?),
            // diffusers leaves out no layers here.
            Some(prompt) => Some(text.encode(&prompts(prompt, &job.negative_prompt_2), None)?),
        };
        let texts = [Some(&positive), negative.as_ref()].into_iter().flatten();
        let truncated = texts.flat_map(|text| text.truncated.clone()).collect();
        let guidance_embedding = guidance_embedding(model, job, positive.hidden.device())?;
        let [ids, negative_ids] = time_ids(job);
        Ok(Self {
            positive: Branch::new(positive, ids)?,
            negative: negative
                .map(|text| Branch::new(text, negative_ids))
                .transpose()?,
            guidance_embedding,
            truncated,
        })
    }

    /// The same text, with the sizes of another job.
    pub(crate) fn sized(&self, job: &Job) -> Result<Self> {
        let mut sized = self.clone();
        let [ids, negative_ids] = time_ids(job);
        sized.positive.set_time_ids(ids)?;
        if let Some(negative) = &mut sized.negative {
            negative.set_time_ids(negative_ids)?;
        }
        Ok(sized)
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
    fn new(text: Conditioning, time_ids: Vec<f32>) -> Result<Self> {
        let mut branch = Self {
            hidden: text.hidden,
            pooled: text.pooled,
            time_ids: None,
        };
        branch.set_time_ids(time_ids)?;
        Ok(branch)
    }

    fn set_time_ids(&mut self, ids: Vec<f32>) -> Result<()> {
        let count = ids.len();
        self.time_ids = (count > 0)
            .then(|| Tensor::from_vec(ids, (1, count), self.hidden.device()))
            .transpose()
            .doing("placing the size conditioning")?;
        Ok(())
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
fn is_guided(model: &Model, job: &Job) -> bool {
    job.guidance_scale > 1.0 && !model.config.uses_guidance_embedding()
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
