//! Runs that share a UNet call end in the same bytes as alone.

mod common;

use common::{bits, pictures, pipeline, request};
use sd_pipeline::{Error, Pipeline, Request, Run};

/// Runs that differ in everything that may: prompt, seed, steps, guidance, scheduler, number of pictures.
fn different(xl: bool) -> Vec<Request> {
    let base = request("a cat");
    vec![
        Request {
            num_inference_steps: Some(3),
            guidance_scale: Some(7.5),
            ..base.clone()
        },
        Request {
            scheduler: Some("euler_a".into()),
            seed: Some(1),
            guidance_scale: Some(0.0),
            ..request("a dog")
        },
        Request {
            scheduler: Some("pndm".into()),
            num_inference_steps: Some(5),
            guidance_scale: Some(3.0),
            guidance_rescale: Some(0.7),
            num_images: Some(2),
            negative_prompt: Some("blue".into()),
            ..base.clone()
        },
        Request {
            scheduler: Some("ddim".into()),
            eta: Some(0.5),
            num_inference_steps: Some(1),
            ..base.clone()
        },
        Request {
            scheduler: Some("euler".into()),
            seed: Some(99),
            original_size: xl.then_some((512, 256)),
            ..request("ein Hund, der sehr lange läuft")
        },
    ]
}

fn latents(run: &Run) -> Vec<u32> {
    bits(&run.latents().unwrap())
}

fn check(pipeline: &Pipeline, requests: &[Request]) {
    let mut runs: Vec<Run> = requests
        .iter()
        .map(|request| pipeline.start(request).unwrap())
        .collect();
    let mut calls = 0;
    while !runs.iter().all(Run::is_done) {
        let done: Vec<bool> = runs.iter().map(Run::is_done).collect();
        let progress = pipeline
            .advance_many(&mut runs.iter_mut().collect::<Vec<_>>())
            .unwrap();
        calls += 1;
        for ((run, progress), done) in runs.iter().zip(progress).zip(done) {
            assert_eq!(progress.is_none(), done);
            assert!(progress.is_none_or(|progress| progress.call == calls));
            assert!(progress.is_none_or(|progress| progress.step <= run.job().num_inference_steps));
        }
    }
    for (request, together) in requests.iter().zip(&runs) {
        let mut alone = pipeline.start(request).unwrap();
        while alone.advance(pipeline).unwrap().is_some() {}
        assert!(
            latents(&alone) == latents(together),
            "{request:?} is different in company"
        );
        assert_eq!(
            bits(&alone.decode(pipeline).unwrap()),
            bits(&together.decode(pipeline).unwrap())
        );
    }
}

#[test]
fn different_runs_advance_together() {
    check(&pipeline("sd15"), &different(false));
}

#[test]
fn different_runs_of_xl_advance_together() {
    check(&pipeline("sdxl"), &different(true));
}

#[test]
fn different_runs_with_a_guidance_embedding_advance_together() {
    let request = |guidance_scale, num_inference_steps| Request {
        guidance_scale: Some(guidance_scale),
        num_inference_steps: Some(num_inference_steps),
        ..request("a cat")
    };
    check(
        &pipeline("lcm"),
        &[request(8.5, 4), request(2.0, 3), request(0.0, 1)],
    );
}

#[test]
fn other_shapes_and_other_weights_are_refused() {
    let (pipeline, other) = (pipeline("sd15"), pipeline("sd21"));
    let mut run = pipeline.start(&request("a cat")).unwrap();
    let before = latents(&run);
    let mut wide = pipeline
        .start(&Request {
            width: Some(72),
            ..request("a cat")
        })
        .unwrap();
    let error = pipeline
        .advance_many(&mut [&mut run, &mut wide])
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Batch {
                what: "latents",
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(run.advance(&other), Err(Error::OtherPipeline)));
    assert!(matches!(run.decode(&other), Err(Error::OtherPipeline)));
    assert_eq!(latents(&run), before);
    assert_eq!(pipeline.advance_many(&mut []).unwrap(), []);
}

#[test]
fn threads_share_a_pipeline() {
    let pipeline = pipeline("sd15");
    let expected = pictures(&pipeline, &request("a cat"));
    let made = std::thread::scope(|scope| {
        let thread = || scope.spawn(|| pictures(&pipeline, &request("a cat")));
        [thread(), thread()].map(|thread| thread.join().unwrap())
    });
    assert!(made.iter().all(|made| made == &expected));
}
