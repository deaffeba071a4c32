//! The tiny decoder's configuration: diffusers' defaults, and refusals that name key and value.

use sd_config::TinyVaeConfig;
use serde_json::{Value, json};

fn refused(key: &str, value: Value) {
    let message = match TinyVaeConfig::parse(&json!({ key: value }).to_string()) {
        Ok(config) => panic!("{key} = {value} is accepted: {config:?}"),
        Err(error) => error.to_string(),
    };
    let start = format!("config.json: `{key}` is ");
    assert!(message.starts_with(&start), "{message}");
}

#[test]
fn what_is_missing_is_that_of_taesd() {
    let config = TinyVaeConfig::parse(r#"{"_class_name": "AutoencoderTiny"}"#).unwrap();
    assert_eq!(config, TinyVaeConfig::default());
    assert_eq!((config.latent_channels, config.factor()), (4, 8));
}

#[test]
fn a_stage_more_is_an_upsampling_more() {
    let json = json!({
        "upsampling_scaling_factor": 3,
        "num_decoder_blocks": [1, 0, 2],
        "decoder_block_out_channels": [32, 32, 32],
    });
    let config = TinyVaeConfig::parse(&json.to_string()).unwrap();
    assert_eq!(config.factor(), 9);
}

#[test]
fn what_cannot_be_built_is_refused() {
    refused("_class_name", json!("AutoencoderKL"));
    refused("act_fn", json!("gelu"));
    refused("upsample_fn", json!("bilinear"));
    refused("out_channels", json!(4));
    refused("latent_channels", json!(0));
    refused("latent_channels", json!("four"));
    refused("upsampling_scaling_factor", json!(9));
    refused("scaling_factor", json!(0));
    refused("decoder_block_out_channels", json!([64, 64, 64, 32]));
    refused("decoder_block_out_channels", json!([]));
    refused(
        "decoder_block_out_channels",
        json!([1_u64 << 40, 1_u64 << 40]),
    );
    refused("num_decoder_blocks", json!([3, 3, 1]));
    refused("num_decoder_blocks", json!([3, 3, 3, u64::MAX]));
}

#[test]
fn the_factor_of_unchecked_values_is_defined() {
    let config = TinyVaeConfig {
        upsampling_scaling_factor: 3,
        num_decoder_blocks: vec![1; 1000],
        ..TinyVaeConfig::default()
    };
    assert_eq!(config.factor(), usize::MAX);
}
