//! The autoencoder: `vae/config.json`.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::json::File;
use crate::{Result, files};

/// Blocks of the encoder, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncoderBlockType {
    /// Residual layers, then a downsampling in all blocks but the last.
    DownEncoderBlock2D,
}

/// Blocks of the decoder, first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecoderBlockType {
    /// Residual layers, then an upsampling in all blocks but the last.
    UpDecoderBlock2D,
}

/// Colours as a linear function of latents, which is enough for a preview: `latents * factors + bias`, in -1..1 as the
/// autoencoder's own pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentRgb {
    /// What one unit of each latent channel, at the scale of the UNet, adds to red, green and blue.
    pub factors: Vec<[f64; 3]>,
    /// Red, green and blue where all latents are 0.
    pub bias: [f64; 3],
}

/// `AutoencoderKL` of diffusers, with that class's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of the picture given to the encoder: 3.
    pub in_channels: usize,
    /// Channels of the decoded picture: 3.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each encoder block; the decoder has them reversed.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of an encoder block; a decoder block has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Size of the training pictures, in pixels; sets the tile size of tiled decoding.
    pub sample_size: usize,
    /// Latents are multiplied by this after encoding and divided before decoding.
    pub scaling_factor: f64,
    /// Of other families: the pipelines of Stable Diffusion ignore it.
    pub shift_factor: Option<f64>,
    /// Mean of each latent channel, subtracted before scaling; given together with `latents_std`.
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviation of each latent channel.
    pub latents_std: Option<Vec<f64>>,
    /// The network overflows in f16 and must run in f32.
    pub force_upcast: bool,
    /// A 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// A 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// The middle blocks have an attention layer.
    pub mid_block_add_attention: bool,
    /// One a block.
    pub down_block_types: Vec<EncoderBlockType>,
    /// One a block.
    pub up_block_types: Vec<DecoderBlockType>,
    /// A key of ours, which diffusers ignores: the colours that the model's latents stand for.
    pub sd_latent_rgb: Option<LatentRgb>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D],
            sd_latent_rgb: None,
        }
    }
}

impl VaeConfig {
    /// Parses and checks the text of `vae/config.json`.
    ///
    /// # Errors
    /// Text that is no JSON object, and values of a wrong type, out of range, or not supported.
    pub fn parse(json: &str) -> Result<Self> {
        let file = File(files::VAE_CONFIG);
        let map = file.object(json)?;
        file.only(&map, &[("act_fn", &[json!("silu")])])?;
        let config: Self = file.read(map)?;
        config.check()?;
        Ok(config)
    }

    /// Checks values that were not parsed.
    ///
    /// # Errors
    /// A value out of range, or at odds with another one.
    pub fn check(&self) -> Result<()> {
        let file = File(files::VAE_CONFIG);
        for (key, value, range) in [
            ("in_channels", self.in_channels, 3..=3),
            ("out_channels", self.out_channels, 3..=3),
            ("latent_channels", self.latent_channels, 1..=64),
            ("layers_per_block", self.layers_per_block, 1..=64),
            ("sample_size", self.sample_size, 1..=1 << 16),
        ] {
            file.range(key, value, range)?;
        }
        file.positive("scaling_factor", self.scaling_factor)?;
        file.block_out_channels(&self.block_out_channels, self.norm_num_groups)?;
        let blocks = self.block_out_channels.len();
        file.length("down_block_types", &self.down_block_types, blocks)?;
        file.length("up_block_types", &self.up_block_types, blocks)?;
        if let Some(LatentRgb { factors, .. }) = &self.sd_latent_rgb {
            file.length("sd_latent_rgb", factors, self.latent_channels)?;
        }
        match (&self.latents_mean, &self.latents_std) {
            (None, None) => Ok(()),
            (Some(mean), Some(std)) => {
                file.length("latents_mean", mean, self.latent_channels)?;
                file.length("latents_std", std, self.latent_channels)?;
                std.iter()
                    .try_for_each(|&std| file.positive("latents_std", std))
            }
            (Some(mean), None) => {
                Err(file.invalid("latents_mean", mean, "expected latents_std too"))
            }
            (None, Some(std)) => Err(file.invalid("latents_std", std, "expected latents_mean too")),
        }
    }

    /// Pixels that a latent pixel stands for, each way: 8 with the usual 4 blocks.
    pub fn factor(&self) -> usize {
        // `check` allows 8 blocks; the bound keeps the shift defined for values that were never
        // checked.
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }

    /// Side of a tile of tiled encoding and decoding, in latent pixels: 64 for a `sample_size` of 512. Tiles share a
    /// quarter with their neighbours.
    ///
    /// None if `sample_size` is not a multiple of four latent pixels: the tiles of diffusers then overlap unevenly, and
    /// their picture is of another size.
    pub fn tile(&self) -> Option<usize> {
        let tile = self.sample_size / self.factor();
        (tile.is_multiple_of(4) && tile > 0 && tile * self.factor() == self.sample_size)
            .then_some(tile)
    }
}
