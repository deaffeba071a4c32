//! The layout of a diffusers folder: paths relative to it.

/// Names the pipeline's class and components.
pub const MODEL_INDEX: &str = "model_index.json";
/// The scheduler.
pub const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";
/// The first text encoder.
pub const TEXT_ENCODER_CONFIG: &str = "text_encoder/config.json";
/// The second text encoder, of XL.
pub const TEXT_ENCODER_2_CONFIG: &str = "text_encoder_2/config.json";
/// The UNet.
pub const UNET_CONFIG: &str = "unet/config.json";
/// The autoencoder.
pub const VAE_CONFIG: &str = "vae/config.json";

/// A tiny autoencoder, in a folder of its own.
pub const TINY_VAE_CONFIG: &str = "config.json";
/// The weights beside [`TINY_VAE_CONFIG`].
pub const TINY_VAE_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Files of a tokenizer's folder. `tokenizer.json` alone is enough; so are `vocab.json` and
/// `merges.txt`.
pub const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

/// The files that [`ModelConfig::from_files`](crate::ModelConfig::from_files) may read.
pub const fn config_files() -> [&'static str; 6] {
    [
        MODEL_INDEX,
        SCHEDULER_CONFIG,
        TEXT_ENCODER_CONFIG,
        TEXT_ENCODER_2_CONFIG,
        UNET_CONFIG,
        VAE_CONFIG,
    ]
}

/// Where the weights in `folder` may be, best first: those of the variant (`fp16`), then those
/// without, each as one file or as the index of its shards.
///
/// ```
/// let files = sd_config::files::weight_candidates("unet", Some("fp16"));
/// assert_eq!(files[0], "unet/diffusion_pytorch_model.fp16.safetensors");
/// assert_eq!(files[1], "unet/diffusion_pytorch_model.safetensors.index.fp16.json");
/// assert_eq!(files[2], "unet/diffusion_pytorch_model.safetensors");
/// assert_eq!(files[3], "unet/diffusion_pytorch_model.safetensors.index.json");
/// ```
pub fn weight_candidates(folder: &str, variant: Option<&str>) -> Vec<String> {
    let stem = if folder.starts_with("text_encoder") {
        "model"
    } else {
        "diffusion_pytorch_model"
    };
    let of_variant = variant.map(|v| {
        [
            format!("{folder}/{stem}.{v}.safetensors"),
            format!("{folder}/{stem}.safetensors.index.{v}.json"),
        ]
    });
    let plain = [
        format!("{folder}/{stem}.safetensors"),
        format!("{folder}/{stem}.safetensors.index.json"),
    ];
    of_variant.into_iter().flatten().chain(plain).collect()
}
