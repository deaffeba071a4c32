//! Runs that share a UNet call end in the same bytes as alone.

mod common;

use common::{bits, changing, inpainting, pictures, pipeline, request};
use sd_pipeline::{Error, Hires, Pipeline, Progress, Request, Run};

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
        for (progress, done) in progress.into_iter().zip(done) {
            assert_eq!(progress.is_none(), done);
            assert!(progress.is_none_or(|progress| progress.call == calls));
            assert!(progress.is_none_or(|progress| progress.step <= progress.num_steps));
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

/// Runs that start from noise, from a picture, and from a part of one.
fn tasks() -> Vec<Request> {
    vec![
        Request {
            width: Some(48),
            height: Some(40),
            ..request("a cat")
        },
        Request {
            num_images: Some(2),
            scheduler: Some("euler_a".into()),
            ..changing("a dog")
        },
        inpainting("a hat"),
        Request {
            scheduler: Some("heun".into()),
            strength: Some(0.3),
            num_inference_steps: Some(8),
            ..inpainting("a hat")
        },
    ]
}

#[test]
fn different_tasks_advance_together() {
    check(&pipeline("sd15"), &tasks());
    check(&pipeline("sdxl"), &tasks());
}

#[test]
fn runs_of_an_inpainting_model_advance_together() {
    let crop = Request {
        padding_mask_crop: Some(2),
        width: Some(48),
        height: Some(40),
        guidance_scale: Some(1.0),
        ..inpainting("a cat")
    };
    check(&pipeline("sd15-inpaint"), &[inpainting("a hat"), crop]);
}

#[test]
fn a_second_pass_joins_runs_of_its_own_size() {
    let pipeline = pipeline("sd15");
    let small = Request {
        width: Some(24),
        height: Some(24),
        num_inference_steps: Some(2),
        scheduler: Some("euler".into()),
        ..request("a cat")
    };
    let growing = Request {
        hires: Some(Hires {
            strength: Some(1.0),
            ..Hires::default()
        }),
        ..small.clone()
    };
    let large = Request {
        width: Some(48),
        height: Some(48),
        ..small.clone()
    };
    let start = |request| pipeline.start(request).unwrap();
    let mut alone = start(&growing);
    while alone.advance(&pipeline).unwrap().is_some() {}
    let (mut small, mut growing, mut large) = (start(&small), start(&growing), start(&large));
    let mut calls = vec![];
    for _ in 0..2 {
        assert!(small.joins(&growing) && !growing.joins(&large));
        let progress = pipeline.advance_many(&mut [&mut small, &mut growing]);
        calls.extend(progress.unwrap()[1]);
    }
    for _ in 0..2 {
        assert!(growing.joins(&large) && !growing.joins(&small));
        let progress = pipeline.advance_many(&mut [&mut growing, &mut large]);
        calls.extend(progress.unwrap()[0]);
    }
    let counted = |progress: &Progress| (progress.call, progress.step, progress.num_steps);
    let counted: Vec<_> = calls.iter().map(counted).collect();
    assert_eq!(counted, [(1, 1, 4), (2, 2, 4), (3, 3, 4), (4, 4, 4)]);
    assert!(calls.iter().all(|progress| progress.num_calls == 4));
    assert_eq!(latents(&alone), latents(&growing));
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
