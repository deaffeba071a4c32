//! What a request asks for, and whether a model can do it.

use std::fmt::Debug;

use sd_config::ModelConfig;

use super::wrong;
use crate::{Error, Request, Result};

/// What a run starts from decides the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Noise.
    TextToImage,
    /// A picture.
    ImageToImage,
    /// A picture, a part of which is painted anew.
    Inpaint,
    /// Another model's latents.
    HandOver,
}

impl Task {
    /// The task of a request.
    ///
    /// # Errors
    /// Fields that do not go together, and models that cannot do it.
    pub(super) fn of(request: &Request, model: &ModelConfig) -> Result<Self> {
        let task = match (&request.init_image, &request.mask_image) {
            (None, Some(_)) => {
                let expected = "none: there is no init_image to paint in";
                return Err(wrong("mask_image", "a picture", expected));
            }
            (Some(_), Some(_)) => Self::Inpaint,
            (Some(_), None) => Self::ImageToImage,
            (None, None) if request.denoising_start.is_some() => Self::HandOver,
            (None, None) => Self::TextToImage,
        };
        task.check_fields(request)?;
        task.check_model(model)?;
        Ok(task)
    }

    /// Refuses what would have no effect.
    fn check_fields(self, request: &Request) -> Result<()> {
        if self != Self::HandOver {
            let expected = "none: init_image starts where strength says";
            unused("denoising_start", request.denoising_start, expected)?;
        }
        if !matches!(self, Self::ImageToImage | Self::Inpaint) {
            let expected = "none: there is no init_image";
            unused("strength", request.strength, expected)?;
            unused("resize_mode", request.resize_mode, expected)?;
        }
        if self != Self::Inpaint {
            let expected = "none: there is no mask_image";
            unused("mask_polarity", request.mask_polarity, expected)?;
            unused("mask_blur", request.mask_blur, expected)?;
            unused("padding_mask_crop", request.padding_mask_crop, expected)?;
            unused("overlay", request.overlay, expected)?;
        }
        if self != Self::TextToImage || request.denoising_end.is_some() {
            let expected = "none: only finished text-to-image has a second pass";
            unused("hires", request.hires.as_ref(), expected)?;
        }
        Ok(())
    }

    fn check_model(self, model: &ModelConfig) -> Result<()> {
        let (unet, latents) = (&model.unet, model.vae.latent_channels);
        let inpaints = unet.in_channels == 2 * latents + 1;
        let reason = if unet.class_embed_type.is_some() || unet.num_class_embeds.is_some() {
            "its UNet also takes a class label"
        } else if unet.in_channels != latents && !inpaints {
            "its UNet also takes another image"
        } else if inpaints && self == Self::TextToImage {
            "it is an inpainting model, which needs init_image and mask_image"
        } else if inpaints && self != Self::Inpaint {
            let expected = "a mask: this is an inpainting model";
            return Err(wrong("mask_image", "none", expected));
        } else if model.index.requires_aesthetics_score && self == Self::TextToImage {
            "it is a refiner, which goes on with init_image or another model's latents"
        } else {
            return Ok(());
        };
        Err(Error::NotTextToImage { reason })
    }
}

/// Refuses a field that would have no effect.
pub(super) fn unused(field: &'static str, given: Option<impl Debug>, expected: &str) -> Result<()> {
    match given {
        Some(value) => Err(wrong(field, format!("{value:?}"), expected)),
        None => Ok(()),
    }
}
