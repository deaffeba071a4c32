//! Operators in the sizes of Stable Diffusion 1.5, ours beside Candle's: `cargo bench -p sd-bench --bench ops`.
//!
//! Names read `operator/layer-implementation/shape/dtype`.

use std::time::Duration;

use candle_core::{D, Module, Result, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};
use sd_bench::input;
use sd_ops::{ConvWeight, LinearWeight, Window, attention, bf16, conv2d, linear, linear_geglu};

/// Layer, input `[batch, channels, height, width]`, output channels, side of the kernel, stride.
type Convolution = (&'static str, [usize; 4], usize, usize, usize);

/// The UNet's resolutions for 512 pixels with guidance, and the autoencoder's at half of the side or less.
const CONVOLUTIONS: &[Convolution] = &[
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

/// Rows of both samples, inputs and outputs; the gated layers have twice as many.
const LAYERS: &[[usize; 3]] = &[
    [4096, 320, 320],
    [4096, 1280, 320],
    [1024, 640, 640],
    [256, 5120, 1280],
    [77, 768, 768],
];
const GATED_LAYERS: &[[usize; 3]] = &[[4096, 320, 1280], [1024, 640, 2560], [256, 1280, 5120]];

/// Queries, keys and channels of each of eight heads.
const ATTENTIONS: &[[usize; 3]] = &[[4096, 4096, 40], [4096, 77, 40], [1024, 1024, 80]];

fn convolutions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv");
    for &(layer, shape, outputs, kernel, stride) in CONVOLUTIONS {
        let x = input(shape.to_vec()).unwrap();
        let weight = input((outputs, shape[1], kernel, kernel)).unwrap();
        let bias = input(outputs).unwrap();
        let padding = kernel / 2;
        let sides = shape.map(|side| side.to_string()).join("x");
        let window = Window { stride, padding };
        group.bench_function(format!("{layer}-ours/{sides}/f32"), |bencher| {
            let weight = ConvWeight::new(&weight).unwrap();
            bencher.iter(|| conv2d(&x, &weight, Some(&bias), window).unwrap());
        });
        group.bench_function(format!("{layer}-ours/{sides}/bf16"), |bencher| {
            let weight = bf16::Weight::new(&weight).unwrap();
            bencher.iter(|| bf16::conv2d(&x, &weight, Some(&bias), window).unwrap());
        });
        group.bench_function(format!("{layer}-candle/{sides}/f32"), |bencher| {
            bencher.iter(|| {
                let y = x.conv2d(&weight, padding, stride, 1, 1).unwrap();
                let bias = bias.reshape((1, outputs, 1, 1)).unwrap();
                y.broadcast_add(&bias).unwrap()
            });
        });
    }
    group.finish();
}

fn layers(criterion: &mut Criterion) {
    let plain = |x: &Tensor, weight: &Tensor, bias: &Tensor| -> Result<Tensor> {
        candle_nn::Linear::new(weight.clone(), Some(bias.clone())).forward(x)
    };
    let gated = |x: &Tensor, weight: &Tensor, bias: &Tensor| -> Result<Tensor> {
        let halves = plain(x, weight, bias)?.chunk(2, D::Minus1)?;
        &halves[0] * halves[1].contiguous()?.gelu_erf()?
    };
    let mut group = criterion.benchmark_group("linear");
    let cases = LAYERS.iter().map(|layer| (false, *layer));
    for (is_gated, [rows, inputs, outputs]) in cases.chain(GATED_LAYERS.iter().map(|l| (true, *l)))
    {
        let name = if is_gated { "geglu" } else { "plain" };
        let weights = if is_gated { 2 * outputs } else { outputs };
        let x = input((2, rows, inputs)).unwrap();
        // As small as trained ones: gates far from 0 take other branches.
        let weight = (input((weights, inputs)).unwrap() / (inputs as f64).sqrt()).unwrap();
        let bias = input(weights).unwrap();
        let shape = format!("2x{rows}x{inputs}-{outputs}");
        group.bench_function(format!("{name}-ours/{shape}/f32"), |bencher| {
            if is_gated {
                let weight = LinearWeight::gated(&weight).unwrap();
                bencher.iter(|| linear_geglu(&x, &weight, Some(&bias)).unwrap());
            } else {
                let weight = LinearWeight::new(&weight).unwrap();
                bencher.iter(|| linear(&x, &weight, Some(&bias)).unwrap());
            }
        });
        group.bench_function(format!("{name}-ours/{shape}/bf16"), |bencher| {
            if is_gated {
                let weight = bf16::Weight::gated(&weight).unwrap();
                bencher.iter(|| bf16::linear_geglu(&x, &weight, Some(&bias)).unwrap());
            } else {
                let weight = bf16::Weight::new(&weight).unwrap();
                bencher.iter(|| bf16::linear(&x, &weight, Some(&bias)).unwrap());
            }
        });
        group.bench_function(format!("{name}-candle/{shape}/f32"), |bencher| {
            bencher.iter(|| match is_gated {
                true => gated(&x, &weight, &bias).unwrap(),
                false => plain(&x, &weight, &bias).unwrap(),
            });
        });
    }
    group.finish();
}

fn attentions(criterion: &mut Criterion) {
    const HEADS: usize = 8;
    let baseline = |q: &Tensor, k: &Tensor, v: &Tensor| -> Result<Tensor> {
        let split = |x: &Tensor| -> Result<Tensor> {
            let (batch, rows, channels) = x.dims3()?;
            x.reshape((batch, rows, HEADS, channels / HEADS))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (q, k, v) = (split(q)?, split(k)?, split(v)?);
        let scale = (q.dim(D::Minus1)? as f64).sqrt().recip();
        let scores = (q.matmul(&k.t()?)? * scale)?;
        let out = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        out.transpose(1, 2)?.flatten_from(2)
    };
    let mut group = criterion.benchmark_group("attention");
    for &[queries, keys, head] in ATTENTIONS {
        let q = input((2, queries, HEADS * head)).unwrap();
        let [k, v] = [1, 2].map(|_| input((2, keys, HEADS * head)).unwrap());
        let shape = format!("2x{HEADS}x{queries}x{keys}x{head}");
        group.bench_function(format!("unet-ours/{shape}/f32"), |bencher| {
            bencher.iter(|| attention(&q, &k, &v, HEADS, false).unwrap());
        });
        group.bench_function(format!("unet-ours/{shape}/bf16"), |bencher| {
            bencher.iter(|| bf16::attention(&q, &k, &v, HEADS, false).unwrap());
        });
        group.bench_function(format!("unet-candle/{shape}/f32"), |bencher| {
            bencher.iter(|| baseline(&q, &k, &v).unwrap());
        });
    }
    group.finish();
}

fn norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("group_norm_silu");
    for (layer, shape) in [("unet", [2, 320, 64, 64]), ("vae", [1, 256, 256, 256])] {
        let x = input(shape.to_vec()).unwrap();
        let [weight, bias] = [1, 2].map(|_| input(shape[1]).unwrap());
        let sides = shape.map(|side: usize| side.to_string()).join("x");
        let (groups, eps) = (32, 1e-5);
        group.bench_function(format!("{layer}-ours/{sides}/f32"), |bencher| {
            let norm = sd_ops::GroupNorm {
                groups,
                eps,
                silu: true,
            };
            bencher.iter(|| norm.forward(&x, &weight, &bias).unwrap());
        });
        group.bench_function(format!("{layer}-candle/{sides}/f32"), |bencher| {
            let norm =
                candle_nn::GroupNorm::new(weight.clone(), bias.clone(), shape[1], groups, eps)
                    .unwrap();
            bencher.iter(|| norm.forward(&x).unwrap().silu().unwrap());
        });
    }
    group.finish();
}

criterion_group! {
    name = operators;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500));
    targets = convolutions, layers, attentions, norms
}
criterion_main!(operators);
