//! Every end-to-end case of tests/golden/e2e_images, which diffusers made: runs that start from pictures, masks and other
//! runs' latents. Where they start, each step, and the pictures.

mod common;

use std::{collections::HashMap, fs, path::Path};

use common::{golden, picture, pictures_agree, pipeline, relative_error};
use sd_pipeline::{Device, Request, Run, Tensor};
use serde_json::Value;

/// A run of a case: its model, and what is asked of it.
struct Step {
    model: String,
    request: Request,
}

/// The runs of a case. The names of pictures stand for their bytes.
fn steps(path: &Path) -> Vec<Step> {
    let json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let step = |run: &Value| {
        let mut request = run["request"].clone();
        for field in ["init_image", "mask_image"] {
            if let Some(name) = request[field].as_str() {
                request[field] = picture(name).to_base64().into();
            }
        }
        let request = request.as_object_mut().unwrap();
        request.retain(|_, value| !value.is_null());
        Step {
            model: run["model"].as_str().unwrap().into(),
            request: Request::from_json(&Value::Object(request.clone()).to_string()).unwrap(),
        }
    };
    json.as_array().unwrap().iter().map(step).collect()
}

/// The autoencoder and where a run starts to 1e-5, the loop to 5e-5, pictures to one level on one value in 200.
fn check(path: &Path) {
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(path.with_extension("safetensors"), &Device::Cpu).unwrap();
    let mut before: Option<Run> = None;
    for (index, Step { model, request }) in steps(path).into_iter().enumerate() {
        let compare = |key: &str, found: &Tensor, tolerance: f64| {
            let error = relative_error(found, &tensors[&format!("{index}.{key}")]);
            assert!(
                error <= tolerance,
                "{name}: {index}.{key} is off by {error:e}, more than {tolerance:e}"
            );
        };
        let pipeline = pipeline(&model);
        let mut run = match before {
            Some(before) => pipeline.start_from(&request, &before.latents().unwrap()),
            None => pipeline.start(&request),
        }
        .unwrap();
        // What is handed over has the error of the run before.
        let tolerance = if index > 0 { 5e-5 } else { 1e-5 };
        compare("initial_latents", &run.latents().unwrap(), tolerance);
        let prefix = format!("{index}.latents_");
        let calls = tensors
            .keys()
            .filter(|key| key.starts_with(&prefix))
            .count();
        for call in 0..calls {
            let progress = run.advance(&pipeline).unwrap().unwrap();
            let counted = (progress.call, progress.num_calls);
            assert_eq!(counted, (call + 1, calls), "{name}");
            compare(&format!("latents_{call:03}"), &run.latents().unwrap(), 5e-5);
        }
        assert!(run.is_done(), "{name}");
        let images = run.finish(&pipeline).unwrap();
        pictures_agree(&name, &images, &tensors[&format!("{index}.image_u8")]);
        before = Some(run);
    }
}

#[test]
fn every_case_is_as_in_diffusers() {
    let mut cases: Vec<_> = fs::read_dir(golden("e2e_images"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    cases.sort();
    for task in [
        "img2img",
        "inpaint4",
        "inpaint9",
        "refiner",
        "hires",
        "variation",
    ] {
        let of_task = |path: &&std::path::PathBuf| {
            path.file_stem()
                .unwrap()
                .to_string_lossy()
                .starts_with(task)
        };
        assert!(
            cases.iter().filter(of_task).count() > 2,
            "no cases of {task}"
        );
    }
    cases.iter().for_each(|path| check(path));
}
