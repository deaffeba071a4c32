//! Every layer against its formula in f64, on both of its paths.

use std::num::NonZeroUsize;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::*;

/// The error that f32 rounding explains.
const TOLERANCE: f64 = 1e-6;

fn random(seed: u32, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let values = (0..shape.iter().product()).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.
    });
    Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, shape: &[usize], expected: &[f64]) {
    assert_eq!(found.dims(), shape);
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (i, (found, expected)) in values(found).iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(
            error <= TOLERANCE,
            "element {i}: {found} is not {expected}, relative error {error:.1e}"
        );
    }
}

fn builder(tensors: &[(&str, &Tensor)], dtype: DType) -> VarBuilder<'static> {
    let tensors = tensors
        .iter()
        .map(|(name, tensor)| (name.to_string(), (*tensor).clone()))
        .collect();
    VarBuilder::from_tensors(tensors, dtype, &Device::Cpu)
}

fn phi(x: f64) -> f64 {
    0.5 * (1. + candle_core::cpu::erf::erf_f64(x / 2f64.sqrt()))
}

/// Rows of `width` shifted and scaled to mean 0 and variance 1.
fn standardised(x: &[f64], width: usize, eps: f64) -> Vec<f64> {
    x.chunks(width)
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / width as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            row.iter()
                .map(move |v| (v - mean) / (variance + eps).sqrt())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn group_norm_is_its_formula_even_far_from_zero() {
    let (weight, bias) = (random(1, &[6]), random(2, &[6]));
    let norm = GroupNorm::new(
        3,
        6,
        1e-5,
        builder(&[("weight", &weight), ("bias", &bias)], DType::F32),
    )
    .unwrap();
    let (weight, bias) = (values(&weight), values(&bias));
    for offset in [0., 8.] {
        let x = (random(3, &[2, 6, 5, 3]) + offset).unwrap();
        let expected: Vec<f64> = standardised(&values(&x), 2 * 5 * 3, 1e-5)
            .iter()
            .enumerate()
            .map(|(i, v)| v * weight[i / 15 % 6] + bias[i / 15 % 6])
            .collect();
        if offset == 0. {
            // Far from 0 the f32 sums of these operations are less exact than the kernel's.
            assert_close(&norm.tensors(&x).unwrap(), x.dims(), &expected);
        }
        assert_close(&norm.forward(&x).unwrap(), x.dims(), &expected);
        let silu: Vec<f64> = expected.iter().map(|v| v / (1. + (-v).exp())).collect();
        assert_close(&norm.forward_silu(&x).unwrap(), x.dims(), &silu);
        // A view that is not contiguous is read in its own order.
        let turned = x.transpose(2, 3).unwrap();
        let back = norm.forward(&turned).unwrap().transpose(2, 3).unwrap();
        assert_close(&back.contiguous().unwrap(), x.dims(), &expected);
    }
}

#[test]
fn layer_norm_is_its_formula_even_far_from_zero() {
    let (weight, bias) = (random(1, &[37]), random(2, &[37]));
    let norm = LayerNorm::new(
        37,
        1e-5,
        builder(&[("weight", &weight), ("bias", &bias)], DType::F32),
    )
    .unwrap();
    let (weight, bias) = (values(&weight), values(&bias));
    for offset in [0., 8.] {
        let x = (random(3, &[2, 7, 37]) + offset).unwrap();
        let expected: Vec<f64> = standardised(&values(&x), 37, 1e-5)
            .iter()
            .enumerate()
            .map(|(i, v)| v * weight[i % 37] + bias[i % 37])
            .collect();
        if offset == 0. {
            // Far from 0 the f32 sums of these operations are less exact than the kernel's.
            assert_close(&norm.tensors(&x).unwrap(), x.dims(), &expected);
        }
        assert_close(&norm.forward(&x).unwrap(), x.dims(), &expected);
    }
}

#[test]
fn activations_are_their_formulas() {
    let x = (random(1, &[3, 50]) * 6.).unwrap();
    let of = |f: &dyn Fn(f64) -> f64| values(&x).into_iter().map(f).collect::<Vec<_>>();
    assert_close(&gelu(&x).unwrap(), &[3, 50], &of(&|v| v * phi(v)));
    assert_close(
        &quick_gelu(&x).unwrap(),
        &[3, 50],
        &of(&|v| v / (1. + (-1.702 * v).exp())),
    );
    let gate = |row: &[f64], i: usize| row[i] * row[i + 25] * phi(row[i + 25]);
    let gated: Vec<f64> = values(&x)
        .chunks(50)
        .flat_map(|row| (0..25).map(|i| gate(row, i)).collect::<Vec<_>>())
        .collect();
    assert_close(&activation::geglu(&x).unwrap(), &[3, 25], &gated);
    assert!(activation::geglu(&random(1, &[2, 3])).is_err());
}

#[test]
fn a_gated_layer_is_the_gate_of_its_rows() {
    let (weight, bias) = (random(1, &[10, 7]), random(2, &[10]));
    let vb = builder(&[("weight", &weight), ("bias", &bias)], DType::F32);
    let linear = Linear::new(7, 10, vb).unwrap();
    let x = random(3, &[2, 3, 7]);
    let rows = values(&linear.forward(&x).unwrap());
    let gated: Vec<f64> = rows
        .chunks(10)
        .flat_map(|row| {
            (0..5)
                .map(|i| row[i] * row[i + 5] * phi(row[i + 5]))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_close(&linear.forward_geglu(&x).unwrap(), &[2, 3, 5], &gated);
    let vb = builder(&[("weight", &weight.narrow(0, 0, 9).unwrap())], DType::F32);
    let odd = Linear::no_bias(7, 9, vb).unwrap();
    assert!(odd.forward_geglu(&x).is_err());
}

/// `softmax(q k^T / sqrt(d)) v` by the definition.
fn attention_by_definition(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Mask,
) -> Vec<f64> {
    let ((b, n, c), m) = (q.dims3().unwrap(), k.dim(1).unwrap());
    let d = c / heads;
    let (q, k, v) = (values(q), values(k), values(v));
    let mut out = vec![0.; q.len()];
    for (b, i, h) in
        (0..b).flat_map(|b| (0..n).flat_map(move |i| (0..heads).map(move |h| (b, i, h))))
    {
        let query = &q[(b * n + i) * c + h * d..][..d];
        let row = |x: &'_ [f64], j: usize| x[(b * m + j) * c + h * d..][..d].to_vec();
        let visible = if mask == Mask::Causal {
            m.min(i + 1)
        } else {
            m
        };
        let score = |j| {
            query
                .iter()
                .zip(row(&k, j))
                .map(|(a, b)| a * b)
                .sum::<f64>()
                / (d as f64).sqrt()
        };
        let scores: Vec<f64> = (0..visible).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for (j, score) in scores.iter().enumerate() {
            let weight = (score - max).exp() / total;
            for (out, v) in out[(b * n + i) * c + h * d..][..d]
                .iter_mut()
                .zip(row(&v, j))
            {
                *out += weight * v;
            }
        }
    }
    out
}

#[test]
fn attention_is_its_definition() {
    for (b, n, m, heads, d) in [
        (1, 0, 3, 2, 4),
        (2, 9, 5, 3, 4),
        (1, 1, 1, 1, 8),
        (3, 4, 7, 2, 5),
        (1, 30, 30, 1, 64),
    ] {
        let q = (random(1, &[b, n, heads * d]) * 3.).unwrap();
        let (k, v) = (random(2, &[b, m, heads * d]), random(3, &[b, m, heads * d]));
        for mask in [Mask::None, Mask::Causal] {
            let expected = attention_by_definition(&q, &k, &v, heads, mask);
            let found = attention(&q, &k, &v, heads, mask, AttentionOptions::default()).unwrap();
            assert_close(&found, q.dims(), &expected);
            // Our kernel is for f32: this is the way of the GPUs.
            let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(DType::F64).unwrap());
            let found = attention(&q, &k, &v, heads, mask, AttentionOptions::default()).unwrap();
            assert_close(&found, q.dims(), &expected);
        }
    }
}

#[test]
fn attention_in_blocks_of_queries_is_its_definition() {
    // Blocks of many queries for few keys, and of fewer for many.
    for (n, m, heads) in [(601, 64, 16), (150, 3000, 2)] {
        let q = (random(1, &[1, n, 8 * heads]) * 3.).unwrap();
        let kv = random(2, &[1, m, 8 * heads]);
        for mask in [Mask::None, Mask::Causal] {
            let expected = attention_by_definition(&q, &kv, &kv, heads, mask);
            let found = attention(&q, &kv, &kv, heads, mask, AttentionOptions::default()).unwrap();
            assert_close(&found, q.dims(), &expected);
        }
    }
}

#[test]
fn slices_of_any_size_attend_alike() {
    let (heads, n, m) = (3, 37, 23);
    let q = (random(1, &[2, n, 8 * heads]) * 3.).unwrap();
    let (k, v) = (random(2, &[2, m, 8 * heads]), random(3, &[2, m, 8 * heads]));
    // Our kernel is for f32, and takes no slices: this is the way of the GPUs.
    let wide = [&q, &k, &v].map(|x| x.to_dtype(DType::F64).unwrap());
    let queries = |count| AttentionSlice::Queries(NonZeroUsize::new(count).unwrap());
    // The scores of a query take 552 bytes.
    let bytes = [0, 1, 551, 552, 553, 5_000, u64::MAX].map(AttentionSlice::Bytes);
    let slices = [1, 2, 5, n - 1, n, n + 1, usize::MAX].map(queries);
    for mask in [Mask::None, Mask::Causal] {
        let expected = attention_by_definition(&q, &k, &v, heads, mask);
        for slice in bytes.into_iter().chain(slices) {
            let options = AttentionOptions {
                slice,
                ..AttentionOptions::default()
            };
            for [q, k, v] in [[&q, &k, &v], wide.each_ref()] {
                let found = attention(q, k, v, heads, mask, options).unwrap();
                assert_close(&found, q.dims(), &expected);
            }
        }
    }
}

#[test]
fn a_slice_has_the_queries_asked_for() {
    let queries = |slice: &str| slice.parse::<AttentionSlice>().unwrap().queries(1 << 20);
    assert_eq!(
        [queries("auto"), queries("64"), queries("1")],
        [1024, 64, 1]
    );
    assert_eq!(AttentionSlice::Bytes(3 << 20).queries(1 << 20), 3);
    for text in ["", "0", "-1", "Auto", "1.5"] {
        assert!(text.parse::<AttentionSlice>().is_err(), "{text}");
    }
}

/// A convolution by its definition: `[batch, inputs, h, w]` with `[outputs, inputs, kernel, kernel]`.
fn conv_by_definition(x: &Tensor, weight: &Tensor, bias: &Tensor, config: ConvConfig) -> Vec<f64> {
    let ConvConfig {
        kernel,
        stride,
        padding,
    } = config;
    let ((batch, inputs, h, w), outputs) = (x.dims4().unwrap(), weight.dim(0).unwrap());
    let steps = |size: usize| (0..(size + 2 * padding - kernel) / stride + 1).map(|i| i * stride);
    let (x, weight, bias) = (values(x), values(weight), values(bias));
    let mut out = Vec::new();
    for (b, o) in (0..batch).flat_map(|b| (0..outputs).map(move |o| (b, o))) {
        for (top, left) in steps(h).flat_map(|top| steps(w).map(move |left| (top, left))) {
            let mut sum = bias[o];
            for (c, i) in (0..inputs).flat_map(|c| (0..kernel * kernel).map(move |i| (c, i))) {
                let (row, column) = (top + i / kernel, left + i % kernel);
                if (padding..h + padding).contains(&row) && (padding..w + padding).contains(&column)
                {
                    let pixel = ((b * inputs + c) * h + row - padding) * w + column - padding;
                    sum += x[pixel] * weight[(o * inputs + c) * kernel * kernel + i];
                }
            }
            out.push(sum);
        }
    }
    out
}

#[test]
fn convolution_is_its_definition() {
    let strided = ConvConfig {
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    for config in [ConvConfig::POINT, ConvConfig::SAME, strided] {
        for dims in [[1, 3, 4, 4], [2, 3, 7, 5], [3, 3, 1, 1]] {
            let (weight, bias) = (
                random(1, &[4, 3, config.kernel, config.kernel]),
                random(2, &[4]),
            );
            let x = random(3, &dims);
            let conv = |dtype| {
                Conv2d::new(
                    3,
                    4,
                    config,
                    builder(&[("weight", &weight), ("bias", &bias)], dtype),
                )
            };
            let side = |size: usize| size.div_ceil(config.stride);
            let shape = [dims[0], 4, side(dims[2]), side(dims[3])];
            let expected = conv_by_definition(&x, &weight, &bias, config);
            assert_close(
                &conv(DType::F32).unwrap().forward(&x).unwrap(),
                &shape,
                &expected,
            );
            for dtype in [DType::F16, DType::BF16] {
                let stored = |p: &Tensor| p.to_dtype(dtype).unwrap();
                // Products of bf16 have both factors rounded.
                let x = match dtype {
                    DType::BF16 => stored(&x),
                    _ => x.clone(),
                };
                let expected = conv_by_definition(&x, &stored(&weight), &stored(&bias), config);
                let x = x.to_dtype(DType::F32).unwrap();
                assert_close(
                    &conv(dtype).unwrap().forward(&x).unwrap(),
                    &shape,
                    &expected,
                );
            }
        }
    }
}

#[test]
fn linear_is_its_definition() {
    let (weight, bias) = (random(1, &[5, 7]), random(2, &[5]));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let linear = Linear::new(
            7,
            5,
            builder(&[("weight", &weight), ("bias", &bias)], dtype),
        )
        .unwrap();
        let stored = |p: &Tensor| values(&p.to_dtype(dtype).unwrap());
        let (weight, bias) = (stored(&weight), stored(&bias));
        for dims in [&[1, 7][..], &[3, 7], &[2, 6, 7], &[2, 3, 4, 7]] {
            // Products of bf16 have both factors rounded.
            let x = match dtype {
                DType::BF16 => random(3, dims).to_dtype(dtype).unwrap(),
                _ => random(3, dims),
            };
            let x = x.to_dtype(DType::F32).unwrap();
            let expected: Vec<f64> = values(&x)
                .chunks(7)
                .flat_map(|x| {
                    let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                    weight
                        .chunks(7)
                        .zip(&bias)
                        .map(|(w, b)| dot(w) + b)
                        .collect::<Vec<_>>()
                })
                .collect();
            let shape = [&dims[..dims.len() - 1], &[5]].concat();
            assert_close(&linear.forward(&x).unwrap(), &shape, &expected);
        }
    }
}

#[test]
fn a_linear_layer_stored_as_a_convolution_is_the_same_layer() {
    let (weight, bias, x) = (random(1, &[5, 7]), random(2, &[5]), random(3, &[2, 4, 7]));
    let plain = Linear::new(
        7,
        5,
        builder(&[("weight", &weight), ("bias", &bias)], DType::F32),
    )
    .unwrap();
    let weight = weight.reshape((5, 7, 1, 1)).unwrap();
    let stored = Linear::from_conv(
        7,
        5,
        builder(&[("weight", &weight), ("bias", &bias)], DType::F32),
    )
    .unwrap();
    assert_close(
        &stored.forward(&x).unwrap(),
        &[2, 4, 5],
        &values(&plain.forward(&x).unwrap()),
    );
}

#[test]
fn resampling_meets_the_sizes_of_diffusers() {
    let (weight, bias) = (random(1, &[2, 2, 3, 3]), random(2, &[2]));
    let vb = || {
        builder(
            &[("conv.weight", &weight), ("conv.bias", &bias)],
            DType::F32,
        )
    };
    let x = random(3, &[1, 2, 5, 4]);
    let size = |y: Tensor| y.dims()[2..].to_vec();
    let down = |padding| {
        Downsample::new(2, padding, vb())
            .unwrap()
            .forward(&x)
            .unwrap()
    };
    assert_eq!(size(down(1)), [3, 2]);
    // Zeros below and to the right, none above and to the left.
    let padded = x
        .pad_with_zeros(2, 0, 1)
        .unwrap()
        .pad_with_zeros(3, 0, 1)
        .unwrap();
    let config = ConvConfig {
        kernel: 3,
        stride: 2,
        padding: 0,
    };
    assert_close(
        &down(0),
        &[1, 2, 2, 2],
        &conv_by_definition(&padded, &weight, &bias, config),
    );

    let up = Upsample::new(2, vb()).unwrap();
    assert_eq!(size(up.forward(x.clone(), None).unwrap()), [10, 8]);
    let nearest = |size: usize, from: usize| {
        (0..size as u32)
            .map(|i| i * from as u32 / size as u32)
            .collect::<Vec<_>>()
    };
    let index = |size, from| Tensor::new(nearest(size, from), &Device::Cpu).unwrap();
    let repeated = x
        .index_select(&index(9, 5), 2)
        .unwrap()
        .index_select(&index(7, 4), 3)
        .unwrap();
    let expected = conv_by_definition(&repeated, &weight, &bias, ConvConfig::SAME);
    assert_close(
        &up.forward(x.clone(), Some((9, 7))).unwrap(),
        &[1, 2, 9, 7],
        &expected,
    );
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (w4, w, x) = (
        random(1, &[4, 3, 3, 3]),
        random(1, &[4, 3]),
        random(1, &[1, 5, 2]),
    );
    let (four, three) = (random(1, &[4]), random(2, &[3]));
    let conv = |config| {
        Conv2d::new(
            3,
            4,
            config,
            builder(&[("weight", &w4), ("bias", &four)], DType::F32),
        )
    };
    let bare = ConvConfig {
        kernel: 3,
        stride: 1,
        padding: 0,
    };
    assert!(
        conv(bare)
            .unwrap()
            .forward(&random(1, &[1, 3, 2, 9]))
            .is_err()
    );
    assert!(
        conv(bare)
            .unwrap()
            .forward(&random(1, &[1, 4, 9, 9]))
            .is_err()
    );
    assert!(conv(bare).unwrap().forward(&random(1, &[3, 9, 9])).is_err());
    let linear = Linear::new(
        3,
        4,
        builder(&[("weight", &w), ("bias", &four)], DType::F32),
    )
    .unwrap();
    assert!(linear.forward(&x).is_err());
    assert!(linear.forward(&random(1, &[])).is_err());
    let norm = |groups| {
        GroupNorm::new(
            groups,
            3,
            1e-5,
            builder(&[("weight", &three), ("bias", &three)], DType::F32),
        )
    };
    assert!(norm(2).is_err() && norm(0).is_err());
    assert!(norm(3).unwrap().forward(&x).is_err());
    assert!(norm(3).unwrap().forward(&random(1, &[1, 3])).is_err());
    let layer = LayerNorm::new(
        3,
        1e-5,
        builder(&[("weight", &three), ("bias", &three)], DType::F32),
    )
    .unwrap();
    assert!(layer.forward(&x).is_err());
    for (k, v, heads) in [
        ([1, 5, 3], [1, 5, 3], 1),
        ([1, 5, 2], [1, 4, 2], 1),
        ([2, 5, 2], [2, 5, 2], 1),
        ([1, 5, 2], [1, 5, 2], 3),
    ] {
        let (k, v) = (random(1, &k), random(1, &v));
        let options = AttentionOptions::default();
        assert!(attention(&x, &k, &v, heads, Mask::None, options).is_err());
    }
}

#[test]
fn folding_norms_and_residuals_into_convolutions_changes_no_bit() {
    let dims = [2, 64, 9, 7];
    let (x, time) = (random(1, &dims), random(2, &[2, 24]));
    for outputs in [64, 96] {
        let shapes: [(&str, &[usize]); 12] = [
            ("norm1.weight", &[64]),
            ("norm1.bias", &[64]),
            ("conv1.weight", &[outputs, 64, 3, 3]),
            ("conv1.bias", &[outputs]),
            ("time_emb_proj.weight", &[outputs, 24]),
            ("time_emb_proj.bias", &[outputs]),
            ("norm2.weight", &[outputs]),
            ("norm2.bias", &[outputs]),
            ("conv2.weight", &[outputs, outputs, 3, 3]),
            ("conv2.bias", &[outputs]),
            ("conv_shortcut.weight", &[outputs, 64, 1, 1]),
            ("conv_shortcut.bias", &[outputs]),
        ];
        let tensors: Vec<_> = (3..)
            .zip(shapes)
            .map(|(seed, (name, shape))| (name, random(seed, shape)))
            .collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, t)| (*name, t)).collect();
        let vb = builder(&tensors, DType::BF16);
        let block = ResnetBlock::new(64, outputs, Some(24), (8, 1e-5), vb.clone()).unwrap();

        let norm = |name, channels| GroupNorm::new(8, channels, 1e-5, vb.pp(name)).unwrap();
        let conv =
            |name, inputs, config| Conv2d::new(inputs, outputs, config, vb.pp(name)).unwrap();
        let shift = Linear::new(24, outputs, vb.pp("time_emb_proj")).unwrap();
        let shift = shift.forward(&time).unwrap();
        let h = norm("norm1", 64).forward_silu(&x).unwrap();
        let h = conv("conv1", 64, ConvConfig::SAME)
            .forward_shifted(&h, &shift)
            .unwrap();
        let h = norm("norm2", outputs).forward_silu(&h).unwrap();
        let h = conv("conv2", outputs, ConvConfig::SAME)
            .forward(&h)
            .unwrap();
        let beside = match outputs {
            64 => x.clone(),
            _ => conv("conv_shortcut", 64, ConvConfig::POINT)
                .forward(&x)
                .unwrap(),
        };
        let expected = values(&(h + beside).unwrap());
        assert_eq!(values(&block.forward(&x, Some(&time)).unwrap()), expected);
        let owned = x.copy().unwrap();
        let found = block.forward_owned(owned, Some(&time)).unwrap();
        assert_eq!(values(&found), expected);
    }
}
