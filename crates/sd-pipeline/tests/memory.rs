//! What a job is predicted to take, against an allocator that counts; and limits.

mod common;

use std::num::NonZeroUsize;
use std::sync::Mutex;

use common::{finish, pictures, pipeline, request};
use image::ImageFormat;
use peak_alloc::PeakAlloc;
use sd_pipeline::{
    AttentionSlice, DType, Error, Hires, MemoryEstimate, Picture, Pipeline, PromptWeighting,
    Request, RgbImage, Upscaler, builtin_model,
};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// One test at a time: the counters are those of the process.
static TURN: Mutex<()> = Mutex::new(());

/// A request of one step.
fn step(width: usize, height: usize) -> Request {
    Request {
        width: Some(width),
        height: Some(height),
        num_inference_steps: Some(1),
        seed: Some(1),
        ..Request::new("a red circle on a white background")
    }
}

fn picture(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Picture {
    let image = RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).unwrap();
    Picture::from_bytes(png.into_inner())
}

fn scene(width: u32, height: u32) -> Picture {
    picture(width, height, |x, y| [x as u8, y as u8, 128])
}

/// The left half is painted anew.
fn mask(width: u32, height: u32) -> Picture {
    picture(width, height, |x, _| {
        [if x < width / 2 { 255 } else { 0 }; 3]
    })
}

#[test]
fn the_peak_of_the_built_in_model_is_predicted() {
    let _turn = TURN.lock();
    // What the process keeps from its first run is not the second one's.
    pictures(&pipeline("builtin"), &step(64, 64));
    let cases = [
        ("small", step(128, 128)),
        ("wide", step(384, 128)),
        ("large", step(320, 320)),
        (
            "tiled",
            Request {
                vae_tiling: Some(true),
                ..step(320, 320)
            },
        ),
        (
            "many",
            Request {
                num_images: Some(12),
                ..step(96, 96)
            },
        ),
        (
            "unguided",
            Request {
                num_images: Some(9),
                guidance_scale: Some(1.),
                ..step(64, 128)
            },
        ),
        (
            "from a picture",
            Request {
                init_image: Some(scene(256, 256)),
                strength: Some(1.),
                ..step(256, 256)
            },
        ),
        (
            "inpainted",
            Request {
                init_image: Some(scene(256, 256)),
                strength: Some(1.),
                mask_image: Some(mask(256, 256)),
                overlay: Some(true),
                ..step(256, 256)
            },
        ),
        (
            "of many words",
            Request {
                prompt_weighting: Some(PromptWeighting::A1111),
                ..Request {
                    prompt: "a (red:1.2) circle beside a blue star, ".repeat(20),
                    ..step(128, 128)
                }
            },
        ),
        (
            "in two passes",
            Request {
                hires: Some(Hires {
                    strength: Some(1.),
                    ..Hires::default()
                }),
                ..step(128, 128)
            },
        ),
        (
            "in two passes by pixels",
            Request {
                num_images: Some(3),
                hires: Some(Hires {
                    upscaler: Some(Upscaler::Lanczos),
                    strength: Some(1.),
                    ..Hires::default()
                }),
                ..step(128, 128)
            },
        ),
    ];
    for (name, request) in cases {
        for dtype in [DType::F32, DType::F16] {
            let before = ALLOCATOR.current_usage();
            ALLOCATOR.reset_peak_usage();
            let pipeline = Pipeline::builder(builtin_model())
                .dtype(dtype)
                .build()
                .unwrap();
            let mut run = pipeline.start(&request).unwrap();
            let made = finish(&mut run, &pipeline);
            let measured = (ALLOCATOR.peak_usage() - before) as f64;
            let estimate = pipeline.predict_memory(run.job()).unwrap();
            let ratio = estimate.peak() as f64 / measured;
            assert!(
                (0.85..=1.15).contains(&ratio),
                "{name} {dtype:?}: {ratio:.3} of {measured} bytes, {estimate:?}"
            );
            drop(made);
        }
    }
}

/// Windows end early in front of what is not parted.
#[test]
fn encoded_text_takes_no_more_than_predicted() {
    let _turn = TURN.lock();
    let comma = "1".repeat(55) + ",";
    // Of four bytes that become three characters of four each.
    let symbol = "\u{1D160}";
    for model in ["sd15", "sdxl"] {
        let pipeline = pipeline(model);
        let taken = |prompt: &str, prompt_weighting| {
            let request = Request {
                prompt: prompt.into(),
                prompt_weighting: Some(prompt_weighting),
                ..step(64, 64)
            };
            let run = pipeline.start(&request).unwrap();
            let predicted = pipeline.predict_memory(run.job()).unwrap().run;
            let conditions = run.conditions();
            let branches = [&conditions.positive]
                .into_iter()
                .chain(&conditions.negative);
            let values = branches.map(|branch| branch.hidden.elem_count());
            (4 * values.sum::<usize>() as u64, predicted)
        };
        for weighting in [PromptWeighting::A1111, PromptWeighting::ComfyUi] {
            let (no_text, nothing) = taken("", weighting);
            for part in [comma.as_str(), "1111111 ", symbol] {
                let (text, all) = taken(&part.repeat(3360 / part.len()), weighting);
                let (text, all) = (text - no_text, all - nothing);
                assert!(
                    text <= all,
                    "{model} {part:?}: {text} bytes, {all} predicted"
                );
            }
        }
    }
}

/// A prompt has its length, and so have the texts that its edits make of it.
#[test]
fn prompts_of_any_length_take_little_memory() {
    let _turn = TURN.lock();
    let pipeline = pipeline("sd15");
    let request = |prompt: &str, field: &str| {
        let mut json = serde_json::json!({
            "prompt": "a cat", "prompt_weighting": "a1111", "num_inference_steps": 999, "width": 64, "height": 64,
        });
        json[field] = prompt.into();
        Request::from_json(&json.to_string()).unwrap()
    };
    // Another text in each of 504 steps.
    let edits = "[a|b|c|d|e|f|g][a|b|c|d|e|f|g|h][a|b|c|d|e|f|g|h|i]";
    let long = edits.to_string() + &"!".repeat((64 << 10) - edits.len());
    let longer = format!("{long}!");
    for field in ["prompt", "negative_prompt"] {
        let (long, longer) = (request(&long, field), request(&longer, field));
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let error = pipeline.start(&long).unwrap_err().to_string();
        let peak = ALLOCATOR.peak_usage() - before;
        assert!(error.starts_with(&format!("{field}: got edits")), "{error}");
        assert!(peak < 8 << 20, "{peak} bytes");
        let error = pipeline.start(&longer).unwrap_err().to_string();
        let expected = format!("{field}: got a text of 65537 bytes, expected at most 65536 bytes");
        assert_eq!(error, expected);
    }
    // Also those that this model has no use for.
    for field in ["prompt_2", "negative_prompt_2"] {
        let error = pipeline.start(&request(&longer, field)).unwrap_err();
        assert!(error.to_string().contains("65537"), "{error}");
    }
}

#[test]
fn a_picture_in_json_is_read_from_where_it_is() {
    let _turn = TURN.lock();
    let picture = Picture::from_bytes(vec![7; 3 << 20]).to_base64();
    let json = serde_json::json!({"prompt": "a cat", "init_image": picture}).to_string();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    Request::from_json(&json).unwrap();
    // The text of the JSON's value, the same without white space, and the bytes it stands for.
    let peak = ALLOCATOR.peak_usage() - before;
    assert!(peak < 3 * json.len(), "{peak} of {}", json.len());
}

#[test]
fn a_model_that_is_not_loaded_is_predicted_alike() {
    let _turn = TURN.lock();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let builder = Pipeline::builder(builtin_model()).dtype(dtype);
        let (memory, config) = (builder.model_memory().unwrap(), builder.config().unwrap());
        let job = step(128, 256).resolve(&config).unwrap();
        let loaded = builder.build().unwrap();
        let estimate = MemoryEstimate::new(&memory, &config, &job);
        assert_eq!(estimate, loaded.predict_memory(&job).unwrap());
    }
}

fn limited(bytes: u64) -> Pipeline {
    Pipeline::builder(builtin_model())
        .max_memory(bytes)
        .build()
        .unwrap()
}

fn advice(result: Result<impl std::fmt::Debug, Error>, limit: u64) -> String {
    match result {
        Err(Error::Memory {
            needed,
            limit: found,
            advice,
        }) => {
            assert!(needed > limit && found == limit, "{needed} of {found}");
            advice
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_over_the_limit_is_tiled_where_that_suffices() {
    let _turn = TURN.lock();
    let free = pipeline("builtin");
    let request = step(256, 320);
    let needed = |tiled| {
        let request = Request {
            vae_tiling: Some(tiled),
            ..request.clone()
        };
        let job = free.resolve(&request).unwrap();
        free.predict_memory(&job).unwrap().peak()
    };
    let (tiled, whole) = (needed(true), needed(false));
    assert!(tiled < whole);

    assert!(!free.resolve(&request).unwrap().vae_tiling);
    assert!(!limited(whole).resolve(&request).unwrap().vae_tiling);
    for limit in [whole - 1, tiled] {
        assert!(
            limited(limit).resolve(&request).unwrap().vae_tiling,
            "{limit}"
        );
    }
    // The job says so, and makes the same picture again without the limit.
    let made = pictures(&limited(tiled), &request);
    let asked = Request {
        vae_tiling: Some(true),
        ..request.clone()
    };
    assert_eq!(made, pictures(&free, &asked));
    assert_ne!(made, pictures(&free, &request));

    let insisting = Request {
        vae_tiling: Some(false),
        ..request.clone()
    };
    let refused = advice(limited(tiled).resolve(&insisting), tiled);
    assert!(refused.contains("vae_tiling"), "{refused}");
    advice(limited(tiled - 1).resolve(&request), tiled - 1);
}

#[test]
fn a_job_that_cannot_fit_is_refused_with_what_would() {
    let _turn = TURN.lock();
    let limit = 48 << 20;
    let pipeline = limited(limit);
    let many = Request {
        num_images: Some(64),
        ..step(128, 128)
    };
    let refused = advice(pipeline.resolve(&many), limit);
    let most = refused
        .strip_prefix("num_images of ")
        .unwrap()
        .strip_suffix(" fits")
        .unwrap();
    let images = |num_images| Request {
        num_images: Some(num_images),
        ..many.clone()
    };
    let most: usize = most.parse().unwrap();
    assert!(pipeline.resolve(&images(most)).is_ok());
    assert!(pipeline.resolve(&images(most + 1)).is_err());

    let refused = advice(pipeline.resolve(&step(2048, 1024)), limit);
    let size = refused
        .strip_prefix("one picture of ")
        .unwrap()
        .strip_suffix(" fits")
        .unwrap();
    let (width, height) = size.split_once('x').unwrap();
    let smaller = step(width.parse().unwrap(), height.parse().unwrap());
    assert!(pipeline.resolve(&smaller).is_ok());

    // Nothing is allocated on the way to a refusal.
    let huge = Request {
        num_images: Some(64),
        ..step(8192, 8192)
    };
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    advice(pipeline.start(&huge).map(drop), limit);
    assert!(ALLOCATOR.peak_usage() - before < 4 << 20);
    for tiling in [None, Some(true), Some(false)] {
        advice(
            pipeline.resolve(&Request {
                vae_tiling: tiling,
                ..huge.clone()
            }),
            limit,
        );
    }
}

#[test]
fn a_snapshot_is_held_against_the_limit_too() {
    let _turn = TURN.lock();
    let free = pipeline("builtin");
    let run = free.start(&step(512, 512)).unwrap();
    let snapshot = run.snapshot().unwrap();
    let needed = free.predict_memory(run.job()).unwrap().peak();
    assert!(limited(needed).resume(&snapshot).is_ok());
    advice(limited(needed - 1).resume(&snapshot).map(drop), needed - 1);
}

#[test]
fn a_model_over_the_limit_is_not_loaded() {
    let _turn = TURN.lock();
    let weights = |dtype| {
        let builder = Pipeline::builder(builtin_model()).dtype(dtype);
        builder.model_memory().unwrap().weights()
    };
    let (half, whole) = (weights(DType::F16), weights(DType::F32));
    assert_eq!(whole, 2 * half);
    let builder = Pipeline::builder(builtin_model()).max_memory(whole - 1);
    assert!(builder.clone().dtype(DType::F16).build().is_ok());
    let refused = advice(builder.build().map(drop), whole - 1);
    assert!(refused.contains("f16"), "{refused}");
}

#[test]
fn more_pixels_or_pictures_never_take_less() {
    let _turn = TURN.lock();
    let pipeline = pipeline("builtin");
    let peak = |request: Request| {
        let job = pipeline.resolve(&request).unwrap();
        pipeline.predict_memory(&job).unwrap().peak()
    };
    for tiling in [false, true] {
        let tiled = |request| Request {
            vae_tiling: Some(tiling),
            ..request
        };
        let sides = [8, 64, 120, 128, 136, 256, 264, 1024, 4096, 8192];
        for pair in sides.windows(2) {
            for other in [64, 512] {
                assert!(peak(tiled(step(pair[0], other))) <= peak(tiled(step(pair[1], other))));
                assert!(peak(tiled(step(other, pair[0]))) <= peak(tiled(step(other, pair[1]))));
            }
        }
        let many = |images| {
            tiled(Request {
                num_images: Some(images),
                ..step(128, 128)
            })
        };
        for images in 1..64 {
            assert!(peak(many(images)) < peak(many(images + 1)), "{images}");
        }
    }
}

#[test]
fn on_the_cpu_no_slice_changes_a_picture() {
    let _turn = TURN.lock();
    let expected = pictures(&pipeline("sd15"), &request("a cat"));
    let one = NonZeroUsize::MIN;
    for slice in [AttentionSlice::Queries(one), AttentionSlice::Bytes(1)] {
        let source = sd_pipeline::ModelSource::Dir(common::golden("models/sd15"));
        let pipeline = Pipeline::builder(source)
            .attention_slice(slice)
            .build()
            .unwrap();
        assert_eq!(pictures(&pipeline, &request("a cat")), expected);
    }
}

#[test]
fn an_autoencoder_without_tiles_cannot_be_asked_for_them() {
    let _turn = TURN.lock();
    let mut model = pipeline("sd15").config().clone();
    model.vae.sample_size = 36;
    let tiled = Request {
        vae_tiling: Some(true),
        ..request("a cat")
    };
    let error = tiled.resolve(&model).unwrap_err();
    assert!(
        error.to_string().starts_with("vae_tiling: got true"),
        "{error}"
    );
    assert!(!request("a cat").resolve(&model).unwrap().vae_tiling);
}
