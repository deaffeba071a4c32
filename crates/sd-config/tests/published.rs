//! Each preset equals what the published files parse to. The files are under `published/`;
//! `docs/models.md` says where their text comes from.

use std::fs;
use std::path::Path;

use sd_config::{ModelConfig, PerBlock, PredictionType, Version};

fn published(version: Version) -> ModelConfig {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/published")
        .join(version.name());
    ModelConfig::from_files(|file| fs::read_to_string(folder.join(file)).ok())
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn presets_equal_the_published_files() {
    for version in Version::ALL {
        assert_eq!(
            ModelConfig::preset(version),
            published(version),
            "{version}"
        );
    }
}

#[test]
fn each_version_has_its_size_steps_and_guidance() {
    let found = Version::ALL.map(|version| {
        let defaults = published(version).defaults;
        (
            version.name(),
            defaults.width,
            defaults.height,
            defaults.num_inference_steps,
            defaults.guidance_scale,
        )
    });
    let expected = [
        ("v1.5", 512, 512, 50, 7.5),
        ("v1.5-inpaint", 512, 512, 50, 7.5),
        ("v2.1", 768, 768, 50, 7.5),
        ("v2.1-base", 512, 512, 50, 7.5),
        ("v2-inpaint", 512, 512, 50, 7.5),
        ("xl", 1024, 1024, 50, 5.0),
        ("xl-refiner", 1024, 1024, 50, 5.0),
        ("xl-inpaint", 1024, 1024, 50, 7.5),
        ("xl-turbo", 512, 512, 1, 0.0),
        ("sd-turbo", 512, 512, 1, 0.0),
        ("lcm", 768, 768, 4, 8.5),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_old_training_size_in_the_first_files_is_corrected() {
    let file = include_str!("published/v1.5-inpaint/unet/config.json");
    assert!(file.contains("\"sample_size\": 32"));
    assert_eq!(
        published(Version::V1_5Inpaint).unet.sample_size,
        Some(PerBlock::Same(64))
    );
    let newer = file.replace("0.6.0.dev0", "0.9.0.dev0");
    assert_eq!(
        sd_config::UnetConfig::parse(&newer).unwrap().sample_size,
        Some(PerBlock::Same(32))
    );
}

#[test]
fn families_differ_where_the_pipeline_asks() {
    for version in Version::ALL {
        let config = ModelConfig::preset(version);
        let xl = matches!(
            version,
            Version::Xl | Version::XlRefiner | Version::XlInpaint | Version::XlTurbo
        );
        assert_eq!(config.is_xl(), xl, "{version}");
        assert_eq!(
            config.uses_guidance_embedding(),
            version == Version::Lcm,
            "{version}"
        );
        assert_eq!(
            config.vae.scaling_factor,
            if xl { 0.13025 } else { 0.18215 },
            "{version}"
        );
        let v_prediction = config.scheduler.prediction_type == Some(PredictionType::VPrediction);
        assert_eq!(v_prediction, version == Version::V2_1, "{version}");
        assert_eq!(version.name().parse::<Version>().unwrap(), version);
    }
}
