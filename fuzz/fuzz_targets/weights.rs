//! Bytes in place of a safetensors file: they are refused, or a network is built of them, or it is said what is missing.
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use sd_config::VaeConfig;
use sd_models::{Component, Weights, vae::AutoencoderKl};

fuzz_target!(|file: &[u8]| {
    let Ok(weights) = Weights::from_bytes(Component::Vae, "fuzzed", file.to_vec()) else {
        return;
    };
    let config = sd_demo_model::FILES
        .iter()
        .find(|(path, _)| *path == "vae/config.json")
        .and_then(|(_, bytes)| std::str::from_utf8(bytes).ok())
        .and_then(|text| VaeConfig::parse(text).ok())
        .expect("the built-in model has an autoencoder");
    let _ = AutoencoderKl::new(weights.var_builder(DType::F32, &Device::Cpu), &config);
    let _ = weights.finish();
});
