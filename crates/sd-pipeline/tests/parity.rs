//! Every end-to-end case of tests/golden/e2e, which diffusers made: embeddings, noise, each step, and the picture.

mod common;

use std::{collections::HashMap, fs};

use common::{golden, pictures_agree, pipeline, relative_error};
use sd_pipeline::{Device, Request, Tensor, to_rgb};
use serde_json::Value;

struct Case {
    name: String,
    model: String,
    request: Request,
    tensors: HashMap<String, Tensor>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = fs::read_dir(golden("e2e"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| {
            let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            Case {
                name: path.file_stem().unwrap().to_string_lossy().into(),
                model: json["model"].as_str().unwrap().into(),
                request: Request::from_json(&json["request"].to_string()).unwrap(),
                tensors: candle_core::safetensors::load(
                    path.with_extension("safetensors"),
                    &Device::Cpu,
                )
                .unwrap(),
            }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

/// Stages to 1e-5, the loop to 5e-5, pictures to one level on one value in 200.
fn check(case: &Case) {
    let name = &case.name;
    let compare = |key: &str, found: &Tensor, tolerance: f64| {
        let error = relative_error(found, &case.tensors[key]);
        assert!(
            error <= tolerance,
            "{name}: {key} is off by {error:e}, more than {tolerance:e}"
        );
    };
    let pipeline = pipeline(&case.model);
    let mut run = pipeline.start(&case.request).unwrap();

    assert_eq!(
        run.truncated().is_empty(),
        !name.ends_with("-long"),
        "{name}"
    );
    let conditions = run.conditions();
    let negative = conditions.negative.as_ref();
    compare("prompt_embeds", &conditions.positive.hidden, 1e-5);
    for (key, found) in [
        (
            "negative_prompt_embeds",
            negative.map(|negative| &negative.hidden),
        ),
        ("pooled", conditions.positive.pooled.as_ref()),
        (
            "negative_pooled",
            negative.and_then(|negative| negative.pooled.as_ref()),
        ),
    ] {
        assert_eq!(
            found.is_some(),
            case.tensors.contains_key(key),
            "{name}: {key}"
        );
        if let Some(found) = found {
            compare(key, found, 1e-5);
        }
    }

    // The normals are torch's to the bit, but multiplying them by the first level rounds them elsewhere.
    compare("initial_latents", &run.latents().unwrap(), 3e-7);
    let calls = case
        .tensors
        .keys()
        .filter(|key| key.starts_with("latents_"))
        .count();
    for call in 0..calls {
        let progress = run.advance(&pipeline).unwrap().unwrap();
        assert_eq!(
            (progress.call, progress.num_calls),
            (call + 1, calls),
            "{name}"
        );
        compare(&format!("latents_{call:03}"), &run.latents().unwrap(), 5e-5);
    }
    assert!(run.is_done(), "{name}");

    let image = run.decode(&pipeline).unwrap();
    compare("image", &image, 1e-4);
    pictures_agree(name, &to_rgb(&image).unwrap(), &case.tensors["image_u8"]);
}

#[test]
fn every_case_is_as_in_diffusers() {
    let cases = cases();
    for family in [
        "builtin",
        "sd15",
        "sd21",
        "sdxl",
        "sdxl-turbo",
        "sd-turbo",
        "lcm",
    ] {
        assert!(
            cases.iter().any(|case| case.model == family),
            "no case of {family}"
        );
    }
    cases.iter().for_each(check);
}
