//! The autoencoder, one picture.

use criterion::Criterion;
use sd_bench::{Case, baseline_vae, input, weights};
use sd_config::TinyVaeConfig;
use sd_models::vae::{AutoencoderKl, TinyDecoder};

pub(crate) fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vae_decode");
    for Case { name, config } in Case::all() {
        let factor = config.vae.factor();
        let (height, width) = (
            config.defaults.height / factor,
            config.defaults.width / factor,
        );
        let latents = input((1, config.vae.latent_channels, height, width)).unwrap();
        let shape = format!("1x{}x{height}x{width}/f32", config.vae.latent_channels);
        group.bench_function(format!("{name}-ours/{shape}"), |bencher| {
            let vae = AutoencoderKl::new(weights(), &config.vae).unwrap();
            bencher.iter(|| vae.decode(&latents).unwrap());
        });
        group.bench_function(format!("{name}-candle/{shape}"), |bencher| {
            let vae = baseline_vae(&config.vae).unwrap();
            bencher.iter(|| vae.decode(&latents).unwrap());
        });
        // For previews: of TAESD's size whatever the model's is.
        group.bench_function(format!("{name}-tiny/{shape}"), |bencher| {
            let vae = TinyDecoder::new(weights(), &TinyVaeConfig::default()).unwrap();
            bencher.iter(|| vae.decode(&latents).unwrap());
        });
    }
    group.finish();
}

pub(crate) fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vae_encode");
    for Case { name, config } in Case::all() {
        let (height, width) = (config.defaults.height, config.defaults.width);
        let image = input((1, config.vae.in_channels, height, width)).unwrap();
        let shape = format!("1x{}x{height}x{width}/f32", config.vae.in_channels);
        group.bench_function(format!("{name}-ours/{shape}"), |bencher| {
            let vae = AutoencoderKl::new(weights(), &config.vae).unwrap();
            bencher.iter(|| vae.encode(&image).unwrap());
        });
        group.bench_function(format!("{name}-candle/{shape}"), |bencher| {
            let vae = baseline_vae(&config.vae).unwrap();
            bencher.iter(|| vae.encode(&image).unwrap());
        });
    }
    group.finish();
}
