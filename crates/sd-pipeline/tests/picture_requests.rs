//! Requests with pictures, masks, variations and second passes: defaults, limits and words.

mod common;

use common::{changing, inpainting, picture, pipeline};
use sd_pipeline::{
    Error, Hires, Job, MaskPolarity, ModelConfig, Picture, Request, ResizeMode, Upscaler, Version,
};
use serde_json::{Value, json};

fn resolve(version: Version, request: &Request) -> Result<Job, Error> {
    request.resolve(&ModelConfig::preset(version))
}

#[test]
fn defaults_are_those_of_diffusers_for_the_task() {
    let changing = Request {
        init_image: Some(picture("photo.png")),
        ..Request::new("a cat")
    };
    let inpainting = Request {
        mask_image: Some(picture("hole.png")),
        ..changing.clone()
    };
    for (version, request, strength, guidance) in [
        (Version::V1_5, &changing, 0.8, 7.5),
        (Version::V2_1, &changing, 0.8, 7.5),
        (Version::Xl, &changing, 0.3, 5.0),
        (Version::XlRefiner, &changing, 0.3, 5.0),
        (Version::V1_5, &inpainting, 1.0, 7.5),
        (Version::V1_5Inpaint, &inpainting, 1.0, 7.5),
        (Version::V2Inpaint, &inpainting, 1.0, 7.5),
        (Version::Xl, &inpainting, 0.9999, 7.5),
        (Version::XlInpaint, &inpainting, 0.9999, 7.5),
    ] {
        let job = resolve(version, request).unwrap();
        assert_eq!(job.strength, Some(strength), "{version}");
        assert_eq!(job.guidance_scale, guidance, "{version}");
        assert_eq!((job.width, job.height), (48, 40), "{version}");
        assert_eq!(job.resize_mode, Some(ResizeMode::Stretch), "{version}");
    }

    let job = resolve(Version::V1_5, &inpainting).unwrap();
    let white = Some(MaskPolarity::WhiteRepaints);
    assert_eq!(
        (job.mask_polarity, job.mask_blur, job.overlay),
        (white, Some(0.0), Some(false))
    );
    let part = Request {
        padding_mask_crop: Some(8),
        ..inpainting
    };
    let job = resolve(Version::V1_5, &part).unwrap();
    assert_eq!((job.width, job.height), (512, 512));
    assert_eq!(
        (job.overlay, job.resize_mode),
        (Some(true), Some(ResizeMode::Fill))
    );

    let refiner = resolve(Version::XlRefiner, &changing).unwrap();
    let scores = (refiner.aesthetic_score, refiner.negative_aesthetic_score);
    assert_eq!(scores, (Some(6.0), Some(2.5)));
    assert_eq!(refiner.original_size, Some((40, 48)));
    assert_eq!(refiner.target_size, None);

    let text = resolve(Version::V1_5, &Request::new("a cat")).unwrap();
    assert_eq!(
        (text.strength, text.resize_mode, text.overlay),
        (None, None, None)
    );
}

#[test]
fn a_pictures_size_is_brought_down_to_whole_latents() {
    let odd = Request {
        init_image: Some(picture("odd.png")),
        ..Request::new("a cat")
    };
    let size = |request: &Request| {
        let job = resolve(Version::V1_5, request).unwrap();
        (job.width, job.height)
    };
    assert_eq!(size(&odd), (40, 32));
    let wide = Request {
        width: Some(64),
        ..odd
    };
    assert_eq!(size(&wide), (64, 32));
}

#[test]
fn xl_takes_negative_sizes_one_by_one_for_a_picture() {
    let request = Request {
        init_image: Some(picture("photo.png")),
        original_size: Some((96, 80)),
        crops_coords_top_left: Some((1, 2)),
        negative_target_size: Some((3, 4)),
        negative_crops_coords_top_left: Some((5, 6)),
        num_inference_steps: Some(10),
        ..Request::new("a cat")
    };
    let job = resolve(Version::Xl, &request).unwrap();
    assert_eq!(job.negative_original_size, Some((96, 80)));
    assert_eq!(job.negative_target_size, Some((3, 4)));
    // diffusers passes on the positive prompt's crop.
    assert_eq!(job.negative_crops_coords_top_left, Some((1, 2)));
    let refiner = Request {
        negative_target_size: None,
        ..request
    };
    let job = resolve(Version::XlRefiner, &refiner).unwrap();
    assert_eq!(job.negative_crops_coords_top_left, Some((5, 6)));
}

#[test]
fn a_second_pass_is_complete_in_the_job() {
    let hires = |hires: Value| {
        let json = json!({"prompt": "a cat", "width": 512, "height": 384, "hires": hires});
        let request = Request::from_json(&json.to_string()).unwrap();
        resolve(Version::V1_5, &request).map(|job| job.hires.unwrap())
    };
    let all = |width, height, upscaler, strength, steps| Hires {
        scale: None,
        width: Some(width),
        height: Some(height),
        upscaler: Some(upscaler),
        strength: Some(strength),
        num_inference_steps: Some(steps),
    };
    let linear = Upscaler::LatentBilinear;
    for (given, expected) in [
        (json!({}), all(1024, 768, linear, 0.7, 50)),
        (json!({"scale": 1.3}), all(664, 496, linear, 0.7, 50)),
        (json!({"width": 640}), all(640, 480, linear, 0.7, 50)),
        (json!({"height": 400}), all(528, 400, linear, 0.7, 50)),
        (
            json!({"width": 512, "height": 800, "upscaler": "lanczos", "strength": 0.2, "num_inference_steps": 9}),
            all(512, 800, Upscaler::Lanczos, 0.2, 9),
        ),
    ] {
        assert_eq!(hires(given).unwrap(), expected);
    }
    for (given, message) in [
        (
            json!({"scale": 0.5}),
            "hires.scale: got 0.5, expected 1 to 8",
        ),
        (
            json!({"scale": 2, "width": 640}),
            "hires.scale: got 2.0, expected none",
        ),
        (
            json!({"width": 641}),
            "hires.width: got 641, expected a multiple of 8",
        ),
        (json!({"width": 9000}), "hires.width: got 9000"),
        (json!({"width": 0}), "hires.width: got 0"),
        (json!({"width": usize::MAX}), "hires.width"),
        (
            json!({"strength": 2}),
            "hires.strength: got 2, expected 0 to 1",
        ),
        (
            json!({"strength": 0.01}),
            "hires.strength: got 0.01, expected a share that leaves one of 50 steps",
        ),
        (
            json!({"num_inference_steps": 0}),
            "hires.num_inference_steps: got 0, expected 1 to 1000",
        ),
    ] {
        let error = hires(given.clone()).unwrap_err().to_string();
        assert!(error.contains(message), "{given}: {error}");
    }
}

/// Fields of a request, with names of pictures in place of pictures.
fn request(mut fields: Value) -> Request {
    fields["prompt"] = "a cat".into();
    for field in ["init_image", "mask_image"] {
        if let Some(name) = fields[field].as_str() {
            fields[field] = picture(name).to_base64().into();
        }
    }
    let fields = fields.as_object().unwrap().clone();
    let given = fields.into_iter().filter(|(_, value)| !value.is_null());
    Request::from_json(&Value::Object(given.collect()).to_string()).unwrap()
}

#[test]
fn what_does_not_fit_names_field_value_and_reason() {
    let (v1, xl) = (Version::V1_5, Version::Xl);
    let photo = "photo.png";
    for (version, fields, message) in [
        // Without a picture.
        (
            v1,
            json!({"strength": 0.5}),
            "strength: got 0.5, expected none: there is no init_image",
        ),
        (
            v1,
            json!({"resize_mode": "crop"}),
            "resize_mode: got Crop, expected none: there is no init_image",
        ),
        (
            v1,
            json!({"mask_image": "hole.png"}),
            "mask_image: got a picture, expected none: there is no init_image",
        ),
        // Without a mask.
        (
            v1,
            json!({"init_image": photo, "mask_blur": 1}),
            "mask_blur: got 1.0, expected none: there is no mask_image",
        ),
        (
            v1,
            json!({"init_image": photo, "overlay": true}),
            "overlay: got true, expected none: there is no mask_image",
        ),
        (
            v1,
            json!({"init_image": photo, "padding_mask_crop": 1}),
            "padding_mask_crop: got 1, expected none",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_polarity": "black_repaints"}),
            "mask_polarity: got BlackRepaints",
        ),
        // Limits.
        (
            v1,
            json!({"init_image": photo, "strength": 1.1}),
            "strength: got 1.1, expected 0 to 1",
        ),
        (
            v1,
            json!({"init_image": photo, "strength": 0.1, "num_inference_steps": 9}),
            "strength: got 0.1, expected a share that leaves one of 9 steps",
        ),
        (
            v1,
            json!({"init_image": photo, "guidance_rescale": 0.7}),
            "guidance_rescale: got 0.7, expected 0: only XL",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "hole.png", "mask_blur": -1}),
            "mask_blur: got -1, expected 0 to",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "hole.png", "padding_mask_crop": 10_000}),
            "padding_mask_crop: got 10000, expected 0 to 8192",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "hole.png", "padding_mask_crop": 1, "overlay": false}),
            "overlay: got false, expected true, with padding_mask_crop",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "hole.png", "overlay": true, "resize_mode": "crop"}),
            "resize_mode: got Crop, expected stretch, with overlay",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "hole.png", "padding_mask_crop": 1, "resize_mode": "stretch"}),
            "resize_mode: got Stretch, expected fill, with padding_mask_crop",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "odd-hole.png", "overlay": true}),
            "mask_image: got 45x35 pixels, expected 48x40 pixels, as init_image has",
        ),
        (
            v1,
            json!({"init_image": photo, "mask_image": "hole.png", "mask_polarity": "transparent_repaints"}),
            "mask_image: got an opaque picture, expected one with transparency",
        ),
        (
            Version::Lcm,
            json!({"init_image": photo, "scheduler": "pndm"}),
            "scheduler: got pndm, expected one that can start in the middle (this one: call 0, or skip_prk_steps)",
        ),
        (
            Version::Lcm,
            json!({"init_image": photo, "strength": 0.1, "num_inference_steps": 6}),
            "num_inference_steps: got 6, expected at most 5, by strength, of 50",
        ),
        // Variations.
        (
            v1,
            json!({"variation_seed": 3}),
            "variation_seed: got 3, expected none: there is no variation_strength",
        ),
        (
            v1,
            json!({"variation_strength": 1.5}),
            "variation_strength: got 1.5, expected 0 to 1",
        ),
        // The hand-over.
        (
            v1,
            json!({"denoising_end": 0.5}),
            "denoising_end: got 0.5, expected none: only XL",
        ),
        (
            xl,
            json!({"denoising_end": 1}),
            "denoising_end: got 1, expected more than 0 and less than 1",
        ),
        (
            xl,
            json!({"denoising_start": 0}),
            "denoising_start: got 0, expected more than 0 and less than 1",
        ),
        (
            xl,
            json!({"denoising_start": 0.5, "denoising_end": 0.5}),
            "denoising_end: got 0.5, expected more than 0.5",
        ),
        (
            xl,
            json!({"denoising_end": 0.001}),
            "denoising_end: got 0.001, expected a share that leaves one of 50 steps",
        ),
        (
            xl,
            json!({"denoising_start": 0.999}),
            "denoising_start: got 0.999, expected a share that leaves one of 50",
        ),
        (
            xl,
            json!({"init_image": photo, "denoising_start": 0.5}),
            "denoising_start: got 0.5, expected none",
        ),
        (
            xl,
            json!({"aesthetic_score": 6}),
            "aesthetic_score: got 6.0, expected none: this model is no refiner",
        ),
        (
            Version::XlRefiner,
            json!({"init_image": photo, "aesthetic_score": 11}),
            "aesthetic_score: got 11, expected 0 to 10",
        ),
        (
            Version::XlRefiner,
            json!({"init_image": photo, "target_size": [8, 8]}),
            "target_size: got (8, 8), expected none: a refiner is told an aesthetic score",
        ),
        // One thing at a time.
        (
            v1,
            json!({"init_image": photo, "hires": {}}),
            "expected none: only finished text-to-image has a second pass",
        ),
        (
            xl,
            json!({"denoising_end": 0.5, "hires": {}}),
            "expected none: only finished text-to-image has a second pass",
        ),
        // What a model cannot do.
        (
            Version::V1_5Inpaint,
            json!({}),
            "it is an inpainting model, which needs init_image and mask_image",
        ),
        (
            Version::XlInpaint,
            json!({"init_image": photo}),
            "mask_image: got none, expected a mask",
        ),
        (
            Version::XlRefiner,
            json!({}),
            "it is a refiner, which goes on with init_image or another model's latents",
        ),
    ] {
        let error = resolve(version, &request(fields.clone())).unwrap_err();
        assert!(error.to_string().contains(message), "{fields}: {error}");
    }
}

#[test]
fn pictures_that_cannot_be_used_name_their_field() {
    let noise = Picture::from_bytes(*b"no picture");
    let error = |request| resolve(Version::V1_5, &request).unwrap_err();
    for (request, name) in [
        (
            Request {
                init_image: Some(noise.clone()),
                ..changing("a cat")
            },
            "init_image",
        ),
        (
            Request {
                mask_image: Some(noise),
                ..inpainting("a cat")
            },
            "mask_image",
        ),
    ] {
        assert!(matches!(error(request), Error::Picture { field, .. } if field == name));
    }

    let pixels = |width, height, value| {
        let image = image::GrayImage::from_pixel(width, height, image::Luma([value]));
        let mut png = std::io::Cursor::new(vec![]);
        image.write_to(&mut png, image::ImageFormat::Png).unwrap();
        Picture::from_bytes(png.into_inner())
    };
    let black = Request {
        mask_image: Some(pixels(48, 40, 0)),
        ..inpainting("a cat")
    };
    let message = error(black.clone()).to_string();
    assert!(
        message.contains("mask_image: got one that marks nothing"),
        "{message}"
    );
    // Turned round it marks everything.
    let all = Request {
        mask_polarity: Some(MaskPolarity::BlackRepaints),
        ..black
    };
    assert!(resolve(Version::V1_5, &all).is_ok());

    // Within its margins it would have no height.
    let flat = Request {
        init_image: Some(pixels(900, 1, 9)),
        resize_mode: Some(ResizeMode::Fill),
        width: Some(512),
        height: Some(8),
        ..changing("a cat")
    };
    let flat = error(flat);
    assert!(
        matches!(
            flat,
            Error::Picture {
                field: "init_image",
                ..
            }
        ),
        "{flat}"
    );

    let small = Request {
        init_image: Some(pixels(5, 40, 9)),
        ..changing("a cat")
    };
    let message = error(small.clone()).to_string();
    let expected = "init_image: got 5x40 pixels, expected 8x8 at least, or width and height";
    assert!(message.contains(expected), "{message}");
    let sized = Request {
        width: Some(8),
        ..small
    };
    assert!(resolve(Version::V1_5, &sized).is_ok());
}

#[test]
fn a_jobs_json_is_a_request_for_it() {
    let hires = Request {
        hires: Some(Hires {
            scale: Some(1.7),
            ..Hires::default()
        }),
        variation_strength: Some(0.1),
        ..Request::new("a cat")
    };
    let part = Request {
        padding_mask_crop: Some(5),
        mask_blur: Some(0.1 + 0.2),
        ..inpainting("a cat")
    };
    let stopped = Request {
        denoising_end: Some(0.8),
        ..Request::new("a cat")
    };
    for (version, request) in [
        (Version::V1_5, changing("a cat")),
        (Version::V1_5, hires),
        (Version::XlInpaint, part),
        (Version::Xl, stopped),
        (Version::XlRefiner, changing("a cat")),
    ] {
        let job = resolve(version, &request).unwrap();
        let again = Request::from_json(&serde_json::to_string(&job).unwrap()).unwrap();
        assert_eq!(resolve(version, &again).unwrap(), job);
    }
}

#[test]
fn metadata_has_hashes_in_place_of_pictures() {
    let pipeline = pipeline("sd15");
    let request = Request {
        num_images: Some(2),
        mask_blur: Some(1.5),
        padding_mask_crop: Some(4),
        variation_seed: Some(70),
        variation_strength: Some(0.25),
        ..inpainting("a cat")
    };
    let job = pipeline.resolve(&request).unwrap();
    let metadata = pipeline.metadata(&job, 1).unwrap();
    for (field, name) in [("init_image", "photo.png"), ("mask_image", "hole.png")] {
        assert_eq!(
            metadata["job"][field],
            json!({"sha256": picture(name).sha256()})
        );
    }
    assert!(
        !metadata
            .to_string()
            .contains(&picture("hole.png").to_base64())
    );
    assert_eq!(
        (&metadata["seed"], &metadata["variation_seed"]),
        (&7.into(), &71.into())
    );
    let text = pipeline.a1111_parameters(&job, 1).unwrap();
    let expected = "Denoising strength: 0.6, Mask blur: 1.5, Inpaint area: Only masked, Masked area padding: 4, \
                    Variation seed: 71, Variation seed strength: 0.25, Version";
    assert!(text.contains(expected), "{text}");

    let hires = Request {
        hires: Some(Hires::default()),
        width: Some(24),
        height: Some(32),
        ..Request::new("a cat")
    };
    let text = pipeline
        .a1111_parameters(&pipeline.resolve(&hires).unwrap(), 0)
        .unwrap();
    let expected = "Size: 24x32, ";
    assert!(text.contains(expected), "{text}");
    let expected = "Denoising strength: 0.7, Hires resize: 48x64, Hires steps: 50, Hires upscaler: Latent, Version";
    assert!(text.contains(expected), "{text}");
}
