//! What the benches of each stage share: models of random weights, random inputs, and the same models built by
//! `candle-transformers`, which reads the same tensors by the same names.

mod baseline;
mod random;

pub use baseline::{baseline_unet, baseline_vae};
pub use random::{input, weights};

use sd_config::{ModelConfig, PerBlock, Version};
use sd_pipeline::Pipeline;

/// As the worker has it.
#[global_allocator]
static MEMORY: sd_ops::Recycler = sd_ops::Recycler::new();

/// A model whose networks are timed, with weights made up on the spot.
pub struct Case {
    /// First part of each bench's name.
    pub name: &'static str,
    /// The networks' shapes.
    pub config: ModelConfig,
}

impl Case {
    /// A small model of Stable Diffusion 1.5's build, and 1.5 itself when `SD_BENCH_FULL` is set: 3.4 GB of weights for
    /// its UNet alone, and seconds to minutes an iteration.
    pub fn all() -> Vec<Self> {
        let full_size = ModelConfig::preset(Version::V1_5);
        let small = Self {
            name: "small",
            config: small(full_size.clone()),
        };
        let full_size = Self {
            name: "v1.5",
            config: full_size,
        };
        if full() {
            vec![small, full_size]
        } else {
            vec![small]
        }
    }
}

/// A fifth of the channels, half of the side. The baseline's transformers need multiples of 32 channels.
fn small(mut config: ModelConfig) -> ModelConfig {
    config.unet.block_out_channels = vec![64, 128, 256, 256];
    config.vae.block_out_channels = vec![32, 64, 128, 128];
    let clip = &mut config.text_encoders[0].clip;
    (
        clip.hidden_size,
        clip.intermediate_size,
        clip.num_hidden_layers,
    ) = (192, 768, 6);
    config.unet.cross_attention_dim = PerBlock::Same(clip.hidden_size);
    (config.defaults.width, config.defaults.height) = (256, 256);
    config
}

/// Whether `SD_BENCH_FULL` is set.
pub fn full() -> bool {
    std::env::var_os("SD_BENCH_FULL").is_some()
}

/// The built-in model, loaded.
pub fn builtin() -> Pipeline {
    Pipeline::builder(sd_pipeline::builtin_model())
        .build()
        .expect("the built-in model loads")
}
