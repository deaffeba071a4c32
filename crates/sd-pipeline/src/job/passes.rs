//! Where a run starts and ends, and its second pass.

use sd_config::ModelConfig;

use super::{drawn_seed, side, task::Task, unused, within, wrong};
use crate::{Hires, Job, Request, Result};

impl Request {
    pub(super) fn strength(&self, model: &ModelConfig, task: Task) -> Result<Option<f64>> {
        let default = match (task, model.is_xl()) {
            (Task::TextToImage | Task::HandOver, _) => return Ok(None),
            (Task::ImageToImage, false) => 0.8,
            (Task::ImageToImage, true) => 0.3,
            (Task::Inpaint, false) => 1.0,
            (Task::Inpaint, true) => 0.9999,
        };
        within("strength", self.strength.unwrap_or(default), 0.0..=1.0).map(Some)
    }

    /// `denoising_start` and `denoising_end`.
    pub(super) fn hand_over(&self, model: &ModelConfig) -> Result<(Option<f64>, Option<f64>)> {
        for (field, share) in [
            ("denoising_start", self.denoising_start),
            ("denoising_end", self.denoising_end),
        ] {
            if !model.is_xl() {
                unused(field, share, "none: only XL hands over to a refiner")?;
            }
            // NaN, too, is not inside.
            if let Some(share) = share.filter(|share| !(*share > 0.0 && *share < 1.0)) {
                return Err(wrong(field, share, "more than 0 and less than 1"));
            }
        }
        match (self.denoising_start, self.denoising_end) {
            (Some(start), Some(end)) if start >= end => {
                Err(wrong("denoising_end", end, format!("more than {start}")))
            }
            shares => Ok(shares),
        }
    }

    /// `variation_seed` and `variation_strength`: none where the noise is not bent.
    pub(super) fn variation(&self) -> Result<(Option<u64>, Option<f64>)> {
        let strength = self.variation_strength;
        if strength.is_none() {
            let expected = "none: there is no variation_strength";
            unused("variation_seed", self.variation_seed, expected)?;
        }
        match within("variation_strength", strength.unwrap_or(0.0), 0.0..=1.0)? {
            0.0 => Ok((None, None)),
            strength => {
                let seed = self.variation_seed.unwrap_or_else(drawn_seed);
                Ok((Some(seed), Some(strength)))
            }
        }
    }

    /// The second pass with its defaults, for a first one of this width and height.
    pub(super) fn second_pass(
        &self,
        model: &ModelConfig,
        (width, height): (usize, usize),
        steps: usize,
    ) -> Result<Option<Hires>> {
        let Some(hires) = &self.hires else {
            return Ok(None);
        };
        if hires.width.is_some() || hires.height.is_some() {
            let expected = "none: width and height say the size";
            unused("hires.scale", hires.scale, expected)?;
        }
        let down = |pixels: f64| pixels as usize / model.vae.factor() * model.vae.factor();
        let (wide, high) = (width as f64, height as f64);
        let (width, height) = match (hires.width, hires.height) {
            (Some(width), Some(height)) => (width, height),
            (Some(width), None) => (width, down(high * width as f64 / wide)),
            (None, Some(height)) => (down(wide * height as f64 / high), height),
            (None, None) => {
                let scale = within("hires.scale", hires.scale.unwrap_or(2.0), 1.0..=8.0)?;
                (down(wide * scale), down(high * scale))
            }
        };
        Ok(Some(Hires {
            scale: None,
            width: Some(side("hires.width", width, model)?),
            height: Some(side("hires.height", height, model)?),
            upscaler: Some(hires.upscaler.unwrap_or_default()),
            strength: Some(within(
                "hires.strength",
                hires.strength.unwrap_or(0.7),
                0.0..=1.0,
            )?),
            num_inference_steps: Some(within(
                "hires.num_inference_steps",
                hires.num_inference_steps.unwrap_or(steps),
                1..=1000,
            )?),
        }))
    }
}

impl Job {
    /// The second pass as a job of its own, but for the picture it starts from; None for a run of one pass.
    pub(crate) fn second_pass(&self) -> Option<Self> {
        let hires = self.hires.as_ref()?;
        let (width, height) = (hires.width?, hires.height?);
        // The picture's own size stands for itself, whatever that is.
        let first = (self.height, self.width);
        let sized = |size: Option<(usize, usize)>| match size {
            Some(size) if size == first => Some((height, width)),
            other => other,
        };
        Some(Self {
            width,
            height,
            num_inference_steps: hires.num_inference_steps?,
            strength: Some(hires.strength?),
            hires: None,
            original_size: sized(self.original_size),
            target_size: sized(self.target_size),
            negative_original_size: sized(self.negative_original_size),
            negative_crops_coords_top_left: self.crops_coords_top_left,
            negative_target_size: sized(self.negative_target_size),
            ..self.clone()
        })
    }
}
