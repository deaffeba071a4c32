//! Attention, linear layers and norms against their definitions in f64.

mod common;

use candle_core::{DType, Result, Tensor, cpu::erf::erf_f64};
use common::{ATTENTIONS, LAYERS, bits, on_threads, random, values};
use proptest::prelude::*;
use sd_ops::{
    GroupNorm, LinearWeight, add_in_place, attention, concat, gelu, layer_norm, quick_gelu,
    tensor_from_bytes, transpose,
};

/// Largest error, relative to the largest result.
const TOLERANCE: f64 = 1e-6;

/// The largest difference over the largest expected value.
#[track_caller]
fn assert_close(found: &Tensor, shape: &[usize], expected: &[f64]) {
    assert_eq!(found.dims(), shape);
    let largest = expected
        .iter()
        .fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    for (found, expected) in values(found).iter().zip(expected) {
        let error = (found - expected).abs() / largest;
        assert!(
            error <= TOLERANCE,
            "{found} is not {expected}: off by {error:.1e}"
        );
    }
}

fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    sd_ops::linear(x, &LinearWeight::new(weight)?, bias)
}

fn linear_geglu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    sd_ops::linear_geglu(x, &LinearWeight::gated(weight)?, bias)
}

fn linear_by_definition(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Vec<f64> {
    let inputs = weight.dim(1).unwrap();
    let (x, weight, bias) = (values(x), values(weight), values(bias));
    let dot =
        |row: &[f64], weights: &[f64]| row.iter().zip(weights).map(|(a, b)| a * b).sum::<f64>();
    x.chunks(inputs)
        .flat_map(|row| {
            let outputs = weight.chunks(inputs).zip(&bias);
            outputs
                .map(|(weights, bias)| dot(row, weights) + bias)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn a_linear_layer_is_its_definition() {
    for &[batch, rows, inputs, outputs] in LAYERS {
        let (x, weight) = (
            random(1, &[batch, rows, inputs]),
            random(2, &[outputs, inputs]),
        );
        let bias = random(3, &[outputs]);
        let expected = linear_by_definition(&x, &weight, &bias);
        let found = linear(&x, &weight, Some(&bias)).unwrap();
        assert_close(&found, &[batch, rows, outputs], &expected);

        let half = outputs / 2;
        let gate = |v: f64| 0.5 * v * (1. + erf_f64(v / 2f64.sqrt()));
        let gated: Vec<f64> = expected
            .chunks(outputs)
            .flat_map(|row| {
                (0..half)
                    .map(|i| row[i] * gate(row[half + i]))
                    .collect::<Vec<_>>()
            })
            .collect();
        let found = linear_geglu(&x, &weight, Some(&bias)).unwrap();
        assert_close(&found, &[batch, rows, half], &gated);
    }
}

#[test]
fn weights_of_16_bits_are_widened() {
    let (x, weight) = (random(1, &[2, 70, 65]), random(2, &[130, 65]));
    let narrow = weight.to_dtype(DType::F16).unwrap();
    let wide = narrow.to_dtype(DType::F32).unwrap();
    for layer in [linear, linear_geglu] {
        let found = layer(&x, &narrow, None).unwrap();
        assert_eq!(bits(&found), bits(&layer(&x, &wide, None).unwrap()));
    }
    for dtype in [DType::BF16, DType::F64] {
        assert!(LinearWeight::new(&weight.to_dtype(dtype).unwrap()).is_err());
    }
}

#[test]
fn neither_threads_nor_the_batch_change_a_bit_of_a_layer() {
    for &[batch, rows, inputs, outputs] in LAYERS {
        let (x, weight) = (
            random(1, &[batch, rows, inputs]),
            random(2, &[outputs, inputs]),
        );
        for layer in [linear, linear_geglu] {
            let layer = |x: &Tensor| bits(&layer(x, &weight, None).unwrap());
            let expected = on_threads(1, || layer(&x));
            for threads in [2, 3, 8] {
                assert!(on_threads(threads, || layer(&x)) == expected);
            }
            let all = layer(&Tensor::cat(&[&x, &random(9, &[2, rows, inputs])], 0).unwrap());
            assert!(all[..expected.len()] == expected);
        }
    }
}

#[test]
fn attention_is_its_definition() {
    for &[batch, n, m, heads, head] in ATTENTIONS {
        let channels = heads * head;
        let q = (random(1, &[batch, n, channels]) * 3.).unwrap();
        let [k, v] = [2, 3].map(|seed| random(seed, &[batch, m, channels]));
        for causal in [false, true] {
            let found = attention(&q, &k, &v, heads, causal).unwrap();
            let (q, k, v) = (values(&q), values(&k), values(&v));
            let mut expected = vec![0f64; batch * n * channels];
            for (sample, h, i) in
                (0..batch * heads * n).map(|at| (at / n / heads, at / n % heads, at % n))
            {
                let at = |rows: usize, row: usize| (sample * rows + row) * channels + h * head;
                let seen = if causal { m.min(i + 1) } else { m };
                let weights: Vec<f64> = (0..seen)
                    .map(|j| {
                        let dot: f64 = (0..head).map(|c| q[at(n, i) + c] * k[at(m, j) + c]).sum();
                        (dot / (head as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (j, weight) in weights.iter().enumerate() {
                    for c in 0..head {
                        expected[at(n, i) + c] += weight / total * v[at(m, j) + c];
                    }
                }
            }
            assert_close(&found, &[batch, n, channels], &expected);
        }
    }
}

#[test]
fn neither_threads_nor_the_batch_change_a_bit_of_attention() {
    for &[batch, n, m, heads, head] in ATTENTIONS {
        let q = random(1, &[batch + 1, n, heads * head]);
        let [k, v] = [2, 3].map(|seed| random(seed, &[batch + 1, m, heads * head]));
        let all = on_threads(3, || bits(&attention(&q, &k, &v, heads, false).unwrap()));
        let [q, k, v] = [q, k, v].map(|x| x.narrow(0, 0, batch).unwrap());
        for threads in [1, 2] {
            let found = on_threads(threads, || {
                bits(&attention(&q, &k, &v, heads, false).unwrap())
            });
            assert!(all[..found.len()] == found);
        }
    }
}

/// Rows of `width` shifted and scaled to mean 0 and variance 1.
fn standardised(x: &[f64], width: usize, eps: f64) -> Vec<f64> {
    x.chunks(width)
        .flat_map(|row| {
            let count = row.len() as f64;
            let mean = row.iter().sum::<f64>() / count;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            row.iter()
                .map(|v| (v - mean) / (variance + eps).sqrt())
                .collect::<Vec<_>>()
        })
        .collect()
}

proptest! {
    #[test]
    fn norms_are_their_definitions(
        [batch, groups, channels, pixels] in [1..3usize, 1..4, 1..4, 1..6000],
        offset in -100f64..100.,
    ) {
        let channels = groups * channels;
        let (weight, bias) = (random(2, &[channels]), random(3, &[channels]));
        let x = (random(1, &[batch, channels, pixels]) + offset).unwrap();
        let normal = standardised(&values(&x), channels / groups * pixels, 1e-5);
        let (weights, biases) = (values(&weight), values(&bias));
        for silu in [false, true] {
            let expected: Vec<f64> = normal
                .iter()
                .enumerate()
                .map(|(i, v)| {
                    let channel = i / pixels % channels;
                    let v = v * weights[channel] + biases[channel];
                    if silu { v / (1. + (-v).exp()) } else { v }
                })
                .collect();
            let norm = GroupNorm { groups, eps: 1e-5, silu };
            let found = norm.forward(&x, &weight, &bias).unwrap();
            // What is subtracted is rounded to f32: relative to it, not to the result.
            let largest = expected.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
            for (found, expected) in values(&found).iter().zip(&expected) {
                prop_assert!((found - expected).abs() / largest < 4e-5, "{} {}", found, expected);
            }
            let same = x.copy().unwrap();
            norm.forward_in_place(&same, &weight, &bias).unwrap();
            prop_assert_eq!(bits(&same), bits(&found));
        }
    }
}

#[test]
fn a_layer_norm_is_its_definition_even_far_from_zero() {
    for (width, offset) in [(1, 0.), (5, 10.), (320, 100.), (5000, -100.)] {
        let (weight, bias) = (random(2, &[width]), random(3, &[width]));
        let x = (random(1, &[3, width]) + offset).unwrap();
        let (weights, biases) = (values(&weight), values(&bias));
        let expected: Vec<f64> = standardised(&values(&x), width, 1e-5)
            .iter()
            .enumerate()
            .map(|(i, v)| v * weights[i % width] + biases[i % width])
            .collect();
        let found = layer_norm(&x, &weight, &bias, 1e-5).unwrap();
        let found = values(&found);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 4e-5, "{found} {expected}");
        }
    }
}

#[test]
fn activations_are_their_formulas() {
    let x = (random(1, &[3, 7001]) * 9.).unwrap();
    let exact = |v: f64| 0.5 * v * (1. + erf_f64(v / 2f64.sqrt()));
    let quick = |v: f64| v / (1. + (-1.702 * v).exp());
    let expected = |f: fn(f64) -> f64| values(&x).into_iter().map(f).collect::<Vec<_>>();
    assert_close(&gelu(&x).unwrap(), &[3, 7001], &expected(exact));
    assert_close(&quick_gelu(&x).unwrap(), &[3, 7001], &expected(quick));
    assert!(gelu(&x.to_dtype(DType::F64).unwrap()).is_err());
}

#[test]
fn sums_are_in_the_memory_of_the_first() {
    let (x, y) = (random(1, &[3, 20_000]), random(2, &[3, 20_000]));
    let expected = bits(&(&x + &y).unwrap());
    add_in_place(&x, &y).unwrap();
    assert_eq!(bits(&x), expected);
    assert!(add_in_place(&x, &y.t().unwrap().contiguous().unwrap()).is_err());
}

#[test]
fn transposed_and_joined_tensors_are_those_of_candle() {
    for dims in [
        [1, 1, 1],
        [2, 16, 32],
        [3, 17, 5],
        [1, 100, 1037],
        [2, 0, 3],
    ] {
        let x = random(1, &dims);
        let expected = x.transpose(1, 2).unwrap().contiguous().unwrap();
        let found = transpose(&x).unwrap();
        assert_eq!(found.dims(), expected.dims());
        assert_eq!(bits(&found), bits(&expected));
        // A view is read as what it shows.
        assert_eq!(bits(&transpose(&found.t().unwrap()).unwrap()), bits(&found));

        for more in [0, 7000] {
            let other = random(2, &[dims[0], dims[1] + more, dims[2]]);
            let expected = Tensor::cat(&[&x, &other], 1).unwrap();
            let found = concat(&x, &other).unwrap();
            assert_eq!(found.dims(), expected.dims());
            assert_eq!(bits(&found), bits(&expected));
        }
    }
    let x = random(1, &[2, 3, 4]);
    assert!(transpose(&random(1, &[3, 4])).is_err());
    for other in [&[1, 3, 4][..], &[2, 3, 5], &[2, 3, 4, 1], &[6]] {
        assert!(concat(&x, &random(1, other)).is_err(), "{other:?}");
    }
}

#[test]
fn stored_numbers_are_converted_as_by_candle() {
    let dtypes = [DType::F32, DType::F16, DType::BF16];
    for count in [0, 1, 1000, 1024, 5000, 100_000] {
        let x = (random(1, &[count]) * 70_000.).unwrap();
        for stored in dtypes {
            let x = x.to_dtype(stored).unwrap();
            let bytes: Vec<u8> = match stored {
                DType::F32 => x
                    .to_vec1::<f32>()
                    .unwrap()
                    .into_iter()
                    .flat_map(f32::to_le_bytes)
                    .collect(),
                DType::F16 => x
                    .to_vec1::<half::f16>()
                    .unwrap()
                    .into_iter()
                    .flat_map(half::f16::to_le_bytes)
                    .collect(),
                _ => x
                    .to_vec1::<half::bf16>()
                    .unwrap()
                    .into_iter()
                    .flat_map(half::bf16::to_le_bytes)
                    .collect(),
            };
            // Files place tensors at any byte.
            let bytes = [&[0], bytes.as_slice()].concat();
            for dtype in dtypes {
                let found = tensor_from_bytes(&bytes[1..], stored, &[count], dtype).unwrap();
                assert_eq!(found.dtype(), dtype);
                let expected = x.to_dtype(dtype).unwrap();
                assert_eq!(values(&found), values(&expected), "{stored:?} to {dtype:?}");
            }
            assert!(tensor_from_bytes(&bytes, stored, &[count], DType::F32).is_err());
        }
    }
    assert!(tensor_from_bytes(&[0; 8], DType::F64, &[1], DType::F32).is_err());
    assert!(tensor_from_bytes(&[0; 4], DType::F32, &[1], DType::F64).is_err());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = random(1, &[2, 3, 4]);
    let vector = |width| random(2, &[width]);
    assert!(linear(&x, &random(2, &[5, 3]), None).is_err());
    assert!(linear(&x, &random(2, &[5, 4]), Some(&vector(4))).is_err());
    assert!(linear_geglu(&x, &random(2, &[5, 4]), None).is_err());
    let weight = random(2, &[6, 4]);
    let (plain, gated) = (LinearWeight::new(&weight), LinearWeight::gated(&weight));
    assert!(sd_ops::linear(&x, &gated.unwrap(), None).is_err());
    assert!(sd_ops::linear_geglu(&x, &plain.unwrap(), None).is_err());
    assert!(attention(&x, &x, &x, 3, false).is_err());
    assert!(attention(&x, &x, &random(1, &[2, 4, 4]), 2, false).is_err());
    let norm = |groups| GroupNorm {
        groups,
        eps: 1e-5,
        silu: false,
    };
    assert!(norm(1).forward(&x, &vector(3), &vector(3)).is_ok());
    assert!(norm(2).forward(&x, &vector(3), &vector(3)).is_err());
    assert!(norm(0).forward(&x, &vector(3), &vector(3)).is_err());
    assert!(norm(1).forward(&x, &vector(4), &vector(3)).is_err());
    assert!(layer_norm(&x, &vector(4), &vector(3), 1e-5).is_err());
}

#[test]
fn empty_tensors_have_empty_results() {
    let none = random(1, &[0, 3, 4]);
    let vector = |width| random(2, &[width]);
    assert_eq!(
        linear(&none, &random(2, &[5, 4]), None).unwrap().dims(),
        [0, 3, 5]
    );
    assert_eq!(
        attention(&none, &none, &none, 2, false).unwrap().dims(),
        [0, 3, 4]
    );
    let norm = GroupNorm {
        groups: 3,
        eps: 1e-5,
        silu: true,
    };
    assert_eq!(
        norm.forward(&none, &vector(3), &vector(3)).unwrap().dims(),
        [0, 3, 4]
    );
    assert_eq!(
        layer_norm(&none, &vector(4), &vector(4), 1e-5)
            .unwrap()
            .dims(),
        [0, 3, 4]
    );
    // A layer without inputs gives its bias.
    let found = linear(
        &random(1, &[1, 2, 0]),
        &random(2, &[3, 0]),
        Some(&vector(3)),
    )
    .unwrap();
    assert_eq!(
        values(&found),
        [values(&vector(3)), values(&vector(3))].concat()
    );
}
