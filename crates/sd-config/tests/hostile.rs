//! No text, however wrong, makes anything panic, and whatever is accepted can be used.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use sd_config::{
    ClipConfig, DownBlockType, ModelConfig, ModelIndex, PerBlock, SchedulerFile, UnetConfig,
    UpBlockType, VaeConfig, Version, files,
};
use serde_json::{Map, Value, json};

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![0..300_u64, Just(1 << 60), Just(u64::MAX), any::<u64>()].prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![
            ".{0,8}",
            Just("CrossAttnDownBlock2D".to_owned()),
            Just("UpBlock2D".to_owned()),
            Just("text_time".to_owned()),
            Just("gelu".to_owned()),
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Plausible values, so that many configurations pass the checks of single keys.
fn number() -> impl Strategy<Value = Value> {
    let one = prop_oneof![
        Just(0_usize),
        1..5_usize,
        Just(32),
        Just(64),
        Just(320),
        Just(1280)
    ];
    prop_oneof![
        one.clone().prop_map(|n| json!(n)),
        prop::collection::vec(one, 0..6).prop_map(|list| json!(list)),
    ]
}

fn published(version: Version) -> BTreeMap<&'static str, Map<String, Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/published")
        .join(version.name());
    let read = |file| {
        Some((
            file,
            serde_json::from_str(&fs::read_to_string(folder.join(file)).ok()?).unwrap(),
        ))
    };
    files::config_files().into_iter().filter_map(read).collect()
}

/// What an accepted model must stand.
fn use_it(config: &ModelConfig) {
    let blocks = config
        .unet
        .down_blocks()
        .into_iter()
        .chain(config.unet.mid_block())
        .chain(config.unet.up_blocks());
    for block in blocks {
        assert!(block.layers > 0 && block.in_channels > 0 && block.prev_output_channels > 0);
        assert!(
            block
                .out_channels
                .is_multiple_of(config.unet.norm_num_groups)
        );
        if let Some(attention) = block.attention {
            assert!(block.out_channels.is_multiple_of(attention.heads));
        }
    }
    assert!(config.unet.time_embed_dim() > 0);
    config
        .validate_size(config.defaults.width, config.defaults.height)
        .unwrap();
    let _ = config.validate_size(usize::MAX, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_text_is_parsed_or_refused(text in ".{0,60}") {
        let _ = ClipConfig::parse(&text);
        let _ = UnetConfig::parse(&text);
        let _ = VaeConfig::parse(&text);
        let _ = SchedulerFile::parse(&text);
        let _ = ModelIndex::parse(&text);
    }

    #[test]
    fn any_value_of_any_key_is_parsed_or_refused(
        version in prop::sample::select(&Version::ALL[..]),
        changes in prop::collection::vec(
            (any::<Index>(), any::<Index>(), prop_oneof![value(), number()]),
            1..4,
        ),
    ) {
        let mut folder = published(version);
        for (file, key, value) in changes {
            let file = file.index(folder.len());
            let map = folder.values_mut().nth(file).unwrap();
            let key = map.keys().nth(key.index(map.len())).unwrap().clone();
            map.insert(key, value);
        }
        let text = |file: &str| Some(Value::Object(folder.get(file)?.clone()).to_string());
        if let Ok(config) = ModelConfig::from_files(text) {
            use_it(&config);
        }
    }

    #[test]
    fn any_unet_is_consistent_or_refused(
        channels in prop::collection::vec(prop::sample::select(vec![8_usize, 16, 24, 0, 10]), 0..4),
        heads in number(),
        layers in number(),
        depths in number(),
        groups in 0..6_usize,
    ) {
        let count = channels.len();
        let text = json!({
            "block_out_channels": channels,
            "norm_num_groups": groups,
            "attention_head_dim": heads,
            "layers_per_block": layers,
            "transformer_layers_per_block": depths,
            "down_block_types": vec!["CrossAttnDownBlock2D"; count],
            "up_block_types": vec!["CrossAttnUpBlock2D"; count],
        });
        if let Ok(unet) = UnetConfig::parse(&text.to_string()) {
            prop_assert_eq!(unet.down_blocks().len(), count);
            prop_assert_eq!(unet.up_blocks().len(), count);
            for block in unet.down_blocks().iter().chain(&unet.up_blocks()) {
                let attention = block.attention.unwrap();
                prop_assert!(block.layers > 0 && block.out_channels % attention.heads == 0);
            }
        }
    }

    #[test]
    fn blocks_of_an_unchecked_configuration_do_not_panic(
        channels in prop::collection::vec(any::<usize>(), 0..4),
        blocks in 0..5_usize,
        layers in any::<usize>(),
    ) {
        let unet = UnetConfig {
            block_out_channels: channels,
            down_block_types: vec![DownBlockType::CrossAttnDownBlock2D; blocks],
            up_block_types: vec![UpBlockType::CrossAttnUpBlock2D; blocks],
            layers_per_block: PerBlock::Same(layers),
            ..UnetConfig::default()
        };
        prop_assert_eq!(unet.down_blocks().len(), blocks);
        prop_assert_eq!(unet.up_blocks().len(), blocks);
        let _ = (unet.mid_block(), unet.time_embed_dim(), unet.check());
    }
}

#[test]
fn deep_nesting_is_refused() {
    let text = format!("{{\"a\": {}", "[".repeat(1_000_000));
    assert!(UnetConfig::parse(&text).is_err());
}
