//! A whole model, ready to run.

use std::sync::OnceLock;

use sd_config::ModelConfig;

use crate::Result;
use crate::sha256::Hasher;
use crate::source::StoredFile;
use crate::text::TextEncoders;
use crate::unet::Unet;
use crate::vae::AutoencoderKl;

/// A model that is ready to run: immutable, and shared between threads.
#[derive(Debug)]
pub struct Model {
    /// What it is.
    pub config: ModelConfig,
    /// Prompts to conditioning.
    pub text: TextEncoders,
    /// The noise predictor.
    pub unet: Unet,
    /// Pixels to latents and back.
    pub vae: AutoencoderKl,
    /// Oddities of the files that do no harm, one sentence each.
    pub warnings: Vec<String>,
    pub(crate) unet_files: Vec<StoredFile>,
    pub(crate) unet_sha256: OnceLock<String>,
}

impl Model {
    /// The SHA-256 of the UNet's weights as 64 hexadecimal digits: of the file, or of its shards in
    /// a row. Reads them all on the first call.
    ///
    /// # Errors
    /// The files are gone.
    pub fn weights_sha256(&self) -> Result<&str> {
        if let Some(known) = self.unet_sha256.get() {
            return Ok(known);
        }
        let mut hasher = Hasher::default();
        for file in &self.unet_files {
            file.copy_to(&mut hasher)?;
        }
        let hex = hasher.hex();
        Ok(self.unet_sha256.get_or_init(|| hex))
    }
}
