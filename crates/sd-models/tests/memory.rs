//! What is predicted of a model's memory, against an allocator that counts.

mod common;
mod support;

use std::sync::Mutex;

use candle_core::{DType, Device};
use peak_alloc::PeakAlloc;
use sd_config::{ModelConfig, PerBlock, UnetConfig, VaeConfig, Version};
use sd_models::nn::AttentionSlice;
use sd_models::unet::{Added, Unet, UnetInput};
use sd_models::vae::AutoencoderKl;
use sd_models::{LoadOptions, ModelMemory, ModelSource, load};
use support::{random, random_weights};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// One measurement at a time: the counters are those of the process.
static TURN: Mutex<()> = Mutex::new(());

/// The most bytes that `f` holds at a time beside what was there before.
fn peak<T>(f: impl FnOnce() -> T) -> u64 {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    drop(f());
    (ALLOCATOR.peak_usage() - before) as u64
}

/// The networks take a little for names and shapes, and the matrix products for their blocks.
fn assert_close(what: &str, predicted: u64, measured: u64) {
    let ratio = predicted as f64 / measured as f64;
    assert!(
        (0.9..=1.1).contains(&ratio),
        "{what}: {predicted} bytes predicted, {measured} measured: {ratio:.3}"
    );
}

/// The layout of a published model, with fewer channels.
fn narrow(version: Version) -> ModelConfig {
    let mut model = ModelConfig::preset(version);
    for channels in &mut model.unet.block_out_channels {
        *channels /= 5;
    }
    model.unet.attention_head_dim = PerBlock::Same(4);
    for channels in &mut model.vae.block_out_channels {
        *channels /= 4;
    }
    model
}

fn unet_peak(
    config: &UnetConfig,
    dtype: DType,
    samples: usize,
    [height, width]: [usize; 2],
) -> u64 {
    let unet = Unet::new(random_weights(dtype), config).unwrap();
    let sample = random(1, &[samples, config.in_channels, height, width]);
    let text = random(2, &[samples, 77, config.cross_attention_dim.get(0)]);
    let timesteps = vec![500.; samples];
    let (text_embeds, time_ids) = (random(3, &[samples, 1280]), random(4, &[samples, 6]));
    let added = config.addition_embed_type.is_some().then_some(Added {
        text_embeds: &text_embeds,
        time_ids: &time_ids,
    });
    let input = UnetInput {
        added,
        ..UnetInput::new(&sample, &timesteps, &text)
    };
    // The first call also sets up the threads' buffers.
    unet.forward(&input).unwrap();
    peak(|| unet.forward(&input).unwrap())
}

#[test]
fn the_memory_of_a_unet_call_is_predicted() {
    let _turn = TURN.lock();
    for (version, dtype, samples, size) in [
        (Version::V1_5, DType::F32, 2, [32, 40]),
        (Version::V1_5, DType::F16, 1, [36, 36]),
        (Version::V1_5, DType::BF16, 2, [48, 64]),
        (Version::Xl, DType::F32, 2, [40, 32]),
        (Version::Xl, DType::F16, 4, [16, 24]),
        (Version::Xl, DType::BF16, 2, [40, 32]),
    ] {
        let config = narrow(version);
        let memory = ModelMemory::new(&config, dtype, &Device::Cpu).unwrap();
        let measured = unet_peak(&config.unet, dtype, samples, size);
        let what = format!("{version} {dtype:?} {samples} {size:?}");
        assert_close(&what, memory.unet(samples, size, 77), measured);
    }
}

#[test]
fn the_memory_of_the_autoencoder_is_predicted() {
    let _turn = TURN.lock();
    let config = VaeConfig {
        // Tiles of 8 latents.
        sample_size: 64,
        ..narrow(Version::V1_5).vae
    };
    let model = ModelConfig {
        vae: config.clone(),
        ..narrow(Version::V1_5)
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let memory = ModelMemory::new(&model, dtype, &Device::Cpu).unwrap();
        let vae = AutoencoderKl::new(random_weights(dtype), &config).unwrap();
        for [height, width] in [[12, 16], [8, 8], [5, 25]] {
            let latents = random(1, &[1, 4, height, width]);
            let image = random(2, &[1, 3, 8 * height, 8 * width]);
            let what = |way| format!("{dtype:?} {height}x{width} {way}");
            vae.decode_tiled(&latents).unwrap();

            let (size, pixels) = ([height, width], [8 * height, 8 * width]);
            let measured = peak(|| vae.decode(&latents).unwrap());
            assert_close(&what("decoded"), memory.decode(size, false), measured);
            let measured = peak(|| vae.encode(&image).unwrap());
            assert_close(&what("encoded"), memory.encode(pixels, false), measured);
            let measured = peak(|| vae.decode_tiled(&latents).unwrap());
            assert_close(
                &what("decoded in tiles"),
                memory.decode(size, true),
                measured,
            );
            let measured = peak(|| vae.encode_tiled(&image).unwrap());
            assert_close(
                &what("encoded in tiles"),
                memory.encode(pixels, true),
                measured,
            );
        }
    }
}

#[test]
fn a_model_takes_its_weights_and_while_it_loads_little_else() {
    let _turn = TURN.lock();
    let source = ModelSource::Dir(common::golden("models/sd15"));
    // The first one sets up what the process keeps.
    load(&source, &LoadOptions::default()).unwrap();
    let [wide, narrow] = [DType::F32, DType::F16].map(|dtype| {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::default()
        };
        let before = ALLOCATOR.current_usage();
        let mut model = None;
        let peak = peak(|| model = Some(load(&source, &options).unwrap()));
        let held = (ALLOCATOR.current_usage() - before) as u64;
        let config = &model.unwrap().config;
        let weights = ModelMemory::new(config, dtype, &Device::Cpu).unwrap();
        // Each network's largest tensor, as it was read and as it is kept, and what the tokenizer's files take.
        assert!(
            peak < held + 2_000_000,
            "{dtype:?}: {peak} bytes at the peak of {held}"
        );
        (weights.weights(), held)
    });
    // The tokenizer is the same.
    assert_close("weights", wide.0 - narrow.0, wide.1 - narrow.1);
}

#[test]
fn a_smaller_slice_takes_less_on_a_gpu_alone() {
    let _turn = TURN.lock();
    let config = ModelConfig::preset(Version::V1_5);
    let mut memory = ModelMemory::new(&config, DType::F16, &Device::Cpu).unwrap();
    let whole = memory.unet(2, [64, 64], 77);
    memory.set_attention_slice(AttentionSlice::Bytes(0));
    assert_eq!(memory.unet(2, [64, 64], 77), whole);
}

#[test]
fn more_never_takes_less() {
    let _turn = TURN.lock();
    for version in Version::ALL {
        let config = ModelConfig::preset(version);
        let memory = ModelMemory::new(&config, DType::F32, &Device::Cpu).unwrap();
        let sides = [
            1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 256, 1000, 1024,
        ];
        for pair in sides.windows(2) {
            let ([a, b], what) = ([pair[0], pair[1]], format!("{version} {pair:?}"));
            assert!(
                memory.unet(2, [a, 64], 77) <= memory.unet(2, [b, 64], 77),
                "{what}"
            );
            assert!(
                memory.unet(2, [64, a], 77) <= memory.unet(2, [64, b], 77),
                "{what}"
            );
            assert!(
                memory.unet(a, [16, 16], 77) <= memory.unet(b, [16, 16], 77),
                "{what}"
            );
            for tiled in [false, true] {
                assert!(
                    memory.decode([a, 64], tiled) <= memory.decode([b, 64], tiled),
                    "{what}"
                );
                assert!(
                    memory.decode([64, a], tiled) <= memory.decode([64, b], tiled),
                    "{what}"
                );
                let [a, b] = [8 * a, 8 * b];
                assert!(
                    memory.encode([a, 512], tiled) <= memory.encode([b, 512], tiled),
                    "{what}"
                );
            }
        }
        assert!(memory.decode([1024, 1024], true) < memory.decode([1024, 1024], false));
        assert!(memory.decode([usize::MAX / 16, 1024], false) > u64::MAX / 64);
    }
}
