//! The size of the pictures, and what XL is told about sizes.

use sd_config::ModelConfig;

use super::{side, task::Task, unused, within, wrong};
use crate::{Request, Result, source};

/// Largest number of XL's size conditioning, in pixels.
const MAX_CONDITION: usize = 65_536;

/// Height and width, or top and left; none where the model has no use for them.
type Pair = Option<(usize, usize)>;

impl Request {
    /// Width and height that the model works at.
    pub(super) fn size(&self, model: &ModelConfig) -> Result<(usize, usize)> {
        let factor = model.vae.factor();
        let (width, height) = match &self.init_image {
            // As in diffusers: a part is brought to the model's own size.
            Some(picture) if self.padding_mask_crop.is_none() => {
                let (width, height) = source::dimensions("init_image", picture)?;
                let missing = self.width.is_none() && width < factor
                    || self.height.is_none() && height < factor;
                if missing {
                    return Err(wrong(
                        "init_image",
                        format!("{width}x{height} pixels"),
                        format!("{factor}x{factor} at least, or width and height"),
                    ));
                }
                (width - width % factor, height - height % factor)
            }
            _ => (model.defaults.width, model.defaults.height),
        };
        Ok((
            side("width", self.width.unwrap_or(width), model)?,
            side("height", self.height.unwrap_or(height), model)?,
        ))
    }

    /// The six pairs of XL's size conditioning, in the order of [`Job`](crate::Job)'s fields.
    pub(super) fn size_conditioning(
        &self,
        model: &ModelConfig,
        task: Task,
        picture: (usize, usize),
    ) -> Result<[Pair; 6]> {
        let refines = model.index.requires_aesthetics_score;
        for (field, pair) in [
            ("original_size", self.original_size),
            ("crops_coords_top_left", self.crops_coords_top_left),
            ("target_size", self.target_size),
            ("negative_original_size", self.negative_original_size),
            (
                "negative_crops_coords_top_left",
                self.negative_crops_coords_top_left,
            ),
            ("negative_target_size", self.negative_target_size),
        ] {
            if !model.is_xl() {
                unused(field, pair, "none: this model is not conditioned on sizes")?;
            }
            if refines && field.ends_with("target_size") {
                unused(field, pair, "none: a refiner is told an aesthetic score")?;
            }
            for number in pair.into_iter().flat_map(|(a, b)| [a, b]) {
                within(field, number, 0..=MAX_CONDITION)?;
            }
        }
        if !model.is_xl() {
            return Ok([None; 6]);
        }
        let original = self.original_size.unwrap_or(picture);
        let crops = self.crops_coords_top_left.unwrap_or_default();
        let target = self.target_size.unwrap_or(picture);
        let negative_crops = self.negative_crops_coords_top_left.unwrap_or_default();
        let (negative_original, negative_crops, negative_target) = match task {
            Task::TextToImage => match (self.negative_original_size, self.negative_target_size) {
                (Some(original), Some(target)) => (original, negative_crops, target),
                _ => (original, crops, target),
            },
            // diffusers' other pipelines take each size alone, and only the refiner's negative crop.
            _ => (
                self.negative_original_size.unwrap_or(original),
                if refines { negative_crops } else { crops },
                self.negative_target_size.unwrap_or(target),
            ),
        };
        let of_target = |target| (!refines).then_some(target);
        Ok([
            Some(original),
            Some(crops),
            of_target(target),
            Some(negative_original),
            Some(negative_crops),
            of_target(negative_target),
        ])
    }

    /// The aesthetic score of a refiner, and the negative prompt's.
    pub(super) fn aesthetic_scores(
        &self,
        model: &ModelConfig,
    ) -> Result<(Option<f64>, Option<f64>)> {
        let score = |field, given: Option<f64>, default| match given {
            _ if model.index.requires_aesthetics_score => {
                within(field, given.unwrap_or(default), 0.0..=10.0).map(Some)
            }
            given => unused(field, given, "none: this model is no refiner").map(|()| None),
        };
        Ok((
            score("aesthetic_score", self.aesthetic_score, 6.0)?,
            score(
                "negative_aesthetic_score",
                self.negative_aesthetic_score,
                2.5,
            )?,
        ))
    }
}
