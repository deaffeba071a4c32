//! What the tests share: the tiny models of tests/golden, and comparison of whole tensors.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use sd_pipeline::{ModelSource, Picture, Pipeline, Request, RgbImage, Run, Tensor, builtin_model};

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(path)
}

/// The built-in model, or a tiny one.
pub(crate) fn pipeline(family: &str) -> Pipeline {
    let source = match family {
        "builtin" => builtin_model(),
        family => ModelSource::Dir(golden("models").join(family)),
    };
    Pipeline::builder(source).build().expect("the model loads")
}

/// Copies a tiny model of one text encoder, to change it.
pub(crate) fn copy_model(family: &str, target: &Path) {
    for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        fs::create_dir_all(target.join(part)).unwrap();
        for file in fs::read_dir(golden("models").join(family).join(part)).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), target.join(part).join(file.file_name())).unwrap();
            }
        }
    }
}

/// A picture of the golden end-to-end cases: `photo.png` (48x40), `odd.png` (45x35), their masks `hole.png` and
/// `odd-hole.png`, and `window.png`, the photo with a transparent hole.
pub(crate) fn picture(name: &str) -> Picture {
    Picture::from_bytes(fs::read(golden("e2e_images/pictures").join(name)).unwrap())
}

/// A small job for the tiny models.
pub(crate) fn request(prompt: &str) -> Request {
    Request {
        width: Some(64),
        height: Some(64),
        seed: Some(7),
        num_inference_steps: Some(4),
        ..Request::new(prompt)
    }
}

/// Changes the photo.
pub(crate) fn changing(prompt: &str) -> Request {
    Request {
        init_image: Some(picture("photo.png")),
        strength: Some(0.6),
        seed: Some(7),
        num_inference_steps: Some(5),
        ..Request::new(prompt)
    }
}

/// Paints a part of the photo anew.
pub(crate) fn inpainting(prompt: &str) -> Request {
    Request {
        mask_image: Some(picture("hole.png")),
        ..changing(prompt)
    }
}

pub(crate) fn finish(run: &mut Run, pipeline: &Pipeline) -> Vec<Vec<u8>> {
    while run.advance(pipeline).unwrap().is_some() {}
    run.finish(pipeline)
        .unwrap()
        .into_iter()
        .map(|image| image.into_raw())
        .collect()
}

pub(crate) fn pictures(pipeline: &Pipeline, request: &Request) -> Vec<Vec<u8>> {
    finish(&mut pipeline.start(request).unwrap(), pipeline)
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// max|found - expected| / max|expected|, of tensors of one shape. Zeros must be zeros.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    assert!(found.iter().all(|value| value.is_finite()));
    let differences = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| f64::from(*a) - f64::from(*b));
    let scale = largest(expected.iter().copied().map(f64::from));
    largest(differences) / scale.max(f64::MIN_POSITIVE)
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.map(f64::abs).fold(0.0, f64::max)
}

/// Pictures are those of a tensor `[n, height, width, 3]` to one level, on one value in 200.
pub(crate) fn pictures_agree(name: &str, found: &[RgbImage], expected: &Tensor) {
    let dims: Vec<_> = found
        .iter()
        .map(|image| (image.height() as usize, image.width() as usize))
        .collect();
    let &[batch, height, width, 3] = expected.dims() else {
        panic!("{name}: {:?}", expected.dims())
    };
    assert_eq!(dims, vec![(height, width); batch], "{name}");
    let expected: Vec<u8> = expected.flatten_all().unwrap().to_vec1().unwrap();
    let found = found.iter().flat_map(|image| image.as_raw());
    let levels: Vec<u8> = found.zip(&expected).map(|(a, b)| a.abs_diff(*b)).collect();
    let largest = levels.iter().max().copied().unwrap_or_default();
    assert!(largest <= 1, "{name}: {largest} levels");
    let off = levels.iter().filter(|level| **level > 0).count();
    assert!(
        off * 200 <= levels.len(),
        "{name}: {off} of {} values are off by one",
        levels.len()
    );
}
