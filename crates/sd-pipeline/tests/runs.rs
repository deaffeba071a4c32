//! A run from its start to its pictures, and what its caller may do on the way.

mod common;

use std::ops::ControlFlow;

use common::{copy_model, pictures, pipeline, relative_error, request};
use sd_pipeline::{Device, Error, ModelSource, Pipeline, Request};

#[test]
fn generate_is_the_loop_over_a_run() {
    let pipeline = pipeline("sd15");
    let request = Request {
        num_images: Some(2),
        ..request("a cat")
    };
    let mut calls = vec![];
    let made = pipeline.generate(&request, |progress| {
        calls.push((progress.call, progress.step));
        ControlFlow::Continue(())
    });
    let made = made.unwrap();
    // PNDM's first step takes two calls.
    assert_eq!(calls.len(), 5);
    assert_eq!(calls.last(), Some(&(5, 4)));
    assert_eq!(made.job, request.resolve(pipeline.config()).unwrap());
    let images: Vec<Vec<u8>> = made
        .images
        .into_iter()
        .map(|image| image.into_raw())
        .collect();
    assert_eq!(images, pictures(&pipeline, &request));
}

#[test]
fn the_observer_may_stop() {
    let stopped = pipeline("sd15").generate(&request("a cat"), |progress| match progress.call {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(Error::Stopped { call: 3 })));
}

#[test]
fn there_is_no_picture_before_the_last_call() {
    let pipeline = pipeline("sd15");
    let mut run = pipeline.start(&request("a cat")).unwrap();
    run.advance(&pipeline).unwrap();
    let finished = run.finish(&pipeline);
    assert!(matches!(
        finished,
        Err(Error::Unfinished {
            call: 1,
            num_calls: 5
        })
    ));
    assert_eq!(run.decode(&pipeline).unwrap().dims(), [1, 3, 64, 64]);
}

#[test]
fn the_denoised_latents_become_the_result() {
    let pipeline = pipeline("sd15");
    let request = Request {
        scheduler: Some("euler".into()),
        ..request("a cat")
    };
    let mut run = pipeline.start(&request).unwrap();
    assert!(run.denoised().is_none());
    let mut guesses = vec![];
    while run.advance(&pipeline).unwrap().is_some() {
        guesses.push(run.denoised().unwrap().clone());
    }
    let result = run.latents().unwrap();
    let errors: Vec<f64> = guesses
        .iter()
        .map(|guess| relative_error(guess, &result))
        .collect();
    // Euler's last step ends on the denoised latents; earlier ones are guesses.
    assert!(errors[0] > 0.01 && errors[3] < 1e-6, "{errors:?}");
}

#[test]
fn a_run_does_not_keep_the_weights() {
    let pipeline = pipeline("sd15");
    let run = pipeline.start(&request("a cat")).unwrap();
    assert!(run.snapshot().is_ok());
    drop(pipeline);
    assert!(matches!(run.snapshot(), Err(Error::OtherPipeline)));
}

#[test]
fn damaged_weights_make_an_error_and_no_picture() {
    let folder = tempfile::tempdir().unwrap();
    copy_model("sd15", folder.path());
    let weights = folder
        .path()
        .join("vae/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let damaged = (&tensors["decoder.conv_out.bias"] * f64::NAN).unwrap();
    tensors.insert("decoder.conv_out.bias".into(), damaged);
    candle_core::safetensors::save(&tensors, &weights).unwrap();

    let source = ModelSource::Dir(folder.path().into());
    let pipeline = Pipeline::builder(source).build().unwrap();
    let made = pipeline.generate(&request("a cat"), |_| ControlFlow::Continue(()));
    assert!(matches!(made, Err(Error::NotFinite)));
}
