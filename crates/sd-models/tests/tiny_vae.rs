//! The tiny decoder against diffusers, and what its loader makes of files.

mod common;
mod support;

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{assert_close, cases, copy_dir, golden, raw_safetensors, safetensors, tensors};
use sd_config::{TinyVaeConfig, VaeConfig};
use sd_models::vae::TinyDecoder;
use sd_models::{Component, Error, LoadOptions, Result, Weights, load_tiny_decoder};
use support::{STAGE, bits, folders, idle, random, text};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn config(folder: &Path) -> TinyVaeConfig {
    TinyVaeConfig::parse(&text(&folder.join("config.json"))).unwrap()
}

/// An autoencoder whose latents have four channels and stand for 8 pixels each way.
fn autoencoder() -> VaeConfig {
    VaeConfig {
        block_out_channels: vec![32; 4],
        ..VaeConfig::default()
    }
}

fn load(path: &Path) -> Result<TinyDecoder> {
    load_tiny_decoder(path, &autoencoder(), &LoadOptions::default())
}

#[test]
fn pictures_are_those_of_diffusers() {
    for folder in folders("tiny_vaes") {
        let weights = Weights::open(Component::TinyVae, &[folder.join(WEIGHTS)]).unwrap();
        let vb = weights.var_builder(DType::F32, &Device::Cpu);
        let decoder = TinyDecoder::new(vb, &config(&folder)).unwrap();
        let report = weights.finish().unwrap();
        assert!(report.unexpected.is_empty(), "{:?}", report.unexpected);
        for (name, case) in cases(&folder.join("golden.safetensors")) {
            let found = decoder.decode(&case["latents"]).unwrap();
            let what = format!("{} {name}", folder.display());
            assert_close(&what, &found, &case["decoded"], STAGE);
        }
    }
}

#[test]
fn every_tensor_matters() {
    let folder = golden("tiny_vaes/four-stages");
    let mut decoder = tensors(&folder.join(WEIGHTS));
    decoder.retain(|name, _| name.starts_with("decoder."));
    let (config, latents) = (config(&folder), random(1, &[1, 4, 2, 3]));
    let idle = idle(&decoder, |tensors| {
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let decoder = TinyDecoder::new(vb, &config).unwrap();
        decoder.decode(&latents).unwrap()
    });
    assert!(idle.is_empty(), "{idle:?}");
}

#[test]
fn a_batch_is_its_pictures() {
    let decoder = load(&golden("tiny_vaes/four-stages")).unwrap();
    let latents = random(3, &[3, 4, 2, 3]);
    let batch = decoder.decode(&latents).unwrap();
    assert_eq!(batch.dims(), [3, 3, 16, 24]);
    for i in 0..3 {
        let alone = decoder.decode(&latents.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(bits(&alone), bits(&batch.narrow(0, i, 1).unwrap()));
    }
}

/// TAESD's own size under its own names, of random weights: what `taesd_decoder.safetensors` looks like.
fn original_file(latent_channels: usize) -> Vec<u8> {
    let mut tensors = Vec::new();
    let mut conv = |name: &str, outputs: usize, inputs: usize, bias: bool| {
        let deviation = (9. * inputs as f64).sqrt();
        let weight = (random(1, &[outputs, inputs, 3, 3]) / deviation).unwrap();
        tensors.push((format!("{name}.weight"), weight));
        if bias {
            tensors.push((format!("{name}.bias"), random(2, &[outputs])));
        }
    };
    conv("1", 64, latent_channels, true);
    for layer in 3..19 {
        match layer {
            // Upsamplings have no tensors.
            6 | 11 | 16 => {}
            7 | 12 | 17 => conv(&layer.to_string(), 64, 64, false),
            block => {
                for part in [0, 2, 4] {
                    conv(&format!("{block}.conv.{part}"), 64, 64, true);
                }
            }
        }
    }
    conv("19", 3, 64, true);
    let named: Vec<_> = tensors
        .iter()
        .map(|(name, t)| (name.as_str(), t.clone()))
        .collect();
    safetensors(&named)
}

#[test]
fn the_original_single_file_loads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taesd_decoder.safetensors");
    fs::write(&path, original_file(4)).unwrap();
    let picture = load(&path)
        .unwrap()
        .decode(&random(1, &[1, 4, 2, 3]))
        .unwrap();
    assert_eq!(picture.dims(), [1, 3, 16, 24]);

    fs::write(&path, original_file(16)).unwrap();
    match load(&path) {
        Err(Error::Tensors(report)) => {
            let found: Vec<_> = report.mismatched.keys().collect();
            assert_eq!(found, ["decoder.layers.0.weight"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_files_are_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decoder.safetensors");
    let message = |path: &Path| load(path).unwrap_err().to_string();

    assert!(message(&path).starts_with("cannot read"), "no such file");
    fs::write(&path, raw_safetensors(b"{", b"")).unwrap();
    assert!(message(&path).contains("not a valid safetensors file"));
    // An encoder, and a whole autoencoder of another class.
    let encoder = [
        ("0.weight", random(1, &[64, 3, 3, 3])),
        ("15.bias", random(1, &[4])),
    ];
    for tensors in [
        &encoder[..],
        &[("decoder.conv_in.weight", random(1, &[64, 4, 3, 3]))],
    ] {
        fs::write(&path, safetensors(tensors)).unwrap();
        let found = message(&path);
        assert!(
            found.contains("another network") && found.contains("`decoder.layers.0.weight`"),
            "{found}"
        );
    }
    let pickle = path.with_extension("pth");
    fs::write(&pickle, "").unwrap();
    assert!(message(&pickle).contains("pickle"));
}

#[test]
fn wrong_folders_are_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let message = || {
        let error = load(path).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    };
    assert!(message().contains("no config.json"), "{}", message());
    copy_dir(&golden("models/sd15/vae"), path);
    assert!(
        message().contains("only \"AutoencoderTiny\" is supported"),
        "{}",
        message()
    );
    copy_dir(&golden("tiny_vaes/other-numbers"), path);
    let expected = "latents of 5 channels to 3 pixels each way, the model has latents of 4 to 8";
    assert!(message().contains(expected), "{}", message());
    copy_dir(&golden("tiny_vaes/four-stages"), path);
    assert!(load(path).is_ok());
    fs::rename(path.join(WEIGHTS), path.join("diffusion_pytorch_model.bin")).unwrap();
    assert!(
        message().contains("diffusion_pytorch_model.bin is a Python pickle"),
        "{}",
        message()
    );
}

#[test]
fn latents_of_another_shape_are_refused() {
    let decoder = load(&golden("tiny_vaes/four-stages")).unwrap();
    for shape in [&[1, 3, 2, 2][..], &[4, 2, 2], &[0, 4, 2, 2], &[1, 4, 0, 2]] {
        let decoded: Result<Tensor> = decoder.decode(&random(1, shape));
        assert!(
            matches!(
                &decoded,
                Err(Error::Input {
                    component: Component::TinyVae,
                    ..
                })
            ),
            "{decoded:?}"
        );
    }
}
