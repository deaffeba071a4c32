//! `--dump-tensors` against what diffusers computed from the same request.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, safetensors};
use serde_json::{Map, Value};

use crate::{assert_done, folder, golden, worker};

/// Largest difference from the reference over its largest value, for a whole denoising loop.
const TOLERANCE: f32 = 5e-5;

#[test]
fn dumped_tensors_equal_those_of_diffusers() {
    let mut cases = 0;
    for file in fs::read_dir(golden("e2e"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let case: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        // Sizes of XL's conditioning, for instance, have no flag.
        let Some(flags) = flags(case["request"].as_object().unwrap()) else {
            continue;
        };
        let model = match case["model"].as_str().unwrap() {
            "builtin" => PathBuf::from("builtin"),
            family => golden("models").join(family),
        };
        check(&file, &model, &flags);
        cases += 1;
    }
    assert!(cases >= 8, "only {cases} cases");
}

/// The command line of a request, or None if it has a field without a flag.
fn flags(request: &Map<String, Value>) -> Option<Vec<String>> {
    let mut flags = Vec::new();
    for (field, value) in request {
        let value = value.as_str().map_or_else(
            || value.to_string(),
            |text| text.replace("per_image", "per-image"),
        );
        match field.as_str() {
            "prompt" => flags.push(value),
            "num_inference_steps" => flags.push(format!("--steps={value}")),
            "negative_prompt" | "prompt_2" | "guidance_scale" | "guidance_rescale" | "width"
            | "height" | "seed" | "seed_mode" | "num_images" | "scheduler" | "eta"
            | "clip_skip" => {
                flags.push(format!("--{}={value}", field.replace('_', "-")));
            }
            _ => return None,
        }
    }
    Some(flags)
}

fn check(case: &Path, model: &Path, flags: &[String]) {
    let folder = folder();
    let mut args = ["generate", "--dump-tensors=dump.safetensors", "--model"]
        .map(str::to_owned)
        .to_vec();
    args.push(model.to_str().unwrap().to_owned());
    args.extend_from_slice(flags);
    assert_done(&worker(folder.path(), args));

    let dumped = read(&folder.path().join("dump.safetensors"));
    let reference = read(&case.with_extension("safetensors"));
    for (name, expected) in &reference {
        if name == "image_u8" {
            continue;
        }
        let found = dumped
            .get(name)
            .unwrap_or_else(|| panic!("{}: no {name}", case.display()));
        assert_eq!(found.dims(), expected.dims(), "{}: {name}", case.display());
        let error = max(&(found - expected).unwrap()) / max(expected).max(f32::MIN_POSITIVE);
        assert!(
            error <= TOLERANCE,
            "{}: {name} differs by {error:e}",
            case.display()
        );
    }
    let extra: Vec<_> = dumped
        .keys()
        .filter(|name| !reference.contains_key(*name))
        .collect();
    assert!(
        extra.is_empty(),
        "{}: {extra:?} are not in the reference",
        case.display()
    );
}

fn read(path: &Path) -> HashMap<String, Tensor> {
    safetensors::load(path, &Device::Cpu).unwrap()
}

fn max(tensor: &Tensor) -> f32 {
    tensor
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap()
}
