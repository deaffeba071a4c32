//! Do the components of a model fit together?

use crate::json::File;
use crate::{ClipConfig, MAX_SIDE, ModelConfig, Result, files};

const UNET: File<'_> = File(files::UNET_CONFIG);

/// Checks a model whose components have each been checked.
pub(crate) fn check(config: &ModelConfig) -> Result<()> {
    check_latents(config)?;
    check_inputs(config)?;
    check_text(config)?;
    if config.scheduler.class_name.is_empty() {
        let file = File(files::SCHEDULER_CONFIG);
        return Err(file.invalid("_class_name", "", "expected the name of a scheduler"));
    }
    Ok(())
}

/// The UNet takes and gives the autoencoder's latents, of a size that can be made.
fn check_latents(config: &ModelConfig) -> Result<()> {
    let (unet, latents) = (&config.unet, config.vae.latent_channels);
    // For inpainting: the latents, the mask, the latents of the masked picture.
    let inpaint = 2 * latents + 1;
    if ![latents, inpaint].contains(&unet.in_channels) {
        let expected =
            format!("expected the {latents} of the latents, or {inpaint} for inpainting");
        return Err(UNET.invalid("in_channels", unet.in_channels, expected));
    }
    if unet.out_channels != latents {
        let expected = format!("expected the {latents} of the latents");
        return Err(UNET.invalid("out_channels", unet.out_channels, expected));
    }
    if config
        .validate_size(config.defaults.width, config.defaults.height)
        .is_err()
    {
        let expected = format!("expected {MAX_SIDE} pixels at most");
        return Err(UNET.invalid("sample_size", &unet.sample_size, expected));
    }
    Ok(())
}

/// A picture has no class to give.
fn check_inputs(config: &ModelConfig) -> Result<()> {
    let expected = "class labels are no input of a pipeline";
    if let Some(kind) = config.unet.class_embed_type {
        return Err(UNET.invalid("class_embed_type", kind, expected));
    }
    if let Some(count) = config.unet.num_class_embeds {
        return Err(UNET.invalid("num_class_embeds", count, expected));
    }
    Ok(())
}

/// The text encoders are those of the family, and together as wide as the UNet expects.
fn check_text(config: &ModelConfig) -> Result<()> {
    let folders: Vec<_> = config
        .text_encoders
        .iter()
        .map(|encoder| encoder.folder)
        .collect();
    let index = File(files::MODEL_INDEX);
    if config.is_xl() && !folders.contains(&"text_encoder_2") {
        return Err(index.invalid("text_encoder_2", &folders, "expected it with text_time"));
    }
    if !config.is_xl() && folders != ["text_encoder"] {
        return Err(index.invalid("text_encoder", &folders, "expected it alone"));
    }
    let context: usize = config
        .text_encoders
        .iter()
        .map(|encoder| encoder.clip.hidden_size)
        .sum();
    for attention in config.unet.blocks().filter_map(|block| block.attention) {
        if attention.context_dim != context {
            let expected = format!("expected {context}, the width of the text encoders together");
            return Err(UNET.invalid("cross_attention_dim", attention.context_dim, expected));
        }
    }
    match config.text_encoders.last() {
        Some(last) if config.is_xl() => check_text_time(config, &last.clip),
        _ => Ok(()),
    }
}

/// XL: the sizes' sinusoids and the pooled text make up the input of the `text_time` network.
fn check_text_time(config: &ModelConfig, pooling: &ClipConfig) -> Result<()> {
    if !pooling.has_projection() {
        let file = File(files::TEXT_ENCODER_2_CONFIG);
        let expected = "expected CLIPTextModelWithProjection";
        return Err(file.invalid("architectures", &pooling.architectures, expected));
    }
    let sizes = if config.index.requires_aesthetics_score {
        5
    } else {
        6
    };
    let width = config.unet.addition_time_embed_dim.unwrap_or(0);
    let pooled = pooling.projection_dim;
    let found = config.unet.projection_class_embeddings_input_dim;
    if found != Some(sizes * width + pooled) {
        let expected = format!("expected {sizes} sizes of {width} and pooled text of {pooled}");
        return Err(UNET.invalid("projection_class_embeddings_input_dim", found, expected));
    }
    Ok(())
}
