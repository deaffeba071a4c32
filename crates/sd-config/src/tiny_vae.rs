//! A tiny decoder for previews: `config.json` of an `AutoencoderTiny`.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::json::File;
use crate::{Result, files};

/// The decoder of diffusers' `AutoencoderTiny`, with that class's defaults, which are those of the published TAESD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TinyVaeConfig {
    /// Channels of the decoded picture: 3.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each stage; the network only works if they are all the same.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks of each stage. Between two stages lies an upsampling.
    pub num_decoder_blocks: Vec<usize>,
    /// How many times larger each upsampling makes the picture, each way.
    pub upsampling_scaling_factor: usize,
    /// Latents are divided by this before decoding.
    pub scaling_factor: f64,
}

impl Default for TinyVaeConfig {
    fn default() -> Self {
        Self {
            out_channels: 3,
            latent_channels: 4,
            decoder_block_out_channels: vec![64; 4],
            num_decoder_blocks: vec![3, 3, 3, 1],
            upsampling_scaling_factor: 2,
            scaling_factor: 1.0,
        }
    }
}

impl TinyVaeConfig {
    /// Parses and checks the text of `config.json`.
    ///
    /// # Errors
    /// Text that is no JSON object, the file of another network, and values of a wrong type, out of range, or not
    /// supported.
    pub fn parse(json: &str) -> Result<Self> {
        let file = File(files::TINY_VAE_CONFIG);
        let map = file.object(json)?;
        let allowed = [
            ("_class_name", &[json!("AutoencoderTiny")][..]),
            ("act_fn", &[json!("relu")]),
            ("upsample_fn", &[json!("nearest")]),
        ];
        file.only(&map, &allowed)?;
        let config: Self = file.read(map)?;
        config.check()?;
        Ok(config)
    }

    /// Checks values that were not parsed.
    ///
    /// # Errors
    /// A value out of range, or at odds with another one.
    pub fn check(&self) -> Result<()> {
        let file = File(files::TINY_VAE_CONFIG);
        file.range("out_channels", self.out_channels, 3..=3)?;
        file.range("latent_channels", self.latent_channels, 1..=64)?;
        let factor = self.upsampling_scaling_factor;
        file.range("upsampling_scaling_factor", factor, 1..=8)?;
        file.positive("scaling_factor", self.scaling_factor)?;
        let (key, widths) = (
            "decoder_block_out_channels",
            &self.decoder_block_out_channels,
        );
        if !(1..=8).contains(&widths.len()) || widths.iter().any(|width| *width != widths[0]) {
            let expected = "expected a list of 1 to 8 equal numbers";
            return Err(file.invalid(key, widths, expected));
        }
        file.range(key, widths[0], 1..=1 << 12)?;
        let (key, blocks) = ("num_decoder_blocks", &self.num_decoder_blocks);
        file.length(key, blocks, widths.len())?;
        blocks
            .iter()
            .try_for_each(|&blocks| file.range(key, blocks, 0..=64))
    }

    /// Pixels that a latent pixel becomes, each way: 8 with the usual 4 stages.
    pub fn factor(&self) -> usize {
        let upsamplings = self.num_decoder_blocks.len().saturating_sub(1);
        // At most 8^7 for checked values; saturated for those that were never checked.
        let upsamplings = u32::try_from(upsamplings).unwrap_or(u32::MAX);
        self.upsampling_scaling_factor.saturating_pow(upsamplings)
    }
}
