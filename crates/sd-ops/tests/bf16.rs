//! The operators of bf16 against those of f32 on rounded inputs.

mod common;

use candle_core::{DType, Tensor};
use common::{
    ATTENTIONS, CASES, Case, LAYERS, assert_alone, bits, case, conv2d, error, on_threads, random,
};
use proptest::prelude::*;
use sd_ops::bf16::{self, Beside};
use sd_ops::{LinearWeight, Window, linear, linear_geglu};

/// Largest error, relative to the largest result, where products of rounded numbers are summed.
const TOLERANCE: f64 = 2e-6;
/// The same of attention, whose weights are rounded: a bf16 has eight bits.
const ATTENTION_TOLERANCE: f64 = 1. / 256.;

/// The nearest numbers that a bf16 holds.
fn rounded(x: &Tensor) -> Tensor {
    let short = x.to_dtype(DType::BF16).unwrap();
    short.to_dtype(DType::F32).unwrap()
}

/// Channels and pixels with and without a rest, in one task and in several.
const LARGE: &[Case] = &[
    [2, 64, 64, 16, 16, 3, 3, 1, 1],
    [1, 96, 130, 65, 70, 3, 3, 1, 1],
    [2, 40, 72, 40, 33, 3, 3, 2, 1],
    [1, 70, 33, 3, 600, 3, 3, 1, 1],
];

#[test]
fn a_convolution_is_that_of_rounded_inputs() {
    for &sizes in CASES.iter().chain(LARGE) {
        let (x, weight, bias, window) = case(sizes);
        let expected = conv2d(&rounded(&x), &rounded(&weight), Some(&bias), window);
        let weight = bf16::Weight::new(&weight).unwrap();
        let found = bf16::conv2d(&x, &weight, Some(&bias), window).unwrap();
        // Large ones of f32 are less exact themselves.
        let error = error(&found, &expected.unwrap());
        assert!(error <= 5. * TOLERANCE, "{sizes:?}: {error:.1e}");
    }
}

#[test]
fn a_doubled_input_is_convolved_as_if_it_were_there() {
    for [batch, channels, height, width] in [[1, 1, 1, 1], [2, 33, 17, 20], [1, 70, 40, 35]] {
        let x = random(1, &[batch, channels, height, width]);
        let weight = bf16::Weight::new(&random(2, &[40, channels, 3, 3])).unwrap();
        let bias = random(3, &[batch, 40]);
        for less in [[0, 0], [1, 0], [0, 1], [1, 1]] {
            let size = [2 * height - less[0], 2 * width - less[1]];
            let doubled = x.upsample_nearest2d(size[0], size[1]).unwrap();
            let window = Window {
                stride: 1,
                padding: 1,
            };
            let expected = bf16::conv2d(&doubled, &weight, Some(&bias), window).unwrap();
            let found = bf16::conv2d_doubled(&x, size, &weight, Some(&bias), 1).unwrap();
            assert_eq!(found.dims(), expected.dims());
            assert!(bits(&found) == bits(&expected), "{size:?}");
        }
    }
}

#[test]
fn a_norm_and_a_residual_are_as_those_of_their_own() {
    for &sizes in CASES[3..].iter().chain(LARGE) {
        let (x, weight, bias, window) = case(sizes);
        let [batch, inputs, ..] = sizes;
        let x = x.affine(3., 1.).unwrap();
        let [scale, shift] = [7, 8].map(|seed| random(seed, &[inputs]));
        let weight = bf16::Weight::new(&weight).unwrap();
        let conv = |x: &Tensor| bf16::conv2d(x, &weight, Some(&bias), window).unwrap();
        for silu in [false, true] {
            let norm = sd_ops::GroupNorm {
                groups: 1,
                eps: 1e-5,
                silu,
            };
            let convolved = conv(&norm.forward(&x, &scale, &shift).unwrap());
            let residual = random(9, convolved.dims());
            let channels = norm.channels(&x, &scale, &shift).unwrap();
            let with = |x: &Tensor, residual: Option<&Tensor>| {
                let norm = Some(&channels);
                bf16::conv2d_with(x, &weight, Some(&bias), window, Beside { norm, residual })
            };
            let expected = (&convolved + &residual).unwrap();
            assert!(bits(&with(&x, Some(&residual)).unwrap()) == bits(&expected));
            assert!(bits(&with(&x, None).unwrap()) == bits(&convolved));
            assert!(with(&x, Some(&random(1, &[batch, 1]))).is_err());
            let more = Tensor::cat(&[&x, &x], 0).unwrap();
            assert!(with(&more, None).is_err());
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Gated,
}

#[test]
fn a_linear_layer_is_that_of_rounded_inputs() {
    for &[batch, rows, inputs, outputs] in LAYERS {
        let (x, weight) = (
            random(1, &[batch, rows, inputs]),
            random(2, &[outputs, inputs]),
        );
        let bias = random(3, &[outputs]);
        let plain = (bf16::Weight::new(&weight), Kind::Plain);
        let gated = (bf16::Weight::gated(&weight), Kind::Gated);
        for (packed, kind) in [plain, gated] {
            let packed = packed.unwrap();
            let run = |x: &Tensor, bias: Option<&Tensor>| match kind {
                Kind::Plain => bf16::linear(x, &packed, bias).unwrap(),
                Kind::Gated => bf16::linear_geglu(x, &packed, bias).unwrap(),
            };
            let (x_rounded, weight) = (rounded(&x), rounded(&weight));
            let expected = match kind {
                Kind::Plain => LinearWeight::new(&weight)
                    .and_then(|weight| linear(&x_rounded, &weight, Some(&bias))),
                Kind::Gated => LinearWeight::gated(&weight)
                    .and_then(|weight| linear_geglu(&x_rounded, &weight, Some(&bias))),
            };
            let (found, expected) = (run(&x, Some(&bias)), expected.unwrap());
            let apart = error(&found, &expected);
            assert!(apart <= TOLERANCE, "{rows}x{inputs}: {apart:.1e}");

            let one = on_threads(1, || bits(&run(&x, None)));
            for threads in [2, 3, 8] {
                assert!(on_threads(threads, || bits(&run(&x, None))) == one);
            }
            let all = Tensor::cat(&[&x, &random(9, &[2, rows, inputs])], 0).unwrap();
            assert!(bits(&run(&all, None))[..one.len()] == one);
        }
    }
}

#[test]
fn attention_is_that_of_rounded_inputs() {
    // Of many keys, too, which come in many parts.
    let cases = ATTENTIONS.iter().chain(&[[1, 5, 9000, 2, 20]]);
    for &[batch, n, m, heads, head] in cases {
        let q = (random(1, &[batch + 1, n, heads * head]) * 3.).unwrap();
        let [k, v] = [2, 3].map(|seed| random(seed, &[batch + 1, m, heads * head]));
        for causal in [false, true] {
            let expected =
                sd_ops::attention(&rounded(&q), &rounded(&k), &rounded(&v), heads, causal);
            let found = bf16::attention(&q, &k, &v, heads, causal).unwrap();
            let apart = error(&found, &expected.unwrap());
            assert!(
                apart <= ATTENTION_TOLERANCE,
                "{n}x{m} {causal}: {apart:.1e}"
            );

            let all = bits(&found);
            let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(0, 0, batch).unwrap());
            for threads in [1, 2, 5] {
                let alone = || bits(&bf16::attention(&q, &k, &v, heads, causal).unwrap());
                let found = on_threads(threads, alone);
                assert!(all[..found.len()] == found);
            }
        }
    }
}

#[test]
fn a_hidden_key_has_no_part_in_an_answer() {
    let [q, k, v] = [1, 2, 3].map(|seed| random(seed, &[1, 40, 16]));
    let answers = |k: &Tensor, v: &Tensor| {
        let answers = bf16::attention(&q, k, v, 1, true).unwrap();
        bits(&answers.narrow(1, 0, 20).unwrap())
    };
    let other = |x: &Tensor, seed: u64| {
        let end = random(seed, &[1, 20, 16]);
        Tensor::cat(&[&x.narrow(1, 0, 20).unwrap(), &end], 1).unwrap()
    };
    assert_eq!(answers(&k, &v), answers(&other(&k, 7), &other(&v, 8)));
}

#[test]
fn neither_threads_nor_the_batch_change_a_bit_of_a_convolution() {
    for &sizes in CASES.iter().chain(LARGE) {
        let (_, weight, bias, window) = case(sizes);
        let weight = bf16::Weight::new(&weight).unwrap();
        let conv = |x: &Tensor| bf16::conv2d(x, &weight, Some(&bias), window).unwrap();
        assert_alone(sizes, conv);
    }
}

#[test]
fn weights_of_any_dtype_are_rounded() {
    let (x, weight) = (random(1, &[2, 70, 65]), random(2, &[130, 65]));
    let layer = |weight: &Tensor| {
        let weight = bf16::Weight::new(weight)?;
        bf16::linear(&x, &weight, None).map(|y| bits(&y))
    };
    let expected = layer(&weight).unwrap();
    assert_eq!(layer(&rounded(&weight)).unwrap(), expected);
    let short = weight.to_dtype(DType::BF16).unwrap();
    assert_eq!(layer(&short).unwrap(), expected);
    let half = weight.to_dtype(DType::F16).unwrap();
    let wide = half.to_dtype(DType::F32).unwrap();
    assert_eq!(layer(&half).unwrap(), layer(&wide).unwrap());
    assert!(layer(&weight.to_dtype(DType::F64).unwrap()).is_err());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let weight = |dims: &[usize]| bf16::Weight::new(&random(2, dims)).unwrap();
    let x = random(1, &[2, 3, 4]);
    assert!(bf16::Weight::new(&random(2, &[5])).is_err());
    assert!(bf16::Weight::gated(&random(2, &[5, 4])).is_err());
    assert!(bf16::linear(&x, &weight(&[5, 3]), None).is_err());
    assert!(bf16::linear(&x, &weight(&[5, 4]), Some(&random(3, &[4]))).is_err());
    assert!(bf16::linear(&x, &weight(&[5, 4, 3, 3]), None).is_err());
    assert!(bf16::linear_geglu(&x, &weight(&[6, 4]), None).is_err());
    let gated = bf16::Weight::gated(&random(2, &[6, 4])).unwrap();
    assert!(bf16::linear(&x, &gated, None).is_err());
    let plain = Window {
        stride: 1,
        padding: 0,
    };
    let image = random(1, &[1, 4, 5, 5]);
    assert!(bf16::conv2d(&image, &gated, None, plain).is_err());
    assert!(bf16::conv2d(&image, &weight(&[2, 3, 3, 3]), None, plain).is_err());
    assert!(bf16::conv2d(&image, &weight(&[2, 4, 6, 3]), None, plain).is_err());
    assert!(
        bf16::conv2d(
            &image,
            &weight(&[2, 4, 3, 3]),
            Some(&random(3, &[3])),
            plain
        )
        .is_err()
    );
    assert!(bf16::attention(&x, &x, &x, 3, false).is_err());
}

#[test]
fn empty_tensors_have_empty_results() {
    let weight = |dims: &[usize]| bf16::Weight::new(&random(2, dims)).unwrap();
    let none = random(1, &[0, 3, 4]);
    let found = bf16::linear(&none, &weight(&[5, 4]), None).unwrap();
    assert_eq!(found.dims(), [0, 3, 5]);
    let found = bf16::attention(&none, &none, &none, 2, false).unwrap();
    assert_eq!(found.dims(), [0, 3, 4]);
    // A layer without inputs gives its bias.
    let bias = random(3, &[3]);
    let found = bf16::linear(&random(1, &[1, 2, 0]), &weight(&[3, 0]), Some(&bias)).unwrap();
    assert_eq!(bits(&found), [bits(&bias), bits(&bias)].concat());
    let window = Window {
        stride: 1,
        padding: 1,
    };
    for (x, kernel, dims) in [
        ([1, 0, 4, 4], [3, 0, 3, 3], [1, 3, 4, 4]),
        ([1, 3, 1, 0], [3, 3, 1, 2], [1, 3, 3, 1]),
    ] {
        let found = bf16::conv2d(&random(1, &x), &weight(&kernel), Some(&bias), window).unwrap();
        assert_eq!(found.dims(), dims);
        let expected = bias.reshape((1, 3, 1, 1)).unwrap();
        assert_eq!(bits(&found), bits(&expected.broadcast_as(&dims).unwrap()));
    }
}

proptest! {
    #[test]
    fn small_convolutions_are_those_of_rounded_inputs(
        sizes in [1..3usize, 1..6, 1..8, 1..12, 1..12, 1..6, 1..6, 1..4, 0..4]
    ) {
        let (x, weight, bias, window) = case(sizes);
        let expected = conv2d(&rounded(&x), &rounded(&weight), Some(&bias), window);
        let weight = bf16::Weight::new(&weight).unwrap();
        match (bf16::conv2d(&x, &weight, Some(&bias), window), expected) {
            (Ok(found), Ok(expected)) => {
                let error = error(&found, &expected);
                prop_assert!(error <= TOLERANCE, "{error:.1e}");
            }
            (found, expected) => prop_assert!(found.is_err() && expected.is_err()),
        }
    }
}
