//! From a request to a job: defaults, limits and words.

use proptest::prelude::*;
use sd_pipeline::{Error, Job, ModelConfig, Request, SeedMode, Version};
use serde_json::{Value, json};

fn resolve(version: Version, request: &Request) -> Result<Job, Error> {
    request.resolve(&ModelConfig::preset(version))
}

#[test]
fn defaults_are_the_models() {
    for (version, steps, guidance, side, scheduler, negative) in [
        (Version::V1_5, 50, 7.5, 512, "pndm", Some("")),
        (Version::V2_1, 50, 7.5, 768, "ddim", Some("")),
        (Version::V2_1Base, 50, 7.5, 512, "pndm", Some("")),
        (Version::Xl, 50, 5.0, 1024, "euler", None),
        (Version::XlTurbo, 1, 0.0, 512, "euler_a", None),
        (Version::SdTurbo, 1, 0.0, 512, "euler", Some("")),
        (Version::Lcm, 4, 8.5, 768, "lcm", Some("")),
    ] {
        let job = resolve(
            version,
            &Request {
                seed: Some(3),
                ..Request::new("a cat")
            },
        )
        .unwrap();
        assert_eq!(
            (job.num_inference_steps, job.guidance_scale),
            (steps, guidance),
            "{version}"
        );
        assert_eq!(
            (job.width, job.height, job.scheduler.as_str()),
            (side, side, scheduler),
            "{version}"
        );
        assert_eq!(job.negative_prompt.as_deref(), negative, "{version}");
        assert_eq!(
            (job.seed, job.seed_mode, job.num_images),
            (3, SeedMode::PerImage, 1),
            "{version}"
        );
        assert_eq!(
            (job.guidance_rescale, job.eta, job.clip_skip),
            (0.0, 0.0, 0),
            "{version}"
        );
    }
}

#[test]
fn xl_prompts_and_sizes_follow_diffusers() {
    let job = |request| resolve(Version::Xl, &request).unwrap();
    let picture = Request {
        width: Some(640),
        height: Some(512),
        ..Request::new("a cat")
    };

    let plain = job(picture.clone());
    assert_eq!(
        (
            plain.prompt_2.as_deref(),
            plain.negative_prompt_2.as_deref()
        ),
        (Some("a cat"), None)
    );
    assert_eq!(plain.original_size, Some((512, 640)));
    assert_eq!(plain.crops_coords_top_left, Some((0, 0)));
    assert_eq!(
        (plain.target_size, plain.negative_target_size),
        (Some((512, 640)), Some((512, 640)))
    );

    let negative = job(Request {
        negative_prompt: Some("blue".into()),
        prompt_2: Some("".into()),
        ..picture.clone()
    });
    assert_eq!(
        (
            negative.prompt_2.as_deref(),
            negative.negative_prompt_2.as_deref()
        ),
        (Some("a cat"), Some("blue"))
    );

    // Without a negative prompt the zeros win over that of the second encoder.
    assert_eq!(
        job(Request {
            negative_prompt_2: Some("blue".into()),
            ..picture.clone()
        })
        .negative_prompt_2,
        None
    );

    // One negative size alone is not used.
    let half = job(Request {
        original_size: Some((100, 200)),
        negative_target_size: Some((1, 2)),
        ..picture.clone()
    });
    assert_eq!(half.negative_original_size, Some((100, 200)));
    assert_eq!(half.negative_target_size, Some((512, 640)));

    let both = job(Request {
        crops_coords_top_left: Some((5, 6)),
        negative_original_size: Some((3, 4)),
        negative_target_size: Some((1, 2)),
        ..picture
    });
    assert_eq!(
        (both.negative_original_size, both.negative_target_size),
        (Some((3, 4)), Some((1, 2)))
    );
    assert_eq!(both.negative_crops_coords_top_left, Some((0, 0)));
}

#[test]
fn a_jobs_json_is_a_request_for_it() {
    for version in [Version::V1_5, Version::Xl, Version::Lcm] {
        let request = Request {
            guidance_scale: Some(0.1 + 0.2),
            num_images: Some(2),
            ..Request::new("a \"cat\"")
        };
        let job = resolve(version, &request).unwrap();
        let again = Request::from_json(&serde_json::to_string(&job).unwrap()).unwrap();
        assert_eq!(resolve(version, &again).unwrap(), job);
    }
}

#[test]
fn what_a_model_cannot_do_names_field_value_and_range() {
    let xl = Version::Xl;
    let v1 = Version::V1_5;
    for (version, request, message) in [
        (
            v1,
            json!({"num_inference_steps": 0}),
            "num_inference_steps: got 0, expected 1 to 1000",
        ),
        (
            v1,
            json!({"num_inference_steps": 1001}),
            "num_inference_steps: got 1001, expected 1 to 1000",
        ),
        (
            v1,
            json!({"width": 0}),
            "width: got 0, expected a multiple of 8 from 8 to 8192",
        ),
        (
            v1,
            json!({"width": 513}),
            "width: got 513, expected a multiple of 8 from 8 to 8192",
        ),
        (
            v1,
            json!({"height": 8200}),
            "height: got 8200, expected a multiple of 8 from 8 to 8192",
        ),
        (
            v1,
            json!({"guidance_scale": -1.0}),
            "guidance_scale: got -1, expected 0 to 100",
        ),
        (v1, json!({"guidance_scale": 1e300}), "expected 0 to 100"),
        (
            v1,
            json!({"guidance_rescale": 1.5}),
            "guidance_rescale: got 1.5, expected 0 to 1",
        ),
        (
            v1,
            json!({"num_images": 0}),
            "num_images: got 0, expected 1 to 64",
        ),
        (
            v1,
            json!({"num_images": 65}),
            "num_images: got 65, expected 1 to 64",
        ),
        (v1, json!({"eta": 2.0}), "eta: got 2, expected 0 to 1"),
        (
            v1,
            json!({"clip_skip": 12}),
            "clip_skip: got 12, expected 0 to 11",
        ),
        (
            v1,
            json!({"scheduler": "eulr"}),
            "scheduler: got eulr, expected ddim, ",
        ),
        (
            v1,
            json!({"prompt_2": "x"}),
            "prompt_2: got a text, expected none: this model has one text encoder",
        ),
        (
            v1,
            json!({"negative_prompt_2": "x"}),
            "negative_prompt_2: got a text, expected none",
        ),
        (
            v1,
            json!({"target_size": [8, 8]}),
            "target_size: got (8, 8), expected none: this model is not conditioned",
        ),
        (
            xl,
            json!({"clip_skip": 12}),
            "clip_skip: got 12, expected 0 to 11",
        ),
        (
            xl,
            json!({"original_size": [70000, 8]}),
            "original_size: got 70000, expected 0 to 65536",
        ),
        (
            Version::Lcm,
            json!({"num_inference_steps": 51}),
            "num_inference_steps: got 51, expected",
        ),
    ] {
        let mut json = request;
        json["prompt"] = "a cat".into();
        let error = resolve(version, &Request::from_json(&json.to_string()).unwrap()).unwrap_err();
        assert!(error.to_string().contains(message), "{json}: {error}");
    }
    for value in [f64::NAN, f64::INFINITY] {
        let request = Request {
            guidance_scale: Some(value),
            ..Request::new("a cat")
        };
        assert!(matches!(
            resolve(v1, &request),
            Err(Error::Field {
                field: "guidance_scale",
                ..
            })
        ));
    }
}

#[test]
fn models_that_need_more_than_text_are_refused() {
    for version in [
        Version::V1_5Inpaint,
        Version::V2Inpaint,
        Version::XlInpaint,
        Version::XlRefiner,
    ] {
        let error = resolve(version, &Request::new("a cat")).unwrap_err();
        assert!(
            matches!(error, Error::NotTextToImage { .. }),
            "{version}: {error}"
        );
    }
}

#[test]
fn json_errors_name_the_field() {
    for (json, field) in [
        (r#"{"prompt": "x", "stepz": 3}"#, "stepz"),
        (r#"{"prompt": 1}"#, "prompt"),
        (r#"{"prompt": "x", "width": -8}"#, "width"),
        (r#"{"prompt": "x", "seed": 1.5}"#, "seed"),
        (r#"{"prompt": "x", "seed_mode": "twice"}"#, "seed_mode"),
        (r#"{"prompt": "x", "target_size": [1]}"#, "target_size"),
    ] {
        let error = Request::from_json(json).unwrap_err();
        assert!(
            matches!(&error, Error::FieldJson { field: found, .. } if found == field),
            "{json}: {error}"
        );
    }
    for json in [
        "{}",
        "",
        "[]",
        "3",
        r#"{"prompt": "x""#,
        r#"{"prompt": "x"} {}"#,
    ] {
        assert!(
            matches!(Request::from_json(json), Err(Error::RequestJson(_))),
            "{json}"
        );
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        (0_i64..2000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        "[a-z_]{0,8}".prop_map(Value::from),
        Just("euler_a".into()),
        Just("black_repaints".into()),
        (0.0..1.5).prop_map(Value::from),
        Just(json!({"scale": 1.5, "strength": 0.5})),
        Just(json!({"width": 640, "num_inference_steps": 3})),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop::collection::vec(inner, 0..3).prop_map(Value::from)
    })
}

proptest! {
    #[test]
    fn any_request_resolves_or_names_a_field(
        known in prop::collection::btree_map(prop::sample::select(FIELDS), any_json(), 0..4),
        unknown in prop::collection::btree_map("[a-z_]{1,9}", any_json(), 0..2),
        xl in any::<bool>(),
    ) {
        let mut fields = serde_json::Map::from_iter(known.into_iter().map(|(key, value)| (key.to_string(), value)));
        fields.extend(unknown);
        fields.entry("prompt").or_insert("a cat".into());
        let version = if xl { Version::Xl } else { Version::V1_5 };
        let json = Value::Object(fields.clone()).to_string();
        match Request::from_json(&json).and_then(|request| resolve(version, &request)) {
            Ok(job) => {
                prop_assert!((1..=1000).contains(&job.num_inference_steps));
                prop_assert!(job.width % 8 == 0 && job.width > 0);
                prop_assert!(job.guidance_scale.is_finite());
                prop_assert!(fields.keys().all(|key| FIELDS.contains(&key.as_str())));
            }
            Err(Error::FieldJson { field, .. }) => prop_assert!(fields.contains_key(&field)),
            Err(Error::Field { field, .. }) => {
                // `hires.strength` is in `hires`.
                let key = field.split('.').next().unwrap_or(field);
                prop_assert!(fields.contains_key(key), "{field} in {json}");
            }
            Err(error) => prop_assert!(false, "{error} for {json}"),
        }
    }

    #[test]
    fn any_text_is_read_or_refused(json in ".{0,60}") {
        let _ = Request::from_json(&json);
    }
}

const FIELDS: &[&str] = &[
    "prompt",
    "negative_prompt",
    "prompt_2",
    "negative_prompt_2",
    "prompt_weighting",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "width",
    "height",
    "seed",
    "seed_mode",
    "num_images",
    "scheduler",
    "eta",
    "clip_skip",
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
    "init_image",
    "strength",
    "resize_mode",
    "mask_image",
    "mask_polarity",
    "mask_blur",
    "padding_mask_crop",
    "overlay",
    "variation_seed",
    "variation_strength",
    "denoising_end",
    "denoising_start",
    "aesthetic_score",
    "negative_aesthetic_score",
    "hires",
];
