//! What a seed decides: each picture alone, or the batch.

mod common;

use common::{bits, pictures, pipeline, request};
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
