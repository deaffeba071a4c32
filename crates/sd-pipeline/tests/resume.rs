//! Snapshots: exact between any two calls, and harmless whatever bytes they are.

mod common;

use std::{fs, sync::LazyLock};

use common::{changing, copy_model, finish, inpainting, picture, pipeline, request};
use proptest::prelude::*;
use sd_pipeline::{Error, Hires, ModelSource, Pipeline, Request, SeedMode, Upscaler};

/// Every snapshot of a run, resumed, ends in the same pictures and the same last snapshot.
fn check(pipeline: &Pipeline, request: &Request) {
    let mut run = pipeline.start(request).unwrap();
    let mut snapshots = vec![run.snapshot().unwrap()];
    while run.advance(pipeline).unwrap().is_some() {
        snapshots.push(run.snapshot().unwrap());
    }
    let expected = finish(&mut run, pipeline);
    for (call, snapshot) in snapshots.iter().enumerate() {
        let mut resumed = pipeline.resume(snapshot).unwrap();
        assert_eq!(resumed.job(), run.job());
        assert_eq!(&resumed.snapshot().unwrap(), snapshot, "call {call}");
        assert_eq!(finish(&mut resumed, pipeline), expected, "call {call}");
        assert_eq!(
            Some(resumed.snapshot().unwrap()),
            snapshots.last().cloned(),
            "call {call}"
        );
    }
}

#[test]
fn a_multistep_run_resumes_anywhere() {
    // The first calls fill PNDM's history.
    let request = Request {
        scheduler: Some("pndm".into()),
        num_inference_steps: Some(6),
        ..request("a cat")
    };
    check(&pipeline("sd15"), &request);
}

#[test]
fn a_stochastic_run_resumes_anywhere() {
    let request = Request {
        scheduler: Some("euler_a".into()),
        num_images: Some(2),
        // Drawn, and a float that a careless parser changes.
        seed: None,
        guidance_scale: Some(7.3 + f64::EPSILON * 4.0),
        ..request("a \"cat\"\n\u{1f408}")
    };
    let pipeline = pipeline("sd15");
    check(&pipeline, &request);
    check(
        &pipeline,
        &Request {
            seed_mode: Some(SeedMode::Batch),
            ..request
        },
    );
}

#[test]
fn a_run_with_a_guidance_embedding_resumes_anywhere() {
    check(&pipeline("lcm"), &request("a cat"));
}

#[test]
fn a_run_of_xl_resumes_anywhere() {
    let sizes = Request {
        original_size: Some((640, 480)),
        crops_coords_top_left: Some((8, 16)),
        ..request("a cat")
    };
    check(&pipeline("sdxl"), &sizes);
    check(
        &pipeline("sdxl"),
        &Request {
            negative_prompt: Some("".into()),
            ..sizes
        },
    );
}

#[test]
fn runs_that_start_from_a_picture_resume_anywhere() {
    let pipeline = pipeline("sd15");
    let base = Request {
        scheduler: Some("euler_a".into()),
        num_images: Some(2),
        ..changing("a cat")
    };
    check(&pipeline, &base);
    for seed_mode in [SeedMode::PerImage, SeedMode::Batch] {
        let inpainting = Request {
            mask_image: Some(picture("hole.png")),
            mask_blur: Some(2.0),
            overlay: Some(true),
            seed_mode: Some(seed_mode),
            ..base.clone()
        };
        check(&pipeline, &inpainting);
    }
    let second_order = Request {
        scheduler: Some("heun".into()),
        variation_seed: Some(3),
        variation_strength: Some(0.4),
        ..inpainting("a cat")
    };
    check(&pipeline, &second_order);
}

#[test]
fn a_run_of_an_inpainting_model_resumes_anywhere() {
    let request = Request {
        padding_mask_crop: Some(3),
        width: Some(40),
        height: Some(32),
        ..inpainting("a cat")
    };
    check(&pipeline("sd15-inpaint"), &request);
}

#[test]
fn a_run_of_two_passes_resumes_in_both() {
    for (model, upscaler) in [
        ("sd15", Upscaler::Lanczos),
        ("sdxl", Upscaler::LatentBicubic),
    ] {
        let request = Request {
            scheduler: Some("euler_a".into()),
            num_inference_steps: Some(3),
            width: Some(24),
            height: Some(32),
            hires: Some(Hires {
                upscaler: Some(upscaler),
                ..Hires::default()
            }),
            ..request("a cat")
        };
        check(&pipeline(model), &request);
    }
}

#[test]
fn a_run_from_latents_resumes_without_them() {
    let (base, refiner) = (pipeline("sdxl"), pipeline("sdxl-refiner"));
    let mut first = base
        .start(&Request {
            denoising_end: Some(0.5),
            ..request("a cat")
        })
        .unwrap();
    finish(&mut first, &base);
    let request = Request {
        denoising_start: Some(0.5),
        seed: Some(7),
        num_inference_steps: Some(4),
        ..Request::new("a cat")
    };
    let mut run = refiner
        .start_from(&request, &first.latents().unwrap())
        .unwrap();
    let mut snapshots = vec![run.snapshot().unwrap()];
    run.advance(&refiner).unwrap();
    snapshots.push(run.snapshot().unwrap());
    let expected = finish(&mut run, &refiner);
    for snapshot in snapshots {
        let mut resumed = refiner.resume(&snapshot).unwrap();
        assert_eq!(finish(&mut resumed, &refiner), expected);
    }
}

#[test]
fn a_snapshot_needs_the_pictures_of_its_job() {
    let pipeline = pipeline("sd15");
    let run = pipeline.start(&inpainting("a cat")).unwrap();
    let snapshot = run.snapshot().unwrap();
    for (from, to, reason) in [
        (
            r#""mask_image":{"#,
            r#""mask_imagf":{"#,
            "there is no mask_image",
        ),
        (
            r#""init_image":{"#,
            r#""init_imagf":{"#,
            "there is no init_image",
        ),
        (r#"\"call\":0"#, r#"\"call\":5"#, "at most 4"),
    ] {
        let error = pipeline.resume(&edited(&snapshot, from, to)).err().unwrap();
        assert!(error.to_string().contains(reason), "{to}: {error}");
    }
}

#[test]
fn a_snapshot_of_other_weights_is_refused() {
    let snapshot = pipeline("sd15")
        .start(&request("a cat"))
        .unwrap()
        .snapshot()
        .unwrap();
    let refused = |pipeline: &Pipeline| {
        let resumed = pipeline.resume(&snapshot);
        assert!(matches!(resumed, Err(Error::OtherWeights { .. })));
    };
    refused(&pipeline("sd21"));

    // The UNet alone does not make a picture.
    let folder = tempfile::tempdir().unwrap();
    copy_model("sd15", folder.path());
    let vae = folder
        .path()
        .join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&vae).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&vae, bytes).unwrap();
    let source = ModelSource::Dir(folder.path().into());
    refused(&Pipeline::builder(source).build().unwrap());
}

/// A snapshot with a changed header.
fn edited(snapshot: &[u8], from: &str, to: &str) -> Vec<u8> {
    let (size, rest) = snapshot.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*size) as usize);
    let header = std::str::from_utf8(header).unwrap();
    assert!(header.contains(from), "no {from} in {header}");
    let header = header.replace(from, to);
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// A run after one call, with a scheduler that remembers.
static SNAPSHOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut run = PIPELINE
        .start(&Request {
            scheduler: Some("pndm".into()),
            ..request("a cat")
        })
        .unwrap();
    run.advance(&PIPELINE).unwrap();
    run.snapshot().unwrap()
});
/// The same of a run that keeps a part of a picture, and has its pictures with it.
static INPAINTING: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut run = PIPELINE.start(&inpainting("a cat")).unwrap();
    run.advance(&PIPELINE).unwrap();
    run.snapshot().unwrap()
});
static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| pipeline("sd15"));

#[test]
fn a_snapshot_whose_parts_disagree_is_refused_with_the_reason() {
    for (from, to, reason) in [
        (
            r#"sd_pipeline_run"#,
            "another_format",
            "sd_pipeline_run is missing",
        ),
        (
            r#"\"version\":1"#,
            r#"\"version\":2"#,
            "version is missing or wrong, expected 1",
        ),
        (r#"\"call\":1"#, r#"\"call\":99"#, "at most"),
        (r#"\"call\":1"#, r#"\"call\":-1"#, "description of its run"),
        (r#"\"width\":64"#, r#"\"width\":65"#, "width"),
        (r#"\"width\":64"#, r#"\"width\":72"#, "latents"),
        (r#"\"num_images\":1"#, r#"\"num_images\":2"#, "latents"),
        (
            r#"\"guidance_scale\":7.5"#,
            r#"\"guidance_scale\":1e308"#,
            "guidance_scale",
        ),
        (r#"\"prompt\":"#, r#"\"prumpt\":"#, "prumpt"),
        (
            r#"\"scheduler\":\"pndm\""#,
            r#"\"scheduler\":\"ddim\""#,
            "history",
        ),
        ("generator.0", "generator.1", "generator.0"),
        ("U8", "I8", "generator.0"),
        ("F32", "I32", "latents"),
    ] {
        let error = PIPELINE
            .resume(&edited(&SNAPSHOT, from, to))
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{to}: {error}");
    }
}

/// Tensors that end one byte before the largest address: with the header in front of them they end beyond it.
#[test]
fn a_snapshot_of_absurd_size_is_refused() {
    let step = (1u64 << 61) - 1;
    let tensor = |name: u64, end: u64| {
        let start = name * step;
        let length = end - start;
        format!(r#""{name}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{start},{end}]}}"#)
    };
    let mut tensors: Vec<_> = (0..8).map(|i| tensor(i, (i + 1) * step)).collect();
    tensors.push(tensor(8, u64::MAX));
    let header = format!("{{{}}}", tensors.join(","));
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let error = PIPELINE.resume(&bytes).unwrap_err();
    assert!(matches!(error, Error::SnapshotFile { .. }), "{error}");
}

#[test]
fn a_cut_snapshot_is_refused() {
    for length in 0..SNAPSHOT.len() {
        assert!(
            PIPELINE.resume(&SNAPSHOT[..length]).is_err(),
            "{length} of {} bytes",
            SNAPSHOT.len()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Changed latents cannot be told from others, so what is accepted must at least run to its end.
    #[test]
    fn changed_bytes_are_refused_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
        inpainting in any::<bool>(),
    ) {
        let mut bytes = if inpainting { INPAINTING.clone() } else { SNAPSHOT.clone() };
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        for (at, byte, in_header) in changes {
            let at = at.index(if in_header { header } else { bytes.len() });
            bytes[at] = byte;
        }
        if let Ok(mut run) = PIPELINE.resume(&bytes) {
            // A changed job may ask for many steps: one call shows whether the parts fit.
            let _ = run.advance(&PIPELINE);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(PIPELINE.resume(&bytes).is_err());
    }
}
