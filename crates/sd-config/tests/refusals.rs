//! What cannot be built is refused before any weight is touched, by an error that names file, key
//! and value.

use std::fs;
use std::path::Path;

use sd_config::{Error, ModelConfig, Result, Version, files};
use serde_json::{Map, Value, json};

/// The published files of a version with one key of one file changed.
fn changed(version: Version, file: &str, key: &str, value: Value) -> Result<ModelConfig> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/published")
        .join(version.name());
    ModelConfig::from_files(|path| {
        let text = fs::read_to_string(folder.join(path)).ok()?;
        let mut map: Map<String, Value> = serde_json::from_str(&text).unwrap();
        if path == file {
            map.insert(key.to_owned(), value.clone());
        }
        Some(Value::Object(map).to_string())
    })
}

fn refused(version: Version, file: &str, key: &str, value: Value) -> String {
    match changed(version, file, key, value.clone()) {
        Ok(_) => panic!("{file}: {key} = {value} is accepted"),
        Err(error @ Error::Value { .. }) => error.to_string(),
        Err(error) => panic!("{file}: {key} = {value}: {error}"),
    }
}

#[test]
fn variants_that_are_not_built() {
    for (file, key, value) in [
        (files::UNET_CONFIG, "act_fn", json!("gelu")),
        (
            files::UNET_CONFIG,
            "addition_embed_type",
            json!("text_image"),
        ),
        (files::UNET_CONFIG, "attention_type", json!("gated")),
        (files::UNET_CONFIG, "class_embed_type", json!("rotary")),
        (files::UNET_CONFIG, "class_embed_type", json!("timestep")),
        (files::UNET_CONFIG, "class_embeddings_concat", json!(true)),
        (files::UNET_CONFIG, "conv_in_kernel", json!(5)),
        (files::UNET_CONFIG, "conv_out_kernel", json!(1)),
        (
            files::UNET_CONFIG,
            "cross_attention_norm",
            json!("layer_norm"),
        ),
        (files::UNET_CONFIG, "downsample_padding", json!(0)),
        (files::UNET_CONFIG, "dual_cross_attention", json!(true)),
        (files::UNET_CONFIG, "encoder_hid_dim", json!(768)),
        (
            files::UNET_CONFIG,
            "encoder_hid_dim_type",
            json!("text_proj"),
        ),
        (
            files::UNET_CONFIG,
            "mid_block_only_cross_attention",
            json!(true),
        ),
        (files::UNET_CONFIG, "mid_block_scale_factor", json!(0.5)),
        (
            files::UNET_CONFIG,
            "mid_block_type",
            json!("UNetMidBlock2DSimpleCrossAttn"),
        ),
        (files::UNET_CONFIG, "norm_num_groups", json!(null)),
        (files::UNET_CONFIG, "num_attention_heads", json!(8)),
        (files::UNET_CONFIG, "num_class_embeds", json!(10)),
        (
            files::UNET_CONFIG,
            "only_cross_attention",
            json!([true, true, true, false]),
        ),
        (files::UNET_CONFIG, "resnet_out_scale_factor", json!(2.0)),
        (files::UNET_CONFIG, "resnet_skip_time_act", json!(true)),
        (
            files::UNET_CONFIG,
            "resnet_time_scale_shift",
            json!("scale_shift"),
        ),
        (files::UNET_CONFIG, "time_embedding_act_fn", json!("silu")),
        (files::UNET_CONFIG, "time_embedding_type", json!("fourier")),
        (files::UNET_CONFIG, "timestep_post_act", json!("silu")),
        (
            files::UNET_CONFIG,
            "transformer_layers_per_block",
            json!([[1, 1], [2, 2], [3, 3], [4, 4]]),
        ),
        (files::VAE_CONFIG, "act_fn", json!("relu")),
        (files::VAE_CONFIG, "in_channels", json!(4)),
        (
            files::VAE_CONFIG,
            "up_block_types",
            json!(["AttnUpDecoderBlock2D"]),
        ),
        (files::TEXT_ENCODER_CONFIG, "hidden_act", json!("relu")),
        (files::SCHEDULER_CONFIG, "beta_schedule", json!("sigmoid")),
        (
            files::SCHEDULER_CONFIG,
            "prediction_type",
            json!("flow_prediction"),
        ),
        (files::SCHEDULER_CONFIG, "timestep_spacing", json!("random")),
        (files::SCHEDULER_CONFIG, "use_flow_sigmas", json!(true)),
    ] {
        let message = refused(Version::V1_5, file, key, value.clone());
        assert!(
            message.starts_with(&format!("{file}: `{key}` is {value}: ")),
            "{message}"
        );
    }
}

#[test]
fn an_error_says_what_was_expected() {
    let down = json!([
        "CrossAttnDownBlock2D",
        "AttnDownBlock2D",
        "DownBlock2D",
        "DownBlock2D"
    ]);
    for (file, key, value, expected) in [
        (
            files::UNET_CONFIG,
            "down_block_types",
            down,
            "unknown variant `AttnDownBlock2D`, expected `CrossAttnDownBlock2D` or `DownBlock2D`",
        ),
        (
            files::UNET_CONFIG,
            "layers_per_block",
            json!("two"),
            "expected a whole number, or a list with one a block",
        ),
        (
            files::UNET_CONFIG,
            "in_channels",
            json!(1_u64 << 60),
            "expected 1 to 1024",
        ),
        (
            files::UNET_CONFIG,
            "in_channels",
            json!(7),
            "expected the 4 of the latents, or 9 for inpainting",
        ),
        (
            files::UNET_CONFIG,
            "time_embedding_type",
            json!("fourier"),
            "only \"positional\" is supported",
        ),
        (
            files::VAE_CONFIG,
            "norm_num_groups",
            json!(48),
            "expected a multiple of norm_num_groups, 48",
        ),
        (
            files::TEXT_ENCODER_CONFIG,
            "num_attention_heads",
            json!(7),
            "expected a divisor of hidden_size, 768",
        ),
    ] {
        let message = refused(Version::V1_5, file, key, value);
        assert!(message.ends_with(expected), "{message}");
    }
}

#[test]
fn numbers_out_of_range() {
    let unet = [
        ("sample_size", json!(0)),
        ("sample_size", json!(1025)),
        ("sample_size", json!([64])),
        ("out_channels", json!(0)),
        ("block_out_channels", json!([])),
        ("block_out_channels", json!([320, 640, 1280])),
        ("block_out_channels", json!([320, 640, 1280, 1281])),
        (
            "block_out_channels",
            json!([32, 32, 32, 32, 32, 32, 32, 32, 32]),
        ),
        ("block_out_channels", json!([1_u64 << 60, 640, 1280, 1280])),
        ("block_out_channels", json!([-320, 640, 1280, 1280])),
        ("down_block_types", json!(["DownBlock2D"])),
        ("layers_per_block", json!(0)),
        ("layers_per_block", json!([2, 2, 2])),
        ("layers_per_block", json!(u64::MAX)),
        ("norm_num_groups", json!(0)),
        ("norm_eps", json!(-1e-5)),
        ("cross_attention_dim", json!([768, 768])),
        ("transformer_layers_per_block", json!(1_u64 << 40)),
        ("reverse_transformer_layers_per_block", json!([1, 1, 1])),
        ("attention_head_dim", json!(0)),
        ("attention_head_dim", json!([8, 8, 8])),
        ("attention_head_dim", json!([7, 8, 8, 8])),
        ("freq_shift", json!(160)),
        ("time_embedding_dim", json!(0)),
        ("time_cond_proj_dim", json!(1_u64 << 50)),
    ];
    let vae = [
        ("latent_channels", json!(0)),
        ("scaling_factor", json!(0)),
        ("layers_per_block", json!(1_u64 << 60)),
        ("block_out_channels", json!(vec![128; 20])),
        ("latents_mean", json!([0.0, 0.0, 0.0, 0.0])),
        ("latents_std", json!([1.0, 1.0, 1.0, 1.0])),
        (
            "sd_latent_rgb",
            json!({ "factors": [[1, 1, 1]], "bias": [0, 0, 0] }),
        ),
        (
            "sd_latent_rgb",
            json!({ "factors": [[1, 1], [1, 1], [1, 1], [1, 1]], "bias": [0, 0, 0] }),
        ),
    ];
    let text = [
        ("vocab_size", json!(0)),
        ("hidden_size", json!(1_u64 << 60)),
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("max_position_embeddings", json!(1)),
        ("layer_norm_eps", json!(0)),
        ("eos_token_id", json!(-1)),
    ];
    let scheduler = [
        ("num_train_timesteps", json!(0)),
        ("num_train_timesteps", json!(1_u64 << 60)),
        ("beta_start", json!(1.5)),
        ("beta_end", json!(-0.1)),
        ("trained_betas", json!([0.1, 0.2])),
        ("steps_offset", json!(1001)),
        ("original_inference_steps", json!(0)),
        ("dynamic_thresholding_ratio", json!(1.5)),
        ("solver_order", json!(0)),
        ("sigma_max", json!(-1)),
    ];
    let keys = unet
        .map(|change| (files::UNET_CONFIG, change))
        .into_iter()
        .chain(vae.map(|change| (files::VAE_CONFIG, change)))
        .chain(text.map(|change| (files::TEXT_ENCODER_CONFIG, change)))
        .chain(scheduler.map(|change| (files::SCHEDULER_CONFIG, change)));
    for (file, (key, value)) in keys {
        let message = refused(Version::V2_1Base, file, key, value);
        assert!(message.starts_with(file), "{message}");
    }
}

#[test]
fn components_that_do_not_fit_together() {
    use Version::*;
    for (version, file, key, value, culprit) in [
        (
            V1_5,
            files::UNET_CONFIG,
            "cross_attention_dim",
            json!(1024),
            "cross_attention_dim",
        ),
        (
            V1_5,
            files::TEXT_ENCODER_CONFIG,
            "hidden_size",
            json!(960),
            "cross_attention_dim",
        ),
        (
            V1_5,
            files::VAE_CONFIG,
            "latent_channels",
            json!(16),
            "in_channels",
        ),
        (
            V1_5,
            files::UNET_CONFIG,
            "out_channels",
            json!(8),
            "out_channels",
        ),
        (
            V1_5,
            files::MODEL_INDEX,
            "text_encoder",
            json!([null, null]),
            "text_encoder",
        ),
        (
            Xl,
            files::MODEL_INDEX,
            "text_encoder",
            json!([null, null]),
            "cross_attention_dim",
        ),
        (
            Xl,
            files::MODEL_INDEX,
            "text_encoder_2",
            json!(["transformers", "CLIPTextModel"]),
            "architectures",
        ),
        (
            Xl,
            files::TEXT_ENCODER_2_CONFIG,
            "projection_dim",
            json!(1024),
            "projection_class_embeddings_input_dim",
        ),
        (
            Xl,
            files::UNET_CONFIG,
            "addition_time_embed_dim",
            json!(128),
            "projection_class_embeddings_input_dim",
        ),
        (
            Xl,
            files::UNET_CONFIG,
            "addition_time_embed_dim",
            json!(null),
            "addition_time_embed_dim",
        ),
        (
            Xl,
            files::UNET_CONFIG,
            "addition_embed_type",
            json!(null),
            "text_encoder",
        ),
        (
            XlRefiner,
            files::MODEL_INDEX,
            "requires_aesthetics_score",
            json!(false),
            "projection_class_embeddings_input_dim",
        ),
    ] {
        let message = refused(version, file, key, value);
        assert!(message.contains(&format!("`{culprit}`")), "{message}");
    }
}

#[test]
fn other_kinds_of_models() {
    for (key, class, message) in [
        (
            "transformer",
            "SD3Transformer2DModel",
            "has a transformer, SD3Transformer2DModel",
        ),
        ("unet", "UNet2DModel", "has UNet2DModel as its unet"),
        ("vae", "AutoencoderTiny", "has AutoencoderTiny as its vae"),
        (
            "text_encoder",
            "T5EncoderModel",
            "has T5EncoderModel as its text_encoder",
        ),
        (
            "tokenizer",
            "T5Tokenizer",
            "has T5Tokenizer as its tokenizer",
        ),
    ] {
        let class = json!(["library", class]);
        let error = changed(Version::V1_5, files::MODEL_INDEX, key, class).unwrap_err();
        let expected = format!(
            "model_index.json: StableDiffusionPipeline {message}: \
             expected a Stable Diffusion 1, 2 or XL model"
        );
        assert!(matches!(error, Error::Kind { .. }), "{error}");
        assert_eq!(error.to_string(), expected);
    }
    let absent = json!([null, null]);
    let error = changed(Version::V1_5, files::MODEL_INDEX, "vae", absent).unwrap_err();
    assert!(error.to_string().contains("has no vae"), "{error}");
}

#[test]
fn files_missing_or_broken() {
    let empty = ModelConfig::from_files(|_| None).unwrap_err();
    assert_eq!(empty.to_string(), "model_index.json: not found");
    for text in ["", "[]", "{", "null", "{\"a\": 1} trailing", "\u{0}"] {
        let error = ModelConfig::from_files(|_| Some(text.to_owned())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model_index.json: not a JSON object",
            "{text:?}"
        );
    }
}

#[test]
fn what_does_not_matter_is_accepted() {
    for (file, key, value) in [
        (
            files::MODEL_INDEX,
            "_class_name",
            json!("SomebodysPipeline"),
        ),
        (
            files::MODEL_INDEX,
            "safety_checker",
            json!(["somewhere", "Checker"]),
        ),
        (files::MODEL_INDEX, "unknown", json!({ "a": [1, 2] })),
        (files::UNET_CONFIG, "dropout", json!(0.1)),
        (files::UNET_CONFIG, "unknown", json!([null])),
        (files::UNET_CONFIG, "mid_block_scale_factor", json!(1.0)),
        (files::UNET_CONFIG, "upcast_attention", json!(null)),
        (files::VAE_CONFIG, "latents_mean", json!(null)),
        (files::TEXT_ENCODER_CONFIG, "pad_token_id", json!("odd")),
        (files::SCHEDULER_CONFIG, "trained_betas", json!(null)),
        (files::SCHEDULER_CONFIG, "unknown", json!(7)),
    ] {
        let accepted = changed(Version::V1_5, file, key, value);
        assert!(accepted.is_ok(), "{file}: {key}: {accepted:?}");
    }
}

#[test]
fn the_index_decides_on_classes() {
    let class = json!(["diffusers", "FlaxDDIMScheduler"]);
    let config = changed(Version::V1_5, files::MODEL_INDEX, "scheduler", class).unwrap();
    assert_eq!(config.scheduler.class_name, "DDIMScheduler");
    let class = json!(["transformers", "CLIPTextModelWithProjection"]);
    let config = changed(Version::V1_5, files::MODEL_INDEX, "text_encoder", class).unwrap();
    assert!(config.text_encoders[0].clip.has_projection());
}

#[test]
fn a_model_may_bring_its_defaults() {
    let own = json!({ "num_inference_steps": 25, "guidance_scale": 4.0 });
    let config = changed(Version::V1_5, files::MODEL_INDEX, "sd_defaults", own).unwrap();
    assert_eq!(
        (
            config.defaults.num_inference_steps,
            config.defaults.guidance_scale
        ),
        (25, 4.0)
    );
    for own in [
        json!({ "num_inference_steps": 0 }),
        json!({ "guidance_scale": -1.0 }),
        json!(7),
    ] {
        refused(Version::V1_5, files::MODEL_INDEX, "sd_defaults", own);
    }
}

#[test]
fn picture_sizes() {
    let config = ModelConfig::preset(Version::V1_5);
    for (width, height) in [(8, 8), (512, 768), (8192, 8192)] {
        assert!(
            config.validate_size(width, height).is_ok(),
            "{width}x{height}"
        );
    }
    for (width, height) in [
        (0, 512),
        (512, 0),
        (511, 512),
        (512, 516),
        (8200, 512),
        (usize::MAX - 7, 512),
    ] {
        assert!(
            config.validate_size(width, height).is_err(),
            "{width}x{height}"
        );
    }
    let error = config.validate_size(512, 516).unwrap_err();
    assert_eq!(
        error.to_string(),
        "height is 516: expected a multiple of 8 from 8 to 8192"
    );
}

#[test]
fn version_names() {
    assert_eq!("XL-Turbo".parse::<Version>().unwrap(), Version::XlTurbo);
    let error = "v3".parse::<Version>().unwrap_err().to_string();
    assert!(
        error.starts_with("unknown version `v3`: expected one of v1.5, v1.5-inpaint, "),
        "{error}"
    );
}
