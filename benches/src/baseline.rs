//! `candle-transformers`' networks in the shape of our configurations.

use candle_core::Result;
use candle_transformers::models::stable_diffusion::{
    unet_2d::{BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig},
    vae::{AutoEncoderKL, AutoEncoderKLConfig},
};
use sd_config::{PerBlock, UnetConfig, VaeConfig};

use crate::weights;

/// The UNet of a model without XL's conditioning, which the baseline does not have.
///
/// # Errors
/// The baseline cannot build that shape.
pub fn baseline_unet(config: &UnetConfig) -> Result<UNet2DConditionModel> {
    let mid_heads = config
        .mid_block()
        .and_then(|block| block.attention)
        .map(|attention| attention.heads);
    let blocks = config
        .down_blocks()
        .iter()
        .map(|block| BlockConfig {
            out_channels: block.out_channels,
            use_cross_attn: block.attention.as_ref().map(|attention| attention.depth),
            // Despite its name the number of heads; the middle block takes that of the last block.
            attention_head_dim: block
                .attention
                .as_ref()
                .map(|a| a.heads)
                .or(mid_heads)
                .unwrap_or(8),
        })
        .collect();
    let config_of_baseline = UNet2DConditionModelConfig {
        blocks,
        layers_per_block: first(&config.layers_per_block)?,
        norm_num_groups: config.norm_num_groups,
        norm_eps: config.norm_eps,
        cross_attention_dim: first(&config.cross_attention_dim)?,
        use_linear_projection: config.use_linear_projection,
        ..Default::default()
    };
    UNet2DConditionModel::new(
        weights(),
        config.in_channels,
        config.out_channels,
        false,
        config_of_baseline,
    )
}

/// The autoencoder. It takes and gives latents that are not scaled.
///
/// # Errors
/// The baseline cannot build that shape.
pub fn baseline_vae(config: &VaeConfig) -> Result<AutoEncoderKL> {
    let config_of_baseline = AutoEncoderKLConfig {
        block_out_channels: config.block_out_channels.clone(),
        layers_per_block: config.layers_per_block,
        latent_channels: config.latent_channels,
        norm_num_groups: config.norm_num_groups,
        use_quant_conv: config.use_quant_conv,
        use_post_quant_conv: config.use_post_quant_conv,
    };
    AutoEncoderKL::new(
        weights(),
        config.in_channels,
        config.out_channels,
        config_of_baseline,
    )
}

/// The value of all blocks: the baseline has only one.
fn first(values: &PerBlock<usize>) -> Result<usize> {
    match values {
        PerBlock::Same(value) => Ok(*value),
        PerBlock::Each(values) => {
            candle_core::bail!("the baseline cannot have {values:?} for its blocks")
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use sd_models::{
        unet::{Unet, UnetInput},
        vae::AutoencoderKl,
    };

    use super::*;
    use crate::{Case, input};

    fn error(found: &Tensor, expected: &Tensor) -> f32 {
        assert_eq!(found.dims(), expected.dims());
        let max = |tensor: Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        max((found - expected).unwrap()).unwrap() / max(expected.clone()).unwrap()
    }

    #[test]
    fn both_unets_are_the_same_network_but_for_the_form_of_gelu() {
        let config = &Case::all()[0].config.unet;
        let sample = input((2, 4, 16, 16)).unwrap();
        let context = input((2, 77, config.cross_attention_dim.get(0))).unwrap();
        let ours = Unet::new(weights(), config).unwrap();
        let ours = ours
            .forward(&UnetInput::new(&sample, &[500.0; 2], &context))
            .unwrap();
        let baseline = baseline_unet(config).unwrap();
        let baseline = baseline.forward(&sample, 500.0, &context).unwrap();
        let error = error(&baseline, &ours);
        assert!(error < 2e-3, "{error:e}");
    }

    #[test]
    fn both_autoencoders_are_the_same_network() {
        let config = &Case::all()[0].config.vae;
        let latents = input((1, 4, 16, 16)).unwrap();
        let ours = AutoencoderKl::new(weights(), config).unwrap();
        let ours = ours
            .decode(&(&latents * config.scaling_factor).unwrap())
            .unwrap();
        let baseline = baseline_vae(config).unwrap().decode(&latents).unwrap();
        let error = error(&baseline, &ours);
        assert!(error < 1e-5, "{error:e}");
    }
}
