//! A small Stable Diffusion model of drawn shapes, embedded as bytes.
//!
//! Stable Diffusion's own architecture in the folder layout of diffusers, small enough to be part of a binary: asked for
//! "a red circle on a white background", it draws one at 128x128 pixels. `tools/demo-model` trains it.

/// The files of the model: the path inside the diffusers folder and the content.
pub static FILES: &[(&str, &[u8])] = &[
    ("model_index.json", include_bytes!("../model_index.json")),
    (
        "scheduler/scheduler_config.json",
        include_bytes!("../scheduler/scheduler_config.json"),
    ),
    (
        "text_encoder/config.json",
        include_bytes!("../text_encoder/config.json"),
    ),
    (
        "text_encoder/model.safetensors",
        include_bytes!("../text_encoder/model.safetensors"),
    ),
    (
        "tokenizer/merges.txt",
        include_bytes!("../tokenizer/merges.txt"),
    ),
    (
        "tokenizer/special_tokens_map.json",
        include_bytes!("../tokenizer/special_tokens_map.json"),
    ),
    (
        "tokenizer/tokenizer_config.json",
        include_bytes!("../tokenizer/tokenizer_config.json"),
    ),
    (
        "tokenizer/vocab.json",
        include_bytes!("../tokenizer/vocab.json"),
    ),
    ("unet/config.json", include_bytes!("../unet/config.json")),
    (
        "unet/diffusion_pytorch_model.safetensors",
        include_bytes!("../unet/diffusion_pytorch_model.safetensors"),
    ),
    ("vae/config.json", include_bytes!("../vae/config.json")),
    (
        "vae/diffusion_pytorch_model.safetensors",
        include_bytes!("../vae/diffusion_pytorch_model.safetensors"),
    ),
];
