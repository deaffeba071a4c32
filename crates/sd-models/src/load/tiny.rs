//! A tiny decoder from its file or folder.

use std::path::Path;

use sd_config::{TinyVaeConfig, VaeConfig, files};

use super::build;
use crate::source::{FileData, StoredFile, is_pickle};
use crate::vae::{FIRST_TENSOR, TinyDecoder};
use crate::{Component, Error, LoadOptions, Result};

const HINT: &str = ": a tiny decoder is one safetensors file, \
    or a folder in the layout of diffusers' AutoencoderTiny";

/// Loads a tiny decoder for the latents of `vae`: from a file like `taesd_decoder.safetensors`, which has TAESD's own
/// architecture, or from a folder with `config.json` and `diffusion_pytorch_model.safetensors`.
///
/// Of `options` it takes device and dtype.
///
/// # Errors
/// Files that are missing, cannot be read, are corrupt or hold something else, and decoders of other latents.
pub fn load_tiny_decoder(
    path: &Path,
    vae: &VaeConfig,
    options: &LoadOptions,
) -> Result<TinyDecoder> {
    let (config, weights) = locate(path, vae)?;
    let (found, expected) = (
        (config.latent_channels, config.factor()),
        (vae.latent_channels, vae.factor()),
    );
    if found != expected {
        return Err(Error::OtherLatents {
            path: path.to_owned(),
            found,
            expected,
        });
    }
    let (decoder, warning) = build(Component::TinyVae, &[weights], options, |vb| {
        // One sentence says more than the list of all tensors that a file of something else lacks.
        if !vb.contains_tensor(FIRST_TENSOR) {
            return Err(Error::OtherNetwork {
                component: Component::TinyVae,
                path: path.to_owned(),
                tensor: FIRST_TENSOR,
            });
        }
        TinyDecoder::new(vb, &config)
    })?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(decoder)
}

/// What the decoder is, and where its weights are.
fn locate(path: &Path, vae: &VaeConfig) -> Result<(TinyVaeConfig, StoredFile)> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    if !path.metadata().map_err(read)?.is_dir() {
        if is_pickle(path) {
            return Err(pickle(path, "it"));
        }
        let config = TinyVaeConfig {
            latent_channels: vae.latent_channels,
            ..TinyVaeConfig::default()
        };
        return Ok((config, file(path)));
    }
    let inside = |name: &'static str| {
        let full = path.join(name);
        match full.is_file() {
            true => Ok(file(&full)),
            false => Err(Error::MissingFile {
                model: path.display().to_string(),
                expected: name.to_owned(),
                hint: HINT,
            }),
        }
    };
    let config = TinyVaeConfig::parse(&inside(files::TINY_VAE_CONFIG)?.text()?);
    let config = config.map_err(|source| Error::Config {
        model: path.display().to_string(),
        source: Box::new(source),
    })?;
    let weights = inside(files::TINY_VAE_WEIGHTS);
    let old = files::TINY_VAE_WEIGHTS.replace(".safetensors", ".bin");
    match weights {
        Err(_) if path.join(&old).is_file() => Err(pickle(path, &old)),
        weights => Ok((config, weights?)),
    }
}

fn pickle(path: &Path, file: &str) -> Error {
    Error::Pickle {
        model: path.display().to_string(),
        file: file.to_owned(),
    }
}

fn file(path: &Path) -> StoredFile {
    StoredFile {
        name: path.display().to_string(),
        data: FileData::Path(path.to_owned()),
    }
}
