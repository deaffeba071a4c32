//! A whole model.

use serde::{Deserialize, Serialize};

use crate::json::File;
use crate::{
    AdditionEmbedType, ClipConfig, Error, ModelIndex, Result, SchedulerFile, UnetConfig, VaeConfig,
    Version, detect, files, fit, preset,
};

/// Longest side of a picture, in pixels.
pub const MAX_SIDE: usize = 8192;

/// A text encoder and where it lies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextEncoderConfig {
    /// The network.
    pub clip: ClipConfig,
    /// `text_encoder` or `text_encoder_2`.
    pub folder: &'static str,
    /// `tokenizer` or `tokenizer_2`.
    pub tokenizer_folder: &'static str,
}

/// What a request that does not say gets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Steps of the scheduler.
    pub num_inference_steps: usize,
    /// Guidance scale; 1 and less: no guidance.
    pub guidance_scale: f64,
}

/// Everything about a model but its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// The published model that this is, or was made from; none: one of other dimensions.
    pub version: Option<Version>,
    /// `model_index.json`.
    pub index: ModelIndex,
    /// In the order of use: one, or two for XL, of which the refiner has only `text_encoder_2`.
    pub text_encoders: Vec<TextEncoderConfig>,
    /// `unet/config.json`.
    pub unet: UnetConfig,
    /// `vae/config.json`.
    pub vae: VaeConfig,
    /// `scheduler/scheduler_config.json`, with the class that `model_index.json` names.
    pub scheduler: SchedulerFile,
    /// What a request that does not say gets.
    pub defaults: Defaults,
}

impl ModelConfig {
    /// The built-in configuration of a published model.
    pub fn preset(version: Version) -> Self {
        preset::preset(version)
    }

    /// Parses the files of a diffusers folder and checks everything that can be checked without
    /// weights.
    ///
    /// `read` gives the text of a file by its path in the folder, such as `unet/config.json`, or
    /// None when there is no such file; [`files::config_files`] lists what it may be asked for.
    ///
    /// # Errors
    /// A missing file, one that cannot be parsed, a value that is not supported or does not fit the
    /// others.
    pub fn from_files(read: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let missing = |file: &str| Error::Missing {
            file: file.to_owned(),
        };
        let text = |file: &str| read(file).ok_or_else(|| missing(file));
        let index = ModelIndex::parse(&text(files::MODEL_INDEX)?)?;
        let text_encoder = |folder, tokenizer_folder, file| {
            let Some(class) = index.components.get(folder) else {
                return Ok(None);
            };
            let mut clip = ClipConfig::parse_as(File(file), &text(file)?)?;
            clip.architectures = vec![class.clone()];
            Ok(Some(TextEncoderConfig {
                clip,
                folder,
                tokenizer_folder,
            }))
        };
        let first = text_encoder("text_encoder", "tokenizer", files::TEXT_ENCODER_CONFIG)?;
        let second = text_encoder(
            "text_encoder_2",
            "tokenizer_2",
            files::TEXT_ENCODER_2_CONFIG,
        )?;
        let text_encoders = first.into_iter().chain(second).collect();
        let unet = UnetConfig::parse(&text(files::UNET_CONFIG)?)?;
        let vae = VaeConfig::parse(&text(files::VAE_CONFIG)?)?;
        let mut scheduler = SchedulerFile::parse(&text(files::SCHEDULER_CONFIG)?)?;
        if let Some(class) = index.components.get("scheduler") {
            scheduler.class_name.clone_from(class);
        }
        let version = detect::version(&unet, &scheduler);
        let defaults = detect::defaults(version, &index, &unet, &vae);
        let config = Self {
            version,
            index,
            text_encoders,
            unet,
            vae,
            scheduler,
            defaults,
        };
        fit::check(&config)?;
        Ok(config)
    }

    /// Whether this is of the XL family: the pooled text and the sizes are inputs of the UNet.
    pub fn is_xl(&self) -> bool {
        self.unet.addition_embed_type == Some(AdditionEmbedType::TextTime)
    }

    /// Whether the guidance scale is an input of the UNet (latent consistency models), so that one
    /// call a step does.
    pub fn uses_guidance_embedding(&self) -> bool {
        self.unet.time_cond_proj_dim.is_some()
    }

    /// Checks that the model can make a picture of this size, in pixels.
    ///
    /// # Errors
    /// [`Error::Size`] unless both are multiples of the autoencoder's factor, up to [`MAX_SIDE`].
    pub fn validate_size(&self, width: usize, height: usize) -> Result<()> {
        let factor = self.vae.factor();
        for (axis, value) in [("width", width), ("height", height)] {
            if !value.is_multiple_of(factor) || !(factor..=MAX_SIDE).contains(&value) {
                return Err(Error::Size {
                    axis,
                    value,
                    factor,
                    max: MAX_SIDE,
                });
            }
        }
        Ok(())
    }
}
