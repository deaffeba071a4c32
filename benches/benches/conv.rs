//! Convolutions of Stable Diffusion 1.5, ours beside Candle's: `cargo bench -p sd-bench --bench conv`.
//!
//! Names read `conv/layer-implementation/shape/dtype`: the shape is batch, input channels and the two sides.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use sd_bench::input;
use sd_ops::{Window, conv2d};

/// Layer, input `[batch, channels, height, width]`, output channels, side of the kernel, stride.
type Case = (&'static str, [usize; 4], usize, usize, usize);

/// The UNet's resolutions for 512 pixels with guidance, and the autoencoder's at half of the side or less.
const CASES: &[Case] = &[
    ("unet", [2, 320, 64, 64], 320, 3, 1),
    ("unet", [2, 640, 32, 32], 640, 3, 1),
    ("unet", [2, 1280, 16, 16], 1280, 3, 1),
    ("unet", [2, 1280, 8, 8], 1280, 3, 1),
    ("unet_in", [2, 4, 64, 64], 320, 3, 1),
    ("unet_out", [2, 320, 64, 64], 4, 3, 1),
    ("unet_down", [2, 320, 64, 64], 320, 3, 2),
    ("unet_shortcut", [2, 640, 64, 64], 320, 1, 1),
    ("vae", [1, 512, 64, 64], 512, 3, 1),
    ("vae", [1, 256, 256, 256], 256, 3, 1),
    ("vae_out", [1, 128, 256, 256], 3, 3, 1),
];

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv");
    for &(layer, shape, outputs, kernel, stride) in CASES {
        let x = input(shape.to_vec()).unwrap();
        let weight = input((outputs, shape[1], kernel, kernel)).unwrap();
        let bias = input(outputs).unwrap();
        let padding = kernel / 2;
        let sides = shape.map(|side| side.to_string()).join("x");
        group.bench_function(format!("{layer}-ours/{sides}/f32"), |bencher| {
            bencher.iter(|| conv2d(&x, &weight, Some(&bias), Window { stride, padding }).unwrap());
        });
        group.bench_function(format!("{layer}-candle/{sides}/f32"), |bencher| {
            bencher.iter(|| {
                let y = x.conv2d(&weight, padding, stride, 1, 1).unwrap();
                let bias = bias.reshape((1, outputs, 1, 1)).unwrap();
                y.broadcast_add(&bias).unwrap()
            });
        });
    }
}

criterion_group! {
    name = convolutions;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(convolutions);
