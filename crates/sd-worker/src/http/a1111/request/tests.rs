//! What requests of the web UI's clients become.

use serde_json::{Value, json};

use super::*;

fn fields(value: Value) -> Fields {
    serde_json::from_value(value).unwrap()
}

/// What the Python client `webuiapi` sends when nothing is set.
fn defaults() -> Value {
    let text = r#"{
        "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
        "hr_resize_y": 0, "hr_checkpoint_name": null, "hr_sampler_name": null, "hr_scheduler": null,
        "hr_prompt": "", "hr_negative_prompt": "", "denoising_strength": 0.7, "firstphase_width": 0,
        "firstphase_height": 0, "prompt": "a cat", "styles": [], "seed": -1, "subseed": -1,
        "subseed_strength": 0.0, "seed_resize_from_h": 0, "seed_resize_from_w": 0, "batch_size": 1, "n_iter": 1,
        "steps": 20, "cfg_scale": 7.0, "width": 512, "height": 512, "restore_faces": false, "tiling": false,
        "do_not_save_samples": false, "do_not_save_grid": false, "negative_prompt": "", "eta": 1.0, "s_churn": 0,
        "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
        "override_settings_restore_afterwards": true, "sampler_name": "Euler a", "scheduler": "automatic",
        "sampler_index": "Euler a", "script_name": null, "script_args": [], "send_images": true,
        "save_images": false, "alwayson_scripts": {}
    }"#;
    serde_json::from_str(text).unwrap()
}

fn with(changes: Value) -> Fields {
    let (Value::Object(mut all), Value::Object(changes)) = (defaults(), changes) else {
        panic!("two objects")
    };
    all.extend(changes);
    fields(Value::Object(all))
}

/// 1 x 1 PNG is not needed: nothing is decoded here.
const PICTURE: &str = "data:image/png;base64,iVBORw0KGgo=";

fn img2img(changes: Value) -> Fields {
    let mut fields = with(changes);
    fields.init_images.get_or_insert(vec![PICTURE.into()]);
    fields
}

#[test]
fn the_defaults_of_a_client_ask_for_nothing_special() {
    let asked = with(json!({})).txt2img().unwrap();
    assert_eq!(asked.overrides, Overrides::default());
    assert_eq!(
        asked.request,
        Request {
            negative_prompt: Some(String::new()),
            num_inference_steps: Some(20),
            guidance_scale: Some(7.0),
            width: Some(512),
            height: Some(512),
            num_images: Some(1),
            scheduler: Some("euler_a".into()),
            prompt_weighting: Some(PromptWeighting::A1111),
            ..Request::new("a cat")
        }
    );
}

#[test]
fn nothing_and_null_are_the_models_defaults() {
    let expected = Request {
        num_images: Some(1),
        prompt_weighting: Some(PromptWeighting::A1111),
        ..Request::default()
    };
    let Value::Object(nulls) = defaults() else {
        panic!()
    };
    let nulls = nulls
        .into_iter()
        .map(|(key, _)| (key, Value::Null))
        .collect();
    for value in [json!({}), Value::Object(nulls), json!({"no_such_key": [1]})] {
        assert_eq!(fields(value).txt2img().unwrap().request, expected);
    }
}

#[test]
fn the_old_name_of_the_sampler_counts_where_the_new_one_says_nothing() {
    for name in [Value::Null, json!("")] {
        let changes = json!({"sampler_name": name, "sampler_index": "Euler"});
        let request = with(changes).txt2img().unwrap().request;
        assert_eq!(request.scheduler.as_deref(), Some("euler"), "{name}");
    }
}

#[test]
fn batches_multiply_and_a_subseed_varies() {
    let request = with(json!({
        "batch_size": 2, "n_iter": "3", "seed": 7, "subseed": 9, "subseed_strength": 0.25,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "m"},
    }))
    .txt2img()
    .unwrap();
    assert_eq!(request.overrides.model.as_deref(), Some("m"));
    assert_eq!(request.overrides.clip_skip, Some(1));
    let request = request.request;
    assert_eq!(request.num_images, Some(6));
    assert_eq!((request.seed, request.variation_seed), (Some(7), Some(9)));
    assert_eq!(request.variation_strength, Some(0.25));
}

#[test]
fn a_second_pass_is_described_whole() {
    let request = with(json!({"enable_hr": true, "hr_upscaler": "Lanczos", "hr_second_pass_steps": 5, "hr_scale": 1.5}))
        .txt2img()
        .unwrap()
        .request;
    let hires = Hires {
        scale: Some(1.5),
        upscaler: Some(Upscaler::Lanczos),
        strength: Some(0.7),
        num_inference_steps: Some(5),
        ..Hires::default()
    };
    assert_eq!(request.hires, Some(hires));
    let sized = with(json!({"enable_hr": true, "hr_resize_x": 768}))
        .txt2img()
        .unwrap();
    let hires = sized.request.hires.unwrap();
    assert_eq!(
        (hires.scale, hires.width, hires.height),
        (None, Some(768), None)
    );
}

#[test]
fn img2img_changes_a_picture() {
    let changes = json!({
        "resize_mode": 1, "denoising_strength": null, "image_cfg_scale": 1.5, "mask_round": true, "latent_mask": null,
    });
    let request = img2img(changes).img2img().unwrap().request;
    assert_eq!(request.init_image.unwrap().bytes(), b"\x89PNG\r\n\x1a\n");
    assert_eq!(request.strength, Some(0.75));
    assert_eq!(request.resize_mode, Some(ResizeMode::Crop));
    assert_eq!((request.mask_image, request.overlay), (None, None));
}

#[test]
fn a_mask_takes_its_defaults_from_the_web_ui() {
    let asked = img2img(json!({"mask": PICTURE})).img2img().unwrap();
    assert!(asked.fill);
    let request = asked.request;
    assert_eq!(request.mask_polarity, Some(MaskPolarity::WhiteRepaints));
    assert_eq!(
        (request.mask_blur, request.padding_mask_crop),
        (Some(4.0), Some(0))
    );
    assert_eq!((request.overlay, request.resize_mode), (Some(true), None));

    let whole = img2img(json!({
        "mask": PICTURE, "inpainting_fill": 1, "inpaint_full_res": false, "inpainting_mask_invert": 1, "mask_blur": 0,
    }));
    let asked = whole.img2img().unwrap();
    assert!(!asked.fill);
    assert_eq!(
        asked.request.mask_polarity,
        Some(MaskPolarity::BlackRepaints)
    );
    assert_eq!(
        (asked.request.mask_blur, asked.request.padding_mask_crop),
        (Some(0.0), None)
    );
    assert_eq!(asked.request.resize_mode, Some(ResizeMode::Stretch));
}

#[test]
fn eta_is_for_ddim_alone() {
    for (sampler, eta, expected) in [
        ("DDIM", 0.5, Some(Some(0.5))),
        ("Euler a", 1.0, Some(None)),
        ("Euler a", 0.5, None),
        ("DPM++ 2M", 0.5, Some(None)),
    ] {
        let asked = with(json!({"sampler_name": sampler, "eta": eta})).txt2img();
        assert_eq!(
            asked.ok().map(|asked| asked.request.eta),
            expected,
            "{sampler} {eta}"
        );
    }
}

#[test]
fn what_would_change_the_picture_is_refused_by_name() {
    for (changes, field) in [
        (json!({"restore_faces": true}), "restore_faces"),
        (json!({"tiling": "true"}), "tiling"),
        (json!({"styles": ["anime"]}), "styles"),
        (json!({"script_name": "x/y/z plot"}), "script_name"),
        (
            json!({"refiner_checkpoint": "xl-refiner"}),
            "refiner_checkpoint",
        ),
        (json!({"infotext": "Steps: 3"}), "infotext"),
        (json!({"seed_resize_from_w": 512}), "seed_resize_from_w"),
        (json!({"s_churn": 0.5}), "s_churn"),
        (json!({"s_noise": 1.1}), "s_noise"),
        (json!({"s_min_uncond": 1}), "s_min_uncond"),
        (
            json!({"alwayson_scripts": {"ControlNet": {"args": [{"image": ""}]}}}),
            "alwayson_scripts.ControlNet",
        ),
        (json!({"prompt": "a <lora:x:1> cat"}), "prompt"),
        (
            json!({"negative_prompt": "a cat AND:2 a dog"}),
            "negative_prompt",
        ),
        (
            json!({"enable_hr": true, "hr_upscaler": "R-ESRGAN 4x+"}),
            "hr_upscaler",
        ),
        (
            json!({"enable_hr": true, "hr_sampler_name": "DDIM"}),
            "hr_sampler_name",
        ),
        (json!({"enable_hr": true, "hr_prompt": "dog"}), "hr_prompt"),
        (
            json!({"override_settings": {"tiling": true}}),
            "override_settings.tiling",
        ),
        (
            json!({"override_settings": {"sd_vae": "x.pt"}}),
            "override_settings.sd_vae",
        ),
        (json!({"init_images": [PICTURE]}), "init_images"),
        (json!({"sampler_name": "DPM fast"}), "sampler_name"),
        (json!({"firstpass_image": PICTURE}), "firstpass_image"),
        (json!({"steps": 0}), "steps"),
        (json!({"batch_size": -1}), "batch_size"),
        (json!({"width": -8}), "width"),
    ] {
        let error = with(changes.clone()).txt2img().unwrap_err();
        assert_eq!(error.param.as_deref(), Some(field), "{changes}");
    }
    for (changes, field) in [
        (json!({"init_images": []}), "init_images"),
        (json!({"init_images": [PICTURE, PICTURE]}), "init_images"),
        (json!({"init_images": ["%%%"]}), "init_images"),
        (json!({"resize_mode": 3}), "resize_mode"),
        (json!({"mask_round": false}), "mask_round"),
        (json!({"image_cfg_scale": 2}), "image_cfg_scale"),
        (json!({"latent_mask": PICTURE}), "latent_mask"),
        (
            json!({"initial_noise_multiplier": 1.1}),
            "initial_noise_multiplier",
        ),
        (json!({"enable_hr": true}), "enable_hr"),
        (
            json!({"mask": PICTURE, "inpainting_fill": 2}),
            "inpainting_fill",
        ),
        (
            json!({"mask": PICTURE, "mask_blur": null, "mask_blur_x": 3}),
            "mask_blur_y",
        ),
    ] {
        let error = img2img(changes.clone()).img2img().unwrap_err();
        assert_eq!(error.param.as_deref(), Some(field), "{changes}");
    }
}

#[test]
fn scripts_that_are_turned_off_pass() {
    let scripts =
        json!({"alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [false]}}});
    assert!(with(scripts).txt2img().is_ok());
}
