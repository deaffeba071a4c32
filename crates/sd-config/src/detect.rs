//! Which published model a folder holds, and what a run takes by default.

use crate::{
    AdditionEmbedType, Defaults, ModelIndex, PerBlock, PredictionType, SchedulerFile,
    TimestepSpacing, UnetConfig, VaeConfig, Version,
};

/// The published model with a UNet of these dimensions and a schedule of this kind.
pub(crate) fn version(unet: &UnetConfig, scheduler: &SchedulerFile) -> Option<Version> {
    let PerBlock::Same(context) = unet.cross_attention_dim else {
        return None;
    };
    let inpaint = unet.in_channels == 9;
    let epsilon = scheduler
        .prediction_type
        .is_none_or(|kind| kind == PredictionType::Epsilon);
    // The turbo models have the dimensions of 2.1 and XL; their files differ in size and spacing
    // only.
    let turbo = epsilon
        && unet.sample_size == Some(PerBlock::Same(64))
        && scheduler.timestep_spacing == Some(TimestepSpacing::Trailing);
    match (
        unet.addition_embed_type,
        context,
        unet.block_out_channels.as_slice(),
    ) {
        (None, 768, [320, 640, 1280, 1280]) => Some(match unet.time_cond_proj_dim {
            Some(_) => Version::Lcm,
            None if inpaint => Version::V1_5Inpaint,
            None => Version::V1_5,
        }),
        (None, 1024, [320, 640, 1280, 1280]) => Some(match (inpaint, turbo, epsilon) {
            (true, _, _) => Version::V2Inpaint,
            (_, true, _) => Version::SdTurbo,
            (_, _, true) => Version::V2_1Base,
            (_, _, false) => Version::V2_1,
        }),
        (Some(AdditionEmbedType::TextTime), 2048, [320, 640, 1280]) => {
            Some(match (inpaint, turbo) {
                (true, _) => Version::XlInpaint,
                (_, true) => Version::XlTurbo,
                (_, false) => Version::Xl,
            })
        }
        (Some(AdditionEmbedType::TextTime), 1280, [384, 768, 1536, 1536]) => {
            Some(Version::XlRefiner)
        }
        _ => None,
    }
}

/// The UNet's size, and the steps and guidance of the model itself, else of the version, else those
/// of diffusers' pipeline for the family.
pub(crate) fn defaults(
    version: Option<Version>,
    index: &ModelIndex,
    unet: &UnetConfig,
    vae: &VaeConfig,
) -> Defaults {
    let (num_inference_steps, guidance_scale) = match (version, unet.addition_embed_type) {
        (Some(Version::XlTurbo | Version::SdTurbo), _) => (1, 0.0),
        _ if unet.time_cond_proj_dim.is_some() => (4, 8.5),
        (Some(Version::XlInpaint), _) => (50, 7.5),
        (_, Some(AdditionEmbedType::TextTime)) => (50, 5.0),
        (_, None) => (50, 7.5),
    };
    let size = unet.sample_size.as_ref().unwrap_or(&PerBlock::Same(64));
    Defaults {
        width: size.get(1).saturating_mul(vae.factor()),
        height: size.get(0).saturating_mul(vae.factor()),
        num_inference_steps: index
            .sd_defaults
            .num_inference_steps
            .unwrap_or(num_inference_steps),
        guidance_scale: index.sd_defaults.guidance_scale.unwrap_or(guidance_scale),
    }
}
