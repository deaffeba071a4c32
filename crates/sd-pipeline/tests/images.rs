//! From values to pixels, and what a picture says about itself.

mod common;

use common::{golden, pipeline, request};
use sd_pipeline::{Device, Error, ModelSource, Request, SeedMode, Tensor, Version, to_rgb};

#[test]
fn values_are_rounded_half_to_even() {
    // Half a level is exact in f32 here; 76.5 and 25.5 go to opposite sides.
    let red = [0.3, 0.1, 0.5, -1.0, 2.0, f32::NAN];
    let green = [1.0 / 255.0; 6];
    let blue = [1.0, 0.0, 0.999, 0.9979, 0.0019, 0.002];
    let images = Tensor::new(&[[[red], [green], [blue]]], &Device::Cpu).unwrap();
    let [image] = <[_; 1]>::try_from(to_rgb(&images).unwrap()).unwrap();
    assert_eq!(image.dimensions(), (6, 1));
    let pixels: Vec<[u8; 3]> = image.pixels().map(|pixel| pixel.0).collect();
    let expected = [
        [76, 1, 255],
        [26, 1, 0],
        [128, 1, 255],
        [0, 1, 254],
        [255, 1, 0],
        [0, 1, 1],
    ];
    assert_eq!(pixels, expected);
}

#[test]
fn what_is_no_picture_is_refused() {
    for shape in [vec![1, 4, 8, 8], vec![3, 8, 8], vec![]] {
        let tensor = Tensor::ones(shape, sd_pipeline::DType::F32, &Device::Cpu).unwrap();
        assert!(
            matches!(to_rgb(&tensor), Err(Error::NotImages { .. })),
            "{tensor}"
        );
    }
}

#[test]
fn a_picture_says_how_it_was_made() {
    let pipeline = pipeline("sd15");
    assert_eq!(pipeline.name(), "sd15");
    let hash = pipeline.weights_sha256().unwrap();
    let request = Request {
        negative_prompt: Some("blurry, dark".into()),
        scheduler: Some("EulerAncestralDiscreteScheduler".into()),
        guidance_scale: Some(7.0),
        num_images: Some(2),
        clip_skip: Some(1),
        ..request("a cat,\non a mat")
    };
    let job = request.resolve(pipeline.config()).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "a cat,\non a mat\nNegative prompt: blurry, dark\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 8, \
         Size: 64x64, Model hash: {}, Model: sd15, Clip skip: 2, Version: sd-pipeline {version}",
        &hash[..10],
    );
    assert_eq!(pipeline.a1111_parameters(&job, 1).unwrap(), expected);

    let metadata = pipeline.metadata(&job, 1).unwrap();
    assert_eq!(metadata["model"]["sha256"], hash);
    assert_eq!(
        (&metadata["seed"], &metadata["image"]),
        (&8.into(), &1.into())
    );
    let again = Request::from_json(&metadata["job"].to_string()).unwrap();
    assert_eq!(again.resolve(pipeline.config()).unwrap(), job);

    let together = Request {
        seed_mode: Some(SeedMode::Batch),
        negative_prompt: None,
        ..request
    };
    let together = together.resolve(pipeline.config()).unwrap();
    let text = pipeline.a1111_parameters(&together, 1).unwrap();
    assert!(
        text.starts_with("a cat,\non a mat\nSteps: 4,") && text.contains("Seed: 7,"),
        "{text}"
    );
}

#[test]
fn a_models_name_cannot_break_the_line_of_settings() {
    let source = ModelSource::Dir(golden("models/sd15"));
    let model = sd_models::load(&source, &sd_pipeline::LoadOptions::default()).unwrap();
    assert_eq!(model.config.version, None::<Version>);
    let pipeline = sd_pipeline::Pipeline::from_model("a, \"b\": c\nd", model);
    let job = request("a cat").resolve(pipeline.config()).unwrap();
    let text = pipeline.a1111_parameters(&job, 0).unwrap();
    assert!(
        text.contains(r#"Model: "a, \"b\": c\nd", Version"#),
        "{text}"
    );
}
