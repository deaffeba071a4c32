//! A sample's result has the same bits whatever its batch mates are and however many threads compute it.

mod common;
mod support;

use std::path::Path;
use std::process::Command;

use candle_core::{DType, Tensor};
use sd_config::{
    AdditionEmbedType, DecoderBlockType, DownBlockType, EncoderBlockType, PerBlock, UnetConfig,
    UpBlockType, VaeConfig,
};
use sd_models::unet::{Added, Unet, UnetInput};
use sd_models::vae::AutoencoderKl;
use support::{bits, random, random_weights};

/// Big enough that matrix products, convolutions and element-wise operations are split among threads.
fn unet() -> Unet {
    let config = UnetConfig {
        down_block_types: vec![
            DownBlockType::CrossAttnDownBlock2D,
            DownBlockType::CrossAttnDownBlock2D,
        ],
        up_block_types: vec![
            UpBlockType::CrossAttnUpBlock2D,
            UpBlockType::CrossAttnUpBlock2D,
        ],
        block_out_channels: vec![96, 160],
        layers_per_block: PerBlock::Same(1),
        attention_head_dim: PerBlock::Same(4),
        cross_attention_dim: PerBlock::Same(48),
        addition_embed_type: Some(AdditionEmbedType::TextTime),
        addition_time_embed_dim: Some(16),
        projection_class_embeddings_input_dim: Some(6 * 16 + 24),
        ..UnetConfig::default()
    };
    Unet::new(random_weights(DType::F32), &config).unwrap()
}

fn vae() -> AutoencoderKl {
    let config = VaeConfig {
        block_out_channels: vec![32, 96],
        down_block_types: vec![EncoderBlockType::DownEncoderBlock2D; 2],
        up_block_types: vec![DecoderBlockType::UpDecoderBlock2D; 2],
        ..VaeConfig::default()
    };
    AutoencoderKl::new(random_weights(DType::F32), &config).unwrap()
}

/// The UNet on samples `first..first + count` of an endless batch: of `height` x 24 latents.
fn denoise(unet: &Unet, first: usize, count: usize, height: usize) -> Vec<Tensor> {
    let rows = |seed: usize, shape: &[usize]| {
        let row = |i| random((100 * seed + first + i) as u64, &[&[1], shape].concat());
        Tensor::cat(&(0..count).map(row).collect::<Vec<_>>(), 0).unwrap()
    };
    let (sample, text) = (rows(1, &[4, height, 24]), rows(2, &[77, 48]));
    let (text_embeds, time_ids) = (rows(3, &[24]), (rows(4, &[6]) * 500.).unwrap());
    let timesteps: Vec<f64> = (0..count)
        .map(|i| 901. - 123.25 * (first + i) as f64)
        .collect();
    let added = Some(Added {
        text_embeds: &text_embeds,
        time_ids: &time_ids,
    });
    let out = unet
        .forward(&UnetInput {
            added,
            ..UnetInput::new(&sample, &timesteps, &text)
        })
        .unwrap();
    (0..count).map(|i| out.get(i).unwrap()).collect()
}

#[test]
fn batch_mates_do_not_change_a_sample() {
    let unet = unet();
    // One pixel turns every product of the deepest block into one of a matrix with a vector.
    for height in [24, 9, 1] {
        let together = denoise(&unet, 0, 3, height);
        for (i, sample) in together.iter().enumerate() {
            let alone = denoise(&unet, i, 1, height);
            assert_eq!(
                bits(sample),
                bits(&alone[0]),
                "sample {i} of height {height}"
            );
        }
        let pair = denoise(&unet, 1, 2, height);
        assert_eq!(
            bits(&together[2]),
            bits(&pair[1]),
            "sample 2 of height {height}"
        );
    }
    let vae = vae();
    let (images, latents) = (random(1, &[3, 3, 48, 40]), random(2, &[3, 4, 24, 20]));
    let (encoded, decoded) = (
        vae.encode(&images).unwrap().mode().unwrap(),
        vae.decode(&latents).unwrap(),
    );
    for i in 0..3 {
        let alone = vae
            .encode(&images.narrow(0, i, 1).unwrap())
            .unwrap()
            .mode()
            .unwrap();
        assert_eq!(
            bits(&encoded.get(i).unwrap()),
            bits(&alone),
            "encoding of picture {i}"
        );
        let alone = vae.decode(&latents.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(
            bits(&decoded.get(i).unwrap()),
            bits(&alone),
            "decoding of picture {i}"
        );
    }
}

/// Set for the processes that [`threads_do_not_change_a_sample`] starts: the file for the bits.
const RESULT: &str = "SD_MODELS_TEST_RESULT";

#[test]
fn threads_do_not_change_a_sample() {
    if let Some(path) = std::env::var_os(RESULT) {
        return write_results(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |threads: usize| {
        let path = folder.path().join(threads.to_string());
        // The number of threads is read once in a process' life.
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "threads_do_not_change_a_sample", "--quiet"])
            .env(RESULT, &path)
            .env("RAYON_NUM_THREADS", threads.to_string())
            .status();
        assert!(status.unwrap().success());
        std::fs::read(path).unwrap()
    };
    let single = run(1);
    assert!(single.len() > 10_000);
    for threads in [2, 3, 7] {
        assert!(
            run(threads) == single,
            "{threads} threads give other bits than one"
        );
    }
}

fn write_results(path: &Path) {
    let vae = vae();
    let mut results = denoise(&unet(), 0, 2, 24);
    results.push(
        vae.encode(&random(1, &[1, 3, 96, 80]))
            .unwrap()
            .mode()
            .unwrap(),
    );
    results.push(vae.decode(&random(2, &[1, 4, 48, 40])).unwrap());
    let bytes: Vec<u8> = results
        .iter()
        .flat_map(bits)
        .flat_map(u32::to_le_bytes)
        .collect();
    std::fs::write(path, bytes).unwrap();
}
