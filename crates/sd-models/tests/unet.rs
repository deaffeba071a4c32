//! The UNet against diffusers: every family, every block's output.

mod common;
mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{assert_close, cases, tensors};
use sd_config::{AdditionEmbedType, DownBlockType, PerBlock, UnetConfig, UpBlockType};
use sd_models::unet::{Added, Residuals, Unet, UnetInput};
use sd_models::{Component, Error, Weights};
use support::{STAGE, bf16_error, bits, folders, idle, random, random_weights, text};

/// The golden UNets: a folder with config and weights, and the file with the cases.
fn unets() -> Vec<(PathBuf, PathBuf)> {
    let families = folders("models")
        .into_iter()
        .map(|f| (f.join("unet"), f.join("golden/unet.safetensors")));
    let extra = folders("unets")
        .into_iter()
        .map(|f| (f.clone(), f.join("golden.safetensors")));
    families.chain(extra).collect()
}

fn config(folder: &Path) -> UnetConfig {
    UnetConfig::parse(&text(&folder.join("config.json"))).unwrap()
}

fn weights_file(folder: &Path) -> PathBuf {
    folder.join("diffusion_pytorch_model.safetensors")
}

/// A UNet from its folder, all tensors of the file used.
fn load(folder: &Path, dtype: DType) -> Unet {
    let weights = Weights::open(Component::Unet, &[weights_file(folder)]).unwrap();
    let unet = Unet::new(weights.var_builder(dtype, &Device::Cpu), &config(folder)).unwrap();
    let report = weights.finish().unwrap();
    assert!(
        report.unexpected.is_empty(),
        "{}: unused {:?}",
        folder.display(),
        report.unexpected
    );
    unet
}

/// Calls `unet` with the inputs of a golden case.
fn run(
    unet: &Unet,
    case: &HashMap<String, Tensor>,
    observe: &mut dyn FnMut(&str, &Tensor),
) -> sd_models::Result<Tensor> {
    let timesteps: Vec<f64> = case["timestep"]
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f64::from)
        .collect();
    let down: Vec<Tensor> = (0..)
        .map_while(|i| case.get(&format!("res.down.{i}")).cloned())
        .collect();
    let added = case.get("text_embeds").map(|text_embeds| Added {
        text_embeds,
        time_ids: &case["time_ids"],
    });
    let input = UnetInput {
        added,
        timestep_cond: case.get("timestep_cond"),
        class_labels: case.get("class_labels"),
        residuals: case
            .get("res.mid")
            .map(|mid| Residuals { down: &down, mid }),
        ..UnetInput::new(&case["sample"], &timesteps, &case["context"])
    };
    unet.forward_observed(&input, observe)
}

#[test]
fn every_block_of_every_family_is_diffusers() {
    for (folder, file) in unets() {
        let unet = load(&folder, DType::F32);
        for (name, case) in cases(&file) {
            let mut seen = 0;
            let out = run(&unet, &case, &mut |key, value| {
                let what = format!("{} {name}: {key}", folder.display());
                assert_close(&what, value, &case[key], STAGE);
                seen += 1;
            });
            assert_close(
                &format!("{} {name}", folder.display()),
                &out.unwrap(),
                &case["out"],
                STAGE,
            );
            let blocks = case
                .keys()
                .filter(|key| key.starts_with("down.") || key.starts_with("up."));
            assert!(
                seen >= blocks.count() + 2,
                "{}: intermediates are missing",
                folder.display()
            );
        }
    }
}

#[test]
fn every_tensor_moves_the_output() {
    for (folder, file) in unets() {
        let config = config(&folder);
        let cases = cases(&file);
        let case = cases
            .values()
            .min_by_key(|case| case["sample"].elem_count())
            .unwrap();
        let idle = idle(&tensors(&weights_file(&folder)), |tensors| {
            let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
            run(&Unet::new(vb, &config).unwrap(), case, &mut |_, _| ()).unwrap()
        });
        assert!(
            idle.is_empty(),
            "{}: no influence: {idle:?}",
            folder.display()
        );
    }
}

#[test]
fn weights_in_f16_are_the_rounded_weights() {
    let (folder, file) = unets().swap_remove(0);
    let cases = cases(&file);
    let case = cases.values().next().unwrap();
    let rounded = |t: Tensor| {
        let short = t.to_dtype(DType::F16).unwrap();
        short.to_dtype(DType::F32).unwrap()
    };
    let rounded = tensors(&weights_file(&folder))
        .into_iter()
        .map(|(name, t)| (name, rounded(t)))
        .collect();
    let rounded = VarBuilder::from_tensors(rounded, DType::F32, &Device::Cpu);
    let expected = run(
        &Unet::new(rounded, &config(&folder)).unwrap(),
        case,
        &mut |_, _| (),
    );
    let found = run(&load(&folder, DType::F16), case, &mut |_, _| ());
    assert_eq!(bits(&found.unwrap()), bits(&expected.unwrap()));
}

#[test]
fn in_bf16_it_is_no_further_from_f32_than_diffusers() {
    for folder in folders("models") {
        let unet = load(&folder.join("unet"), DType::BF16);
        let allowed = bf16_error(&folder, "unet");
        for (name, case) in cases(&folder.join("golden/unet.safetensors")) {
            let found = run(&unet, &case, &mut |_, _| ()).unwrap();
            let what = format!("{} {name}", folder.display());
            assert_close(&what, &found, &case["out"], allowed);
        }
    }
}

/// Candle's own network uses the tanh approximation of GELU: it agrees, but not to f32 rounding.
#[test]
fn candle_transformers_agrees_to_the_error_of_its_gelu() {
    use candle_transformers::models::stable_diffusion::unet_2d;
    let config = UnetConfig {
        block_out_channels: vec![32, 64, 64, 64],
        cross_attention_dim: PerBlock::Same(24),
        ..UnetConfig::default()
    };
    let block = |out_channels, use_cross_attn| unet_2d::BlockConfig {
        out_channels,
        use_cross_attn,
        attention_head_dim: 8,
    };
    let other = unet_2d::UNet2DConditionModelConfig {
        blocks: vec![
            block(32, Some(1)),
            block(64, Some(1)),
            block(64, Some(1)),
            block(64, None),
        ],
        cross_attention_dim: 24,
        ..Default::default()
    };
    let ours = Unet::new(random_weights(DType::F32), &config).unwrap();
    let other =
        unet_2d::UNet2DConditionModel::new(random_weights(DType::F32), 4, 4, false, other).unwrap();
    for (height, width) in [(16, 16), (9, 13)] {
        let (sample, text) = (random(1, &[2, 4, height, width]), random(2, &[2, 7, 24]));
        let expected = other.forward(&sample, 901., &text).unwrap();
        let found = ours
            .forward(&UnetInput::new(&sample, &[901., 901.], &text))
            .unwrap();
        assert_close("candle-transformers", &found, &expected, 5e-4);
    }
}

/// A tiny network with every optional input.
fn conditioned() -> Unet {
    let config = UnetConfig {
        down_block_types: vec![
            DownBlockType::CrossAttnDownBlock2D,
            DownBlockType::DownBlock2D,
        ],
        up_block_types: vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
        block_out_channels: vec![8, 16],
        norm_num_groups: 4,
        attention_head_dim: PerBlock::Same(2),
        cross_attention_dim: PerBlock::Same(12),
        num_class_embeds: Some(5),
        time_cond_proj_dim: Some(6),
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(4),
        projection_class_embeddings_input_dim: Some(6 * 4 + 10),
        ..UnetConfig::default()
    };
    Unet::new(random_weights(DType::F32), &config).unwrap()
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let unet = conditioned();
    let (sample, text, timesteps) = (
        random(1, &[2, 4, 6, 5]),
        random(2, &[2, 3, 12]),
        [901., 0.5],
    );
    let (text_embeds, time_ids) = (random(3, &[2, 10]), random(4, &[2, 6]));
    let (cond, labels) = (
        random(5, &[2, 6]),
        Tensor::new(&[4u32, 0], &Device::Cpu).unwrap(),
    );
    let sizes = [
        [8, 6, 5],
        [8, 6, 5],
        [8, 6, 5],
        [8, 3, 3],
        [16, 3, 3],
        [16, 3, 3],
    ];
    let down: Vec<Tensor> = sizes
        .iter()
        .map(|&[c, h, w]| random(6, &[2, c, h, w]))
        .collect();
    let mid = random(7, &[2, 16, 3, 3]);
    let input = UnetInput {
        added: Some(Added {
            text_embeds: &text_embeds,
            time_ids: &time_ids,
        }),
        timestep_cond: Some(&cond),
        class_labels: Some(&labels),
        residuals: Some(Residuals {
            down: &down,
            mid: &mid,
        }),
        ..UnetInput::new(&sample, &timesteps, &text)
    };
    assert_eq!(unet.forward(&input).unwrap().dims(), [2, 4, 6, 5]);

    let bad = random(8, &[2, 3, 6, 5]);
    let fails = |input: UnetInput, expected: &str| match unet.forward(&input) {
        Err(Error::Input {
            what,
            found,
            expected: wanted,
            ..
        }) => {
            assert_eq!(what, expected);
            assert!(!found.is_empty() && !wanted.is_empty());
        }
        other => panic!("{expected}: {other:?}"),
    };
    fails(
        UnetInput {
            sample: &bad,
            ..input
        },
        "sample",
    );
    fails(
        UnetInput {
            sample: &random(1, &[2, 4, 0, 5]),
            ..input
        },
        "sample",
    );
    fails(
        UnetInput {
            sample: &random(1, &[4, 6, 5]),
            ..input
        },
        "sample",
    );
    fails(
        UnetInput {
            timesteps: &[1.],
            ..input
        },
        "timesteps",
    );
    for shape in [&[1, 3, 12][..], &[2, 3, 11], &[2, 0, 12], &[2, 12], &[]] {
        fails(
            UnetInput {
                encoder_hidden_states: &random(2, shape),
                ..input
            },
            "encoder_hidden_states",
        );
    }
    fails(
        UnetInput {
            added: None,
            ..input
        },
        "added",
    );
    for (text_embeds, time_ids, name) in [
        (random(3, &[2, 9]), time_ids.clone(), "text_embeds"),
        (text_embeds.clone(), random(4, &[2, 5]), "text_embeds"),
        (text_embeds.clone(), random(4, &[1, 6]), "time_ids"),
        (text_embeds.clone(), random(4, &[2, 60]), "time_ids"),
        (text_embeds.clone(), random(4, &[12]), "time_ids"),
    ] {
        let added = Added {
            text_embeds: &text_embeds,
            time_ids: &time_ids,
        };
        fails(
            UnetInput {
                added: Some(added),
                ..input
            },
            name,
        );
    }
    fails(
        UnetInput {
            timestep_cond: Some(&bad),
            ..input
        },
        "timestep_cond",
    );
    fails(
        UnetInput {
            class_labels: None,
            ..input
        },
        "class_labels",
    );
    fails(
        UnetInput {
            class_labels: Some(&cond),
            ..input
        },
        "class_labels",
    );
    let mut swapped = down.clone();
    swapped.swap(0, 3);
    for down in [&down[1..], &swapped, &[]] {
        fails(
            UnetInput {
                residuals: Some(Residuals { down, mid: &mid }),
                ..input
            },
            "residuals.down",
        );
    }
    fails(
        UnetInput {
            residuals: Some(Residuals {
                down: &down,
                mid: &bad,
            }),
            ..input
        },
        "residuals.mid",
    );
    let beyond = Tensor::new(&[5u32, 0], &Device::Cpu).unwrap();
    assert!(matches!(
        unet.forward(&UnetInput {
            class_labels: Some(&beyond),
            ..input
        }),
        Err(Error::Candle { .. })
    ));

    let plain = Unet::new(
        random_weights(DType::F32),
        &UnetConfig {
            block_out_channels: vec![32; 4],
            ..UnetConfig::default()
        },
    );
    let plain = plain.unwrap();
    let text = random(2, &[2, 3, 1280]);
    let simple = UnetInput::new(&sample, &timesteps, &text);
    for (input, name) in [
        (
            UnetInput {
                added: input.added,
                ..simple
            },
            "added",
        ),
        (
            UnetInput {
                timestep_cond: input.timestep_cond,
                ..simple
            },
            "timestep_cond",
        ),
        (
            UnetInput {
                class_labels: input.class_labels,
                ..simple
            },
            "class_labels",
        ),
    ] {
        assert!(
            matches!(plain.forward(&input), Err(Error::Input { what, .. }) if what == name),
            "{name}"
        );
    }
}
