//! What a seed decides: each picture alone, or the batch.

mod common;

use common::{bits, changing, inpainting, pictures, pipeline, relative_error, request, values};
use sd_pipeline::{Request, SeedMode};

#[test]
fn each_picture_can_be_made_again_alone() {
    let pipeline = pipeline("sd15");
    // Ancestral steps draw noise, so the generators must stay apart after the start as well.
    let base = Request {
        scheduler: Some("euler_a".into()),
        ..request("a cat")
    };
    let three = pictures(
        &pipeline,
        &Request {
            num_images: Some(3),
            ..base.clone()
        },
    );
    assert_eq!(three.len(), 3);
    assert_ne!(three[0], three[1]);
    for (image, expected) in three.iter().enumerate() {
        let alone = pictures(
            &pipeline,
            &Request {
                seed: Some(7 + image as u64),
                ..base.clone()
            },
        );
        assert_eq!(&alone[0], expected, "picture {image}");
    }
}

#[test]
fn each_changed_picture_can_be_made_again_alone() {
    let variation = Request {
        variation_seed: Some(70),
        variation_strength: Some(0.2),
        ..changing("a cat")
    };
    for (model, base) in [
        ("sd15", changing("a cat")),
        ("sd15", inpainting("a cat")),
        ("sd15-inpaint", inpainting("a cat")),
        ("sd15", variation),
    ] {
        let pipeline = pipeline(model);
        let base = Request {
            scheduler: Some("euler_a".into()),
            ..base
        };
        let two = pictures(
            &pipeline,
            &Request {
                num_images: Some(2),
                ..base.clone()
            },
        );
        assert_ne!(two[0], two[1], "{model}");
        let job = pipeline.resolve(&base).unwrap();
        for (image, expected) in two.iter().enumerate() {
            let alone = Request {
                seed: Some(job.image_seed(image)),
                variation_seed: job.image_variation_seed(image),
                ..base.clone()
            };
            assert_eq!(
                &pictures(&pipeline, &alone)[0],
                expected,
                "{model}, {image}"
            );
        }
    }
}

#[test]
fn a_variation_lies_between_two_seeds() {
    let pipeline = pipeline("sd15");
    let noise = |seed, variation: Option<(u64, f64)>| {
        let request = Request {
            seed: Some(seed),
            variation_seed: variation.map(|(seed, _)| seed),
            variation_strength: variation.map(|(_, strength)| strength),
            ..request("a cat")
        };
        pipeline.start(&request).unwrap().latents().unwrap()
    };
    let (from, to) = (noise(7, None), noise(8, None));
    assert_eq!(bits(&noise(7, Some((8, 0.0)))), bits(&from));
    assert!(relative_error(&noise(7, Some((8, 1.0))), &to) < 1e-6);
    // Towards itself there is nowhere to go.
    assert!(relative_error(&noise(7, Some((7, 0.5))), &from) < 1e-6);
    let distances: Vec<f64> = [0.2, 0.5, 0.8]
        .map(|strength| relative_error(&noise(7, Some((8, strength))), &from))
        .into();
    assert!(
        distances.is_sorted() && distances[0] > 0.05,
        "{distances:?}"
    );
    // One latent is a row of parallel numbers.
    let tiny = Request {
        width: Some(8),
        height: Some(8),
        variation_strength: Some(0.5),
        ..request("a cat")
    };
    let tiny = pipeline.start(&tiny).unwrap().latents().unwrap();
    assert!(values(&tiny).iter().all(|value| value.is_finite()));
}

#[test]
fn batch_mode_draws_all_pictures_from_one_generator() {
    let pipeline = pipeline("sd15");
    let latents = |num_images, seed_mode| {
        let request = Request {
            num_images: Some(num_images),
            seed_mode: Some(seed_mode),
            ..request("a cat")
        };
        bits(&pipeline.start(&request).unwrap().latents().unwrap())
    };
    let together = latents(2, SeedMode::Batch);
    let apart = latents(2, SeedMode::PerImage);
    assert_eq!(together[..apart.len() / 2], apart[..apart.len() / 2]);
    assert_ne!(together[apart.len() / 2..], apart[apart.len() / 2..]);
    assert_eq!(latents(1, SeedMode::Batch), latents(1, SeedMode::PerImage));
}

#[test]
fn a_seed_is_drawn_when_none_is_given_and_makes_the_picture_again() {
    let pipeline = pipeline("sd15");
    let unseeded = Request {
        seed: None,
        ..request("a cat")
    };
    let (first, second) = (
        pipeline.start(&unseeded).unwrap(),
        pipeline.start(&unseeded).unwrap(),
    );
    assert_ne!(first.job().seed, second.job().seed);
    let again = pipeline
        .start(&Request {
            seed: Some(first.job().seed),
            ..unseeded
        })
        .unwrap();
    assert_eq!(
        bits(&first.latents().unwrap()),
        bits(&again.latents().unwrap())
    );
}
