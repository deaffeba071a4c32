//! A whole model, ready to run.

use std::sync::OnceLock;

use sd_config::ModelConfig;

use crate::sha256::Hasher;
use crate::source::StoredFile;
use crate::text::TextEncoders;
use crate::unet::Unet;
use crate::vae::AutoencoderKl;
use crate::{FileHashes, Result};

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
    /// Of the text encoders, then of the autoencoder.
    pub(crate) other_files: Vec<StoredFile>,
    pub(crate) hashes: FileHashes,
    pub(crate) unet_sha256: OnceLock<String>,
    pub(crate) fingerprint: OnceLock<String>,
}

impl Model {
    /// The SHA-256 of the UNet's file as 64 hexadecimal digits, by which other programs know a model too; of several
    /// shards, that of their hashes. The first call reads the file, unless the hub told its hash or
    /// [`LoadOptions::hashes`](crate::LoadOptions::hashes) knows it.
    ///
    /// # Errors
    /// The files are gone.
    pub fn weights_sha256(&self) -> Result<&str> {
        once(&self.unet_sha256, || {
            let hashes = self.hashes.of(&self.unet_files)?;
            Ok(match hashes.as_slice() {
                [hash] => hash.clone(),
                shards => of_hashes(shards),
            })
        })
    }

    /// What tells this model's weights from all others: the SHA-256 of the hashes of all their files, as 64 hexadecimal
    /// digits. As [`weights_sha256`](Self::weights_sha256), the first call may read them.
    ///
    /// # Errors
    /// The files are gone.
    pub fn fingerprint(&self) -> Result<&str> {
        once(&self.fingerprint, || {
            let files = [&*self.unet_files, &*self.other_files].concat();
            Ok(of_hashes(&self.hashes.of(&files)?))
        })
    }
}

/// The value, computed if need be; twice if two threads come first.
fn once(cell: &OnceLock<String>, value: impl FnOnce() -> Result<String>) -> Result<&str> {
    if let Some(known) = cell.get() {
        return Ok(known);
    }
    let value = value()?;
    Ok(cell.get_or_init(|| value))
}

fn of_hashes(hashes: &[String]) -> String {
    Hasher::of(hashes.join("\n").as_bytes())
}
