//! The text encoders against transformers.

mod common;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{assert_close, cases, difference, golden, json};
use sd_config::ClipConfig;
use sd_models::text::{ClipOutput, ClipTextModel};
use sd_models::{Component, Error, Weights};

const TOLERANCE: f32 = 1e-5;

/// The tiny text encoders: folder of config and weights, file of inputs and outputs.
fn fixtures() -> Vec<(PathBuf, PathBuf)> {
    let folders = |path: &str| {
        let entries = golden(path).read_dir().unwrap();
        let mut folders: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        folders.sort();
        folders
    };
    let mut fixtures = Vec::new();
    for model in folders("models") {
        for (part, file) in [("text_encoder", "text"), ("text_encoder_2", "text_2")] {
            fixtures.push((
                model.join(part),
                model.join(format!("golden/{file}.safetensors")),
            ));
        }
    }
    for clip in folders("clips") {
        fixtures.push((clip.clone(), clip.join("golden.safetensors")));
    }
    fixtures.retain(|(folder, _)| folder.is_dir());
    assert!(fixtures.len() >= 17, "{fixtures:?}");
    fixtures
}

fn config(folder: &Path) -> ClipConfig {
    json(&folder.join("config.json"))
}

fn encoder(folder: &Path) -> ClipTextModel {
    let weights =
        Weights::open(Component::TextEncoder, &[folder.join("model.safetensors")]).unwrap();
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    let model = ClipTextModel::new(vb, &config(folder), Component::TextEncoder).unwrap();
    let report = weights.finish().unwrap();
    assert!(report.unexpected.is_empty(), "{report:?}");
    model
}

fn run(model: &ClipTextModel, case: &HashMap<String, Tensor>) -> ClipOutput {
    model
        .forward(&case["ids"].to_dtype(DType::U32).unwrap())
        .unwrap()
}

#[test]
fn every_output_equals_the_reference() {
    for (folder, golden) in fixtures() {
        let model = encoder(&folder);
        for (name, case) in cases(&golden) {
            let what = |part: &str| format!("{} {name} {part}", folder.display());
            let output = run(&model, &case);
            let layers = case.keys().filter(|key| key.starts_with("hs.")).count();
            assert_eq!(output.hidden_states.len(), layers, "{}", what("layers"));
            for (i, state) in output.hidden_states.iter().enumerate() {
                assert_close(
                    &what(&format!("hs.{i}")),
                    state,
                    &case[&format!("hs.{i}")],
                    TOLERANCE,
                );
            }
            assert_close(
                &what("last"),
                &output.last_hidden_state,
                &case["last"],
                TOLERANCE,
            );
            assert_close(&what("pooled"), &output.pooled, &case["pooled"], TOLERANCE);
        }
    }
}

#[test]
fn every_tensor_matters() {
    for (folder, golden) in fixtures() {
        let weights = common::tensors(&folder.join("model.safetensors"));
        let weights: HashMap<_, _> = weights
            .into_iter()
            .filter(|(name, _)| !name.ends_with("position_ids"))
            .map(|(name, tensor)| (name.trim_start_matches("text_model.").to_owned(), tensor))
            .collect();
        let case = cases(&golden).into_values().next().unwrap();
        let outputs = |weights: HashMap<String, Tensor>| {
            let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
            let output = run(
                &ClipTextModel::new(vb, &config(&folder), Component::TextEncoder).unwrap(),
                &case,
            );
            [output.last_hidden_state, output.pooled]
        };
        let reference = outputs(weights.clone());
        for (name, tensor) in &weights {
            let changed = ((tensor * 1.1).unwrap() + 0.05).unwrap();
            let moved = outputs(
                weights
                    .iter()
                    .map(|(n, t)| {
                        (
                            n.clone(),
                            if n == name {
                                changed.clone()
                            } else {
                                t.clone()
                            },
                        )
                    })
                    .collect(),
            );
            let moved = reference
                .iter()
                .zip(&moved)
                .map(|(a, b)| difference(b, a))
                .fold(0f32, f32::max);
            // A bias of the keys shifts all scores of a query alike, which softmax takes out again.
            let expected = !name.ends_with("k_proj.bias");
            assert_eq!(
                moved > 1e-4,
                expected,
                "{} {name} moves the output by {moved:e}",
                folder.display()
            );
        }
    }
}

#[test]
fn a_text_has_the_same_bits_alone_and_in_a_batch() {
    let (folder, golden) = fixtures().swap_remove(0);
    let model = encoder(&folder);
    let batch = cases(&golden)
        .into_values()
        .find(|case| case["ids"].dims()[0] > 1)
        .unwrap();
    let ids = batch["ids"].to_dtype(DType::U32).unwrap();
    let together = model.forward(&ids).unwrap();
    for i in 0..ids.dims()[0] {
        let alone = model.forward(&ids.narrow(0, i, 1).unwrap()).unwrap();
        let row = |x: &Tensor, i: usize| {
            x.get(i)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        assert_eq!(
            row(&together.last_hidden_state, i),
            row(&alone.last_hidden_state, 0)
        );
        assert_eq!(row(&together.pooled, i), row(&alone.pooled, 0));
    }
}

#[test]
fn weights_in_f16_are_the_rounded_weights() {
    let (folder, golden) = fixtures().swap_remove(0);
    let path = folder.join("model.safetensors");
    let case = cases(&golden).into_values().next().unwrap();
    let rounded: BTreeMap<_, _> = common::tensors(&path)
        .into_iter()
        .filter(|(name, _)| !name.ends_with("position_ids"))
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F16).unwrap()))
        .collect();
    let rounded: Vec<_> = rounded
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    let weights = Weights::from_bytes(
        Component::TextEncoder,
        "rounded",
        common::safetensors(&rounded),
    )
    .unwrap();
    let output = |kept| {
        let vb = weights.var_builder(kept, &Device::Cpu);
        run(
            &ClipTextModel::new(vb, &config(&folder), Component::TextEncoder).unwrap(),
            &case,
        )
        .last_hidden_state
    };
    let (kept, widened) = (output(DType::F16), output(DType::F32));
    assert_eq!(kept.dtype(), DType::F32);
    assert_eq!(difference(&kept, &widened), 0.);
}

#[test]
fn in_bf16_it_is_no_further_from_f32_than_diffusers() {
    for folder in support::folders("models") {
        let encoder = folder.join("text_encoder");
        if !encoder.is_dir() {
            continue;
        }
        let weights = Weights::open(Component::TextEncoder, &[encoder.join("model.safetensors")]);
        let vb = weights.unwrap().var_builder(DType::BF16, &Device::Cpu);
        let model = ClipTextModel::new(vb, &config(&encoder), Component::TextEncoder).unwrap();
        for (name, case) in cases(&folder.join("golden/text.safetensors")) {
            let found = run(&model, &case).last_hidden_state;
            let what = format!("{} {name}", folder.display());
            let allowed = support::bf16_error(&folder, "text");
            assert_close(&what, &found, &case["last"], allowed);
        }
    }
}

#[test]
fn bad_ids_are_errors() {
    let (folder, _) = fixtures().swap_remove(0);
    let model = encoder(&folder);
    let ClipConfig {
        vocab_size,
        max_position_embeddings: positions,
        ..
    } = config(&folder);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let beyond = Tensor::new(&[[0u32, vocab_size as u32]], &Device::Cpu).unwrap();
    for ids in [
        zeros(&[1, positions + 1], DType::U32),
        zeros(&[1, 0], DType::U32),
        zeros(&[0, 4], DType::U32),
        zeros(&[4], DType::U32),
        zeros(&[1, 4], DType::I64),
        beyond,
    ] {
        let error = model.forward(&ids).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{ids:?}: {error}");
    }
    model.forward(&zeros(&[2, positions], DType::U32)).unwrap();
}
