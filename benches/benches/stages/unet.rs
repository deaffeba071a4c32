//! One UNet call for one picture with guidance: a batch of two.

use criterion::Criterion;
use sd_bench::{Case, baseline_unet, input, weights};
use sd_models::unet::{Unet, UnetInput};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unet");
    for Case { name, config } in Case::all() {
        let factor = config.vae.factor();
        let (height, width) = (
            config.defaults.height / factor,
            config.defaults.width / factor,
        );
        let sample = input((2, config.unet.in_channels, height, width)).unwrap();
        let context = input((2, 77, config.unet.cross_attention_dim.get(0))).unwrap();
        let shape = format!("2x{}x{height}x{width}/f32", config.unet.in_channels);

        // Built inside its closure and dropped after it: two full-size networks are too much for many machines.
        group.bench_function(format!("{name}-ours/{shape}"), |bencher| {
            let unet = Unet::new(weights(), &config.unet).unwrap();
            let input = UnetInput::new(&sample, &[500.0, 500.0], &context);
            bencher.iter(|| unet.forward(&input).unwrap());
        });
        group.bench_function(format!("{name}-candle/{shape}"), |bencher| {
            let unet = baseline_unet(&config.unet).unwrap();
            bencher.iter(|| unet.forward(&sample, 500.0, &context).unwrap());
        });
    }
    group.finish();
}
