//! Writes a published model in full size with random weights: for measuring what takes the same time and memory whatever
//! the weights are.
//!
//! ```sh
//! cargo run --release -p sd-bench --example random_model -- v1.5 /tmp/sd15    # 2.1 GB, f16
//! cargo run --release -p sd-bench --example random_model -- xl /tmp/sdxl      # 6.9 GB
//! ```
//!
//! Configurations are those of the published models, tokenizers those of the tiny models in `tests/golden`.

#![allow(clippy::print_stdout, reason = "this is what the program is for")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use safetensors::{Dtype, View};
use sd_config::{ModelConfig, Version};
use sd_models::{Component, text::ClipTextModel, unet::Unet, vae::AutoencoderKl};
use serde::Serialize;
use serde_json::{Map, Value};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [version, folder] = arguments.as_slice() else {
        return Err("expected a version (v1.5 or xl) and a folder".into());
    };
    let version: Version = version.parse()?;
    let family = match version {
        Version::V1_5 => "sd15",
        Version::Xl => "sdxl",
        _ => return Err("expected v1.5 or xl".into()),
    };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/models");
    let (tiny, folder) = (Path::new(golden).join(family), Path::new(folder));
    copy_text(&tiny, folder)?;

    let model = ModelConfig::preset(version);
    configure(&folder.join("unet"), &model.unet)?;
    configure(&folder.join("vae"), &model.vae)?;
    let diffusion = "diffusion_pytorch_model.safetensors";
    write(&folder.join("unet").join(diffusion), |vb| {
        Unet::new(vb, &model.unet).map(drop)
    })?;
    write(&folder.join("vae").join(diffusion), |vb| {
        AutoencoderKl::new(vb, &model.vae).map(drop)
    })?;
    for encoder in &model.text_encoders {
        let folder = folder.join(encoder.folder);
        configure(&folder, &encoder.clip)?;
        write(&folder.join("model.safetensors"), |vb| {
            ClipTextModel::new(vb, &encoder.clip, Component::TextEncoder).map(drop)
        })?;
    }
    Ok(())
}

/// Copies the files that are no weights, and the folders of a model.
fn copy_text(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|name| *name != "golden") else {
            continue;
        };
        if path.is_dir() {
            copy_text(&path, &to.join(name))?;
        } else if path.extension().is_none_or(|kind| kind != "safetensors") {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Gives the `config.json` in a folder the values of `config`.
fn configure(folder: &Path, config: &impl Serialize) -> Result<()> {
    let path = folder.join("config.json");
    let mut file: Map<String, Value> = serde_json::from_str(&fs::read_to_string(&path)?)?;
    if let Value::Object(values) = serde_json::to_value(config)? {
        file.extend(values.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Ok(fs::write(path, serde_json::to_string_pretty(&file)?)?)
}

/// Writes the tensors that `build` asks for.
fn write(
    path: &Path,
    build: impl FnOnce(VarBuilder<'static>) -> sd_models::Result<()>,
) -> Result<()> {
    let shapes = Shapes::default();
    build(VarBuilder::from_backend(
        Box::new(shapes.clone()),
        DType::F16,
        Device::Cpu,
    ))?;
    let shapes = std::mem::take(&mut *shapes.0.lock().map_err(|error| error.to_string())?);
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let tensor = Random {
            name: name.clone(),
            shape,
        };
        (name, tensor)
    });
    safetensors::serialize_to_file(tensors, None, path)?;
    println!("{}", path.display());
    Ok(())
}

/// A tensor that is drawn when it is written.
struct Random {
    name: String,
    shape: Vec<usize>,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::F16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let drawn = sd_bench::weights()
            .get(self.shape.as_slice(), &self.name)
            .and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>())
            .expect("a tensor of a model fits into memory");
        let halves = drawn.iter().map(|&value| half::f16::from_f32(value));
        Cow::Owned(halves.flat_map(half::f16::to_le_bytes).collect())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<half::f16>()
    }
}

/// Takes down the names and shapes that a network asks for.
#[derive(Clone, Default)]
struct Shapes(Arc<Mutex<BTreeMap<String, Vec<usize>>>>);

impl SimpleBackend for Shapes {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if let Ok(mut shapes) = self.0.lock() {
            shapes.insert(name.to_owned(), shape.dims().to_vec());
        }
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: the shape is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
