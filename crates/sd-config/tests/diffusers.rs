//! Class defaults and the resolution of the UNet's blocks, against what diffusers and transformers
//! themselves make of the same configurations (`diffusers/generate.py`).

use std::fs;
use std::path::{Path, PathBuf};

use sd_config::{
    BlockAttention, ClassEmbedType, ClipConfig, TinyVaeConfig, UnetBlock, UnetConfig, VaeConfig,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn read(path: &str) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(tests().join(path)).unwrap()).unwrap()
}

/// Every field of the struct is a key of the class and has its default; a file that spells out all
/// the class's defaults means the same as an empty one.
fn compare_defaults<T: Serialize>(class: &str, parse: impl Fn(&str) -> sd_config::Result<T>) {
    let expected = &read("diffusers/class_defaults.json")[class];
    let spelled_out = serde_json::to_value(parse(&expected.to_string()).unwrap()).unwrap();
    let absent = serde_json::to_value(parse("{}").unwrap()).unwrap();
    assert_eq!(spelled_out, absent, "{class}");
    for (key, value) in absent.as_object().unwrap() {
        // Of every transformers configuration, and empty; ours, and absent.
        if key == "architectures" || key.starts_with("sd_") {
            continue;
        }
        let expected = expected
            .get(key)
            .unwrap_or_else(|| panic!("{class} has no {key}"));
        let same = value == expected
            || value
                .as_f64()
                .zip(expected.as_f64())
                .is_some_and(|(a, b)| a == b);
        assert!(same, "{class}: {key} is {value} instead of {expected}");
    }
}

#[test]
fn missing_keys_take_the_defaults_of_the_class() {
    compare_defaults("unet", UnetConfig::parse);
    compare_defaults("vae", VaeConfig::parse);
    compare_defaults("tiny_vae", TinyVaeConfig::parse);
    compare_defaults("clip", ClipConfig::parse);
}

#[test]
fn blocks_are_those_diffusers_builds() {
    let mut compared = 0;
    for (name, expected) in read("diffusers/unets.json") {
        let config = match expected.get("config") {
            Some(config) => config.to_string(),
            None => fs::read_to_string(tests().join(format!("published/{name}/unet/config.json")))
                .unwrap(),
        };
        let config = UnetConfig::parse(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        let network = Network::of(&config);
        let describe = |parts: &[Part]| Value::from_iter(parts.iter().map(Part::describe));
        assert_eq!(describe(&network.down), expected["down"], "{name}");
        assert_eq!(
            json!(network.mid.as_ref().map(Part::describe)),
            expected["mid"],
            "{name}"
        );
        assert_eq!(describe(&network.up), expected["up"], "{name}");
        assert_eq!(
            config.time_embed_dim(),
            expected["time_embed_dim"],
            "{name}"
        );
        assert_eq!(
            network.parameters(&config),
            expected["parameters"],
            "{name}"
        );
        compared += 1;
    }
    assert_eq!(compared, 27);
}

/// A block with the layers that its description stands for.
struct Part {
    block: UnetBlock,
    /// Channels into and out of each residual layer.
    resnets: Vec<[usize; 2]>,
    transformers: usize,
}

impl Part {
    fn down(block: UnetBlock) -> Self {
        let input = |layer| {
            if layer == 0 {
                block.in_channels
            } else {
                block.out_channels
            }
        };
        let resnets = (0..block.layers)
            .map(|layer| [input(layer), block.out_channels])
            .collect();
        Self {
            block,
            resnets,
            transformers: block.attention.map_or(0, |_| block.layers),
        }
    }

    fn mid(block: UnetBlock) -> Self {
        Self {
            transformers: block.attention.map_or(0, |_| 1),
            ..Self::down(block)
        }
    }

    /// Each layer takes a skip connection beside what comes from the layer before.
    fn up(block: UnetBlock) -> Self {
        let input = |layer| {
            if layer == 0 {
                block.prev_output_channels
            } else {
                block.out_channels
            }
        };
        let skip = |layer| {
            if layer + 1 == block.layers {
                block.in_channels
            } else {
                block.out_channels
            }
        };
        let resnets = (0..block.layers)
            .map(|layer| [input(layer) + skip(layer), block.out_channels])
            .collect();
        Self {
            resnets,
            ..Self::down(block)
        }
    }

    /// In the words of the generator.
    fn describe(&self) -> Value {
        let attention = self.block.attention.map(|attention| {
            let BlockAttention {
                heads,
                depth,
                context_dim,
            } = attention;
            json!({ "heads": heads, "depth": depth, "context_dim": context_dim })
        });
        json!({
            "resnets": self.resnets,
            "transformers": self.transformers,
            "attention": attention,
            "resample": self.block.resample,
        })
    }

    fn parameters(&self, time_embed_dim: usize) -> usize {
        let channels = self.block.out_channels;
        let resnet = |&[from, to]: &[usize; 2]| {
            let shortcut = if from == to { 0 } else { linear(from, to) };
            2 * from
                + conv(from, to)
                + linear(time_embed_dim, to)
                + 2 * to
                + conv(to, to)
                + shortcut
        };
        let transformer = |attention: BlockAttention| {
            let self_attention = 3 * channels * channels + linear(channels, channels);
            let context = 2 * attention.context_dim * channels;
            let cross_attention = channels * channels + context + linear(channels, channels);
            let feed_forward = linear(channels, 8 * channels) + linear(4 * channels, channels);
            let layer = 6 * channels + self_attention + cross_attention + feed_forward;
            2 * channels + 2 * linear(channels, channels) + attention.depth * layer
        };
        self.resnets.iter().map(resnet).sum::<usize>()
            + self
                .block
                .attention
                .map_or(0, |attention| self.transformers * transformer(attention))
            + if self.block.resample {
                conv(channels, channels)
            } else {
                0
            }
    }
}

struct Network {
    down: Vec<Part>,
    mid: Option<Part>,
    up: Vec<Part>,
}

impl Network {
    fn of(config: &UnetConfig) -> Self {
        Self {
            down: config.down_blocks().into_iter().map(Part::down).collect(),
            mid: config.mid_block().map(Part::mid),
            up: config.up_blocks().into_iter().map(Part::up).collect(),
        }
    }

    /// Number of parameters of the whole network.
    fn parameters(&self, config: &UnetConfig) -> usize {
        let time = config.time_embed_dim();
        let first = config.block_out_channels[0];
        let projected = config.projection_class_embeddings_input_dim.unwrap_or(0);
        let two_layers = |from: usize| linear(from, time) + linear(time, time);
        let class = match config.class_embed_type {
            None => config.num_class_embeds.unwrap_or(0) * time,
            Some(ClassEmbedType::Timestep) => two_layers(first),
            Some(ClassEmbedType::Identity) => 0,
            Some(ClassEmbedType::Projection) => two_layers(projected),
            Some(ClassEmbedType::SimpleProjection) => linear(projected, time),
        };
        let embeddings = two_layers(first)
            + config.time_cond_proj_dim.unwrap_or(0) * first
            + config
                .addition_embed_type
                .map_or(0, |_| two_layers(projected))
            + class;
        let blocks = self
            .down
            .iter()
            .chain(&self.mid)
            .chain(&self.up)
            .map(|part| part.parameters(time));
        conv(config.in_channels, first)
            + embeddings
            + blocks.sum::<usize>()
            + 2 * first
            + conv(first, config.out_channels)
    }
}

/// Parameters of a linear layer, or of a 1x1 convolution.
fn linear(from: usize, to: usize) -> usize {
    from * to + to
}

/// Parameters of a 3x3 convolution.
fn conv(from: usize, to: usize) -> usize {
    9 * from * to + to
}
