//! Pictures of a run on its way.

use std::{fmt, str::FromStr};

use image::RgbImage;
use sd_config::LatentRgb;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Pipeline, Result, Run,
    error::Doing,
    image::{to_rgb, unit_range},
    job::wrong,
    latent_rgb,
};

/// How a preview is made. Names in text and in JSON: `linear`, `tiny`, `full`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewKind {
    /// One pixel for each latent pixel: an eighth of the picture's width and height. It costs nothing beside a step, but
    /// for the first one of a pipeline: see [`Pipeline::latent_rgb`].
    #[default]
    Linear,
    /// At full size by a tiny decoder, which [`PipelineBuilder::tiny_vae`](crate::PipelineBuilder::tiny_vae) loads.
    Tiny,
    /// By the model's autoencoder, as the finished picture is made.
    Full,
}

impl FromStr for PreviewKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "linear" => Ok(Self::Linear),
            "tiny" => Ok(Self::Tiny),
            "full" => Ok(Self::Full),
            other => Err(wrong("preview_kind", other, "linear, tiny or full")),
        }
    }
}

impl fmt::Display for PreviewKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Tiny => "tiny",
            Self::Full => "full",
        })
    }
}

impl Run {
    /// What the run would come to as far as its last UNet call can tell: pictures of
    /// [`denoised`](Self::denoised), one for each of the job. Where there is none, they show the latents, noise and all.
    ///
    /// The run stays as it is: with and without previews it ends in the same bytes.
    ///
    /// ```
    /// use sd_pipeline::{Pipeline, PreviewKind, Request, builtin_model};
    ///
    /// let pipeline = Pipeline::builder(builtin_model()).build()?;
    /// let request = Request { num_inference_steps: Some(2), ..Request::new("a red circle on a white background") };
    /// let mut run = pipeline.start(&request)?;
    /// run.advance(&pipeline)?;
    /// assert_eq!(run.preview(&pipeline, PreviewKind::Linear)?[0].dimensions(), (16, 16));
    /// assert_eq!(run.preview(&pipeline, PreviewKind::Full)?[0].dimensions(), (128, 128));
    /// # Ok::<(), sd_pipeline::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OtherPipeline`]; [`Error::NoTinyVae`]; [`Error::NotFinite`]; the autoencoder failed.
    pub fn preview(&self, pipeline: &Pipeline, kind: PreviewKind) -> Result<Vec<RgbImage>> {
        (0..self.job.num_images)
            .map(|image| self.preview_of(pipeline, kind, image))
            .collect()
    }

    /// The [`preview`](Self::preview) of picture `image` alone, from 0: the others cost nothing.
    ///
    /// # Errors
    /// [`Error::Field`] if the job has no such picture; otherwise as for all.
    pub fn preview_of(
        &self,
        pipeline: &Pipeline,
        kind: PreviewKind,
        image: usize,
    ) -> Result<RgbImage> {
        pipeline.check_owns(self)?;
        let images = self.job.num_images;
        let missing = || wrong("image", image, format!("less than the {images} of the job"));
        if image >= images {
            return Err(missing());
        }
        let _span = tracing::debug_span!("preview", %kind, image).entered();
        let latents = self.denoised.as_ref().unwrap_or(&self.latents);
        let latents = latents
            .narrow(0, image, 1)
            .doing("taking a picture's latents")?;
        let decoded = match kind {
            PreviewKind::Linear => latent_rgb::decode(pipeline.latent_rgb()?, &latents)?,
            PreviewKind::Tiny => {
                let decoder = pipeline.tiny_vae.as_ref().ok_or(Error::NoTinyVae)?;
                decoder.decode(&latents)?
            }
            PreviewKind::Full => self.decoded(pipeline, &latents)?,
        };
        to_rgb(&unit_range(&decoded)?)?.pop().ok_or_else(missing)
    }
}

impl Pipeline {
    /// The colours that [`PreviewKind::Linear`] shows for this model's latents: those that its files bring
    /// (`sd_latent_rgb` in `vae/config.json`), or else a fit to its own autoencoder. The first call then encodes one
    /// picture of 256x256 pixels; later ones know the result.
    ///
    /// # Errors
    /// The autoencoder failed.
    pub fn latent_rgb(&self) -> Result<&LatentRgb> {
        if let Some(known) = &self.config().vae.sd_latent_rgb {
            return Ok(known);
        }
        if let Some(fitted) = self.latent_rgb.get() {
            return Ok(fitted);
        }
        let factor = self.config().vae.factor();
        let fitted = latent_rgb::of_autoencoder(&self.model.vae, factor)?;
        Ok(self.latent_rgb.get_or_init(|| fitted))
    }
}
