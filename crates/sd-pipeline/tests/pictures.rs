//! Runs that start from pictures, latents and first passes, beyond what is compared with diffusers.

mod common;

use std::{fs, io::Cursor};

use common::{
    bits, changing, copy_model, finish, inpainting, picture, pipeline, relative_error, request,
};
use sd_pipeline::{
    Error, Hires, MaskPolarity, ModelSource, Picture, Pipeline, Request, RgbImage, SeedMode,
    Tensor, Upscaler,
};

fn images(pipeline: &Pipeline, request: &Request) -> Vec<RgbImage> {
    let mut run = pipeline.start(request).unwrap();
    finish(&mut run, pipeline);
    run.finish(pipeline).unwrap()
}

fn png(image: &RgbImage) -> Picture {
    let mut png = Cursor::new(vec![]);
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    Picture::from_bytes(png.into_inner())
}

fn pixels(name: &str) -> RgbImage {
    image::load_from_memory(picture(name).bytes())
        .unwrap()
        .into_rgb8()
}

#[test]
fn with_an_overlay_what_the_mask_keeps_is_the_originals() {
    let original = pixels("odd.png");
    let mask = pixels("odd-hole.png");
    for (model, padding_mask_crop, mask_blur) in [
        ("sd15", None, 0.0),
        ("sd15", Some(3), 1.5),
        ("sd15-inpaint", None, 2.0),
        ("sd15-inpaint", Some(0), 0.0),
    ] {
        let pipeline = pipeline(model);
        let request = Request {
            init_image: Some(picture("odd.png")),
            mask_image: Some(picture("odd-hole.png")),
            num_images: Some(2),
            padding_mask_crop,
            mask_blur: Some(mask_blur),
            overlay: Some(true),
            width: Some(48),
            height: Some(32),
            ..changing("a cat")
        };
        for made in images(&pipeline, &request) {
            assert_eq!(made.dimensions(), original.dimensions());
            // Three box blurs reach less than twice the radius and three pixels.
            let reach = (mask_blur * 2.0).ceil() as i64 + if mask_blur > 0.0 { 3 } else { 0 };
            let marked = |x: u32, y: u32| {
                (-reach..=reach).any(|dy| {
                    (-reach..=reach).any(|dx| {
                        let (x, y) = (i64::from(x) + dx, i64::from(y) + dy);
                        let inside = x >= 0 && y >= 0;
                        let value = || mask.get_pixel_checked(x as u32, y as u32);
                        inside && value().is_some_and(|pixel| pixel.0[0] > 0)
                    })
                })
            };
            let (mut kept, mut changed) = (0, 0);
            for (x, y, pixel) in made.enumerate_pixels() {
                if !marked(x, y) {
                    assert_eq!(pixel, original.get_pixel(x, y), "{model}: {x}, {y}");
                    kept += 1;
                } else if pixel != original.get_pixel(x, y) {
                    changed += 1;
                }
            }
            assert!(kept > 50 && changed > 100, "{model}: {kept} and {changed}");
        }
    }
}

#[test]
fn a_mask_may_say_it_in_black_or_in_transparency() {
    let pipeline = pipeline("sd15");
    let white = images(&pipeline, &inpainting("a cat"));
    let transparent = Request {
        mask_image: Some(picture("window.png")),
        mask_polarity: Some(MaskPolarity::TransparentRepaints),
        ..inpainting("a cat")
    };
    assert_eq!(images(&pipeline, &transparent), white);
    let black = Request {
        mask_polarity: Some(MaskPolarity::BlackRepaints),
        ..inpainting("a cat")
    };
    assert_ne!(images(&pipeline, &black), white);
}

#[test]
fn two_passes_are_two_requests() {
    let pipeline = pipeline("sd15");
    let small = Request {
        width: Some(24),
        height: Some(32),
        num_images: Some(2),
        scheduler: Some("euler_a".into()),
        ..request("a cat")
    };
    let both = Request {
        hires: Some(Hires {
            upscaler: Some(Upscaler::Lanczos),
            num_inference_steps: Some(3),
            ..Hires::default()
        }),
        ..small.clone()
    };
    let made = images(&pipeline, &both);
    for (index, first) in images(&pipeline, &small).iter().enumerate() {
        let second = Request {
            init_image: Some(png(first)),
            width: Some(48),
            height: Some(64),
            strength: Some(0.7),
            num_inference_steps: Some(3),
            num_images: None,
            seed: Some(7 + index as u64),
            ..small.clone()
        };
        assert_eq!(
            images(&pipeline, &second)[0],
            made[index],
            "picture {index}"
        );
    }
}

/// A schedule that ends at its least sigma leaves the latents at a scale of their own.
#[test]
fn two_passes_are_two_requests_where_noise_is_left() {
    let folder = tempfile::tempdir().unwrap();
    copy_model("sd15", folder.path());
    let mut betas = vec![0.005; 1000];
    betas[0] = 0.9;
    let config = serde_json::json!({
        "_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, "steps_offset": 1,
        "trained_betas": betas, "final_sigmas_type": "sigma_min",
    });
    let file = folder.path().join("scheduler/scheduler_config.json");
    fs::write(file, config.to_string()).unwrap();
    let source = ModelSource::Dir(folder.path().into());
    let pipeline = Pipeline::builder(source).build().unwrap();

    let first = Request {
        scheduler: Some("euler".into()),
        ..request("a cat")
    };
    let both = Request {
        hires: Some(Hires {
            scale: Some(1.0),
            upscaler: Some(Upscaler::Lanczos),
            ..Hires::default()
        }),
        ..first.clone()
    };
    let mut run = pipeline.start(&first).unwrap();
    let made = finish(&mut run, &pipeline).remove(0);
    let second = Request {
        init_image: Some(png(&RgbImage::from_raw(64, 64, made).unwrap())),
        strength: Some(0.7),
        ..first
    };
    let second = pipeline.start(&second).unwrap();
    let mut run = pipeline.start(&both).unwrap();
    for _ in 0..4 {
        run.advance(&pipeline).unwrap();
    }
    let [found, expected] = [&run, &second].map(|run| bits(&run.latents().unwrap()));
    assert_eq!(found, expected);
}

#[test]
fn latents_are_handed_over_as_they_are() {
    let (base, refiner) = (pipeline("sdxl"), pipeline("sdxl-refiner"));
    let stopped = Request {
        denoising_end: Some(0.5),
        num_images: Some(2),
        seed_mode: Some(SeedMode::Batch),
        ..request("a cat")
    };
    let mut run = base.start(&stopped).unwrap();
    finish(&mut run, &base);
    let latents = run.latents().unwrap();
    let going_on = Request {
        denoising_start: Some(0.5),
        num_inference_steps: Some(4),
        ..Request::new("a cat")
    };
    let second = refiner.start_from(&going_on, &latents).unwrap();
    assert_eq!((second.job().width, second.job().height), (64, 64));
    assert_eq!(second.job().num_images, 2);
    assert!(relative_error(&second.latents().unwrap(), &latents) < 1e-6);

    let wide = Request {
        width: Some(72),
        ..going_on.clone()
    };
    let flat = latents.flatten_all().unwrap();
    for (request, latents, reason) in [
        (
            &wide,
            &latents,
            "latents are [2, 4, 8, 8], expected [2, 4, 8, 9]",
        ),
        (
            &going_on,
            &flat,
            "latents are [512], expected four dimensions",
        ),
    ] {
        let error = refiner.start_from(request, latents).unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
    for (result, reason) in [
        (
            refiner.start(&going_on),
            "denoising_start: got 0.5, expected none: only a run started from latents goes on",
        ),
        (
            refiner.start_from(&changing("a cat"), &latents),
            "denoising_start: got none, expected the share that the latents are at",
        ),
    ] {
        assert_eq!(result.unwrap_err().to_string(), reason);
    }
}

#[test]
fn a_step_that_fails_can_be_tried_again() {
    let pipeline = pipeline("sd15");
    let request = Request {
        width: Some(24),
        height: Some(24),
        num_inference_steps: Some(1),
        hires: Some(Hires {
            strength: Some(1.0),
            upscaler: Some(Upscaler::Lanczos),
            ..Hires::default()
        }),
        ..request("a cat")
    };
    let mut run = pipeline.start(&request).unwrap();
    assert!(matches!(
        run.finish(&pipeline),
        Err(Error::Unfinished {
            call: 0,
            num_calls: 2
        })
    ));
    let before = bits(&run.latents().unwrap());
    let other = common::pipeline("sd21");
    assert!(run.advance(&other).is_err());
    assert_eq!(bits(&run.latents().unwrap()), before);
    let shape = |run: &sd_pipeline::Run| Tensor::dims(&run.latents().unwrap()).to_vec();
    assert_eq!(shape(&run), [1, 4, 3, 3]);
    run.advance(&pipeline).unwrap();
    assert_eq!(shape(&run), [1, 4, 6, 6]);
    run.advance(&pipeline).unwrap();
    assert_eq!(run.advance(&pipeline).unwrap(), None);
    assert_eq!(run.finish(&pipeline).unwrap()[0].dimensions(), (48, 48));
}
