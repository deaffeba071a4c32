//! The autoencoder against diffusers: moments, scaled latents and pictures of every family.

mod common;
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{assert_close, cases, difference, tensors};
use sd_config::VaeConfig;
use sd_models::vae::AutoencoderKl;
use sd_models::{Component, Error, Weights};
use support::{STAGE, bf16_error, bits, folders, idle, random, random_weights, text};

/// The golden autoencoders: a folder with config and weights, and the file with the cases.
fn vaes() -> Vec<(PathBuf, PathBuf)> {
    let families = folders("models")
        .into_iter()
        .map(|f| (f.join("vae"), f.join("golden/vae.safetensors")));
    let extra = folders("vaes")
        .into_iter()
        .map(|f| (f.clone(), f.join("golden.safetensors")));
    families.chain(extra).collect()
}

fn config(folder: &Path) -> VaeConfig {
    VaeConfig::parse(&text(&folder.join("config.json"))).unwrap()
}

fn weights_file(folder: &Path) -> PathBuf {
    folder.join("diffusion_pytorch_model.safetensors")
}

/// An autoencoder from its folder, all tensors of the file used.
fn load(folder: &Path, dtype: DType) -> AutoencoderKl {
    let weights = Weights::open(Component::Vae, &[weights_file(folder)]).unwrap();
    let vae =
        AutoencoderKl::new(weights.var_builder(dtype, &Device::Cpu), &config(folder)).unwrap();
    let report = weights.finish().unwrap();
    assert!(
        report.unexpected.is_empty(),
        "{}: unused {:?}",
        folder.display(),
        report.unexpected
    );
    vae
}

#[test]
fn encoding_and_decoding_are_diffusers() {
    for (folder, file) in vaes() {
        let vae = load(&folder, DType::F32);
        for (name, case) in cases(&file) {
            let close = |key: &str, found: &Tensor| {
                assert_close(
                    &format!("{} {name}: {key}", folder.display()),
                    found,
                    &case[key],
                    STAGE,
                );
            };
            let posterior = vae.encode(&case["image"]).unwrap();
            close("mean", &posterior.mean);
            close("logvar", &posterior.logvar);
            close("mode", &posterior.mode().unwrap());
            close("sampled", &posterior.sample(&case["noise"]).unwrap());
            close("decoded", &vae.decode(&case["latents"]).unwrap());
        }
    }
}

#[test]
fn in_bf16_it_is_no_further_from_f32_than_diffusers() {
    for folder in folders("models") {
        let vae = load(&folder.join("vae"), DType::BF16);
        for (name, case) in cases(&folder.join("golden/vae.safetensors")) {
            let what = format!("{} {name}", folder.display());
            let mean = vae.encode(&case["image"]).unwrap().mean;
            assert_close(&what, &mean, &case["mean"], bf16_error(&folder, "mean"));
            let decoded = vae.decode(&case["latents"]).unwrap();
            let allowed = bf16_error(&folder, "decoded");
            assert_close(&what, &decoded, &case["decoded"], allowed);
        }
    }
}

#[test]
fn tiles_are_diffusers() {
    for folder in folders("tiling") {
        let vae = load(&folder, DType::F32);
        for (name, case) in cases(&folder.join("golden.safetensors")) {
            let close = |key: &str, found: &Tensor| {
                assert_close(
                    &format!("{} {name}: {key}", folder.display()),
                    found,
                    &case[key],
                    STAGE,
                );
            };
            let posterior = vae.encode_tiled(&case["image"]).unwrap();
            close("mean", &posterior.mean);
            close("logvar", &posterior.logvar);
            let (image, latents) = (&case["image"], &case["latents"]);
            let decoded = vae.decode_tiled(latents).unwrap();
            close("decoded", &decoded);
            // Each case but one takes several tiles, which shows.
            let whole = [
                vae.decode(latents).unwrap(),
                vae.encode(image).unwrap().mean,
            ];
            let moved = difference(&decoded, &whole[0]).min(difference(&posterior.mean, &whole[1]));
            assert_eq!(moved > 1e-2, name != "one-tile", "{name}: {moved}");
        }
    }
}

#[test]
fn the_pictures_of_a_batch_are_tiled_one_by_one() {
    let folder = common::golden("tiling/two-blocks");
    let vae = load(&folder, DType::F32);
    let latents = random(1, &[2, 4, 9, 12]);
    let batch = vae.decode_tiled(&latents).unwrap();
    for i in 0..2 {
        let alone = vae.decode_tiled(&latents.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(bits(&alone), bits(&batch.narrow(0, i, 1).unwrap()));
    }
}

#[test]
fn an_autoencoder_without_tiles_says_so() {
    let config = VaeConfig {
        block_out_channels: vec![8],
        norm_num_groups: 4,
        sample_size: 30,
        ..VaeConfig::default()
    };
    assert_eq!(config.tile(), None);
    let vae = AutoencoderKl::new(random_weights(DType::F32), &config).unwrap();
    let error = vae.decode_tiled(&random(1, &[1, 4, 40, 40])).unwrap_err();
    assert!(error.to_string().contains("sample_size"), "{error}");
    assert!(vae.encode_tiled(&random(1, &[1, 3, 40, 40])).is_err());
}

#[test]
fn every_tensor_moves_the_result() {
    for folder in folders("models")
        .into_iter()
        .map(|folder| folder.join("vae"))
    {
        let config = config(&folder);
        let (image, latents) = (random(2, &[1, 3, 16, 24]), random(3, &[1, 4, 2, 3]));
        let idle = idle(&tensors(&weights_file(&folder)), |tensors| {
            let vae = AutoencoderKl::new(
                VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu),
                &config,
            );
            let vae = vae.unwrap();
            let posterior = vae.encode(&image).unwrap();
            let results = [
                posterior.mean,
                posterior.logvar,
                vae.decode(&latents).unwrap(),
            ];
            Tensor::cat(&results.map(|t| t.flatten_all().unwrap()), 0).unwrap()
        });
        // A softmax does not see what all of its keys have in common.
        let keys =
            ["encoder", "decoder"].map(|half| format!("{half}.mid_block.attentions.0.to_k.bias"));
        assert_eq!(
            idle,
            BTreeSet::from(keys),
            "{}: tensors without influence",
            folder.display()
        );
    }
}

#[test]
fn latents_are_scaled_by_factor_or_by_statistics() {
    let tiny = VaeConfig {
        block_out_channels: vec![8],
        norm_num_groups: 4,
        ..VaeConfig::default()
    };
    let measured = VaeConfig {
        latents_mean: Some(vec![0.5, -1., 0., 2.]),
        latents_std: Some(vec![1., 2., 4., 0.5]),
        ..tiny.clone()
    };
    let image = random(1, &[2, 3, 6, 5]);
    for config in [tiny, measured] {
        let vae = AutoencoderKl::new(random_weights(DType::F32), &config).unwrap();
        let posterior = vae.encode(&image).unwrap();
        let per_channel = |values: &Option<Vec<f64>>, default| {
            let values = values.clone().unwrap_or(vec![default; 4]);
            Tensor::new(values, &Device::Cpu)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap()
                .reshape((1, 4, 1, 1))
                .unwrap()
        };
        let (mean, std) = (
            per_channel(&config.latents_mean, 0.),
            per_channel(&config.latents_std, 1.),
        );
        let scaled = posterior
            .mean
            .broadcast_sub(&mean)
            .unwrap()
            .broadcast_div(&std)
            .unwrap();
        let scaled = (scaled * config.scaling_factor).unwrap();
        assert_close("mode", &posterior.mode().unwrap(), &scaled, 1e-6);
        // Without noise a sample is the mode; a clamped variance of e^20 moves it by e^10.
        assert_close(
            "sample",
            &posterior.sample(&scaled.zeros_like().unwrap()).unwrap(),
            &scaled,
            1e-6,
        );
    }
}

#[test]
fn the_variance_is_clamped() {
    let config = VaeConfig {
        block_out_channels: vec![8],
        norm_num_groups: 4,
        ..VaeConfig::default()
    };
    let vae = AutoencoderKl::new(random_weights(DType::F32), &config).unwrap();
    let mut posterior = vae.encode(&random(1, &[1, 3, 2, 2])).unwrap();
    posterior.mean = posterior.mean.zeros_like().unwrap();
    for (logvar, clamped) in [(50., 20.), (-50., -30.), (4., 4.)] {
        posterior.logvar = (posterior.mean.ones_like().unwrap() * logvar).unwrap();
        let noise = random(2, posterior.mean.dims());
        let expected = (&noise * (f64::exp(clamped / 2.) * config.scaling_factor)).unwrap();
        assert_close(
            "sample",
            &posterior.sample(&noise).unwrap(),
            &expected,
            1e-6,
        );
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (folder, _) = vaes().swap_remove(0);
    let vae = load(&folder, DType::F32);
    let named = |result: sd_models::Result<Tensor>, name: &str| match result {
        Err(Error::Input { what, .. }) => assert_eq!(what, name),
        other => panic!("{name}: {other:?}"),
    };
    let encode = |image: &Tensor| vae.encode(image).map(|posterior| posterior.mean);
    for shape in [
        &[1, 4, 16, 16][..],
        &[3, 16, 16],
        &[0, 3, 16, 16],
        &[1, 3, 7, 16],
        &[1, 3, 16, 0],
    ] {
        named(encode(&random(1, shape)), "images");
    }
    for shape in [&[1, 3, 2, 2][..], &[4, 2, 2], &[0, 4, 2, 2], &[1, 4, 0, 2]] {
        named(vae.decode(&random(1, shape)), "latents");
    }
    let posterior = vae.encode(&random(1, &[1, 3, 16, 16])).unwrap();
    named(posterior.sample(&random(1, &[1, 4, 2, 3])), "noise");
}
