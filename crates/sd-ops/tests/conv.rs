//! Convolution against its definition in f64.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{CASES, Case, assert_alone, bits, case, conv2d, error, random, values};
use proptest::prelude::*;
use sd_ops::{ConvWeight, Window, conv2d_doubled};

/// Largest error, relative to the largest result.
const TOLERANCE: f64 = 1e-6;
/// The same of large 3x3 convolutions, which take fewer products and lose some more.
const WINOGRAD_TOLERANCE: f64 = 1e-5;

/// The sums of the definition, one after the other.
fn by_definition(x: &Tensor, weight: &Tensor, bias: &Tensor, window: Window) -> Tensor {
    let (batch, inputs, height, width) = x.dims4().unwrap();
    let (outputs, _, kernel_height, kernel_width) = weight.dims4().unwrap();
    let side =
        |image: usize, kernel: usize| (image + 2 * window.padding - kernel) / window.stride + 1;
    let (rows, columns) = (side(height, kernel_height), side(width, kernel_width));
    let (x, weight, bias) = (values(x), values(weight), values(bias));
    let mut out = Vec::with_capacity(batch * outputs * rows * columns);
    for sample in x.chunks(inputs * height * width) {
        for (kernels, bias) in weight
            .chunks(inputs * kernel_height * kernel_width)
            .zip(&bias)
        {
            for (row, column) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
                let mut sum = *bias;
                for (plane, kernel) in sample
                    .chunks(height * width)
                    .zip(kernels.chunks(kernel_height * kernel_width))
                {
                    for (tap, weight) in kernel.iter().enumerate() {
                        let y = row * window.stride + tap / kernel_width;
                        let x = column * window.stride + tap % kernel_width;
                        let inside = |at: usize, side: usize| {
                            at.checked_sub(window.padding).filter(|at| *at < side)
                        };
                        if let (Some(y), Some(x)) = (inside(y, height), inside(x, width)) {
                            sum += plane[y * width + x] * weight;
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    Tensor::from_vec(out, (batch, outputs, rows, columns), &Device::Cpu).unwrap()
}

/// Tiles, bands and lanes with and without a rest.
const WINOGRAD_CASES: &[Case] = &[
    [1, 32, 32, 32, 32, 3, 3, 1, 1],
    [2, 37, 33, 35, 41, 3, 3, 1, 1],
    [1, 320, 40, 32, 33, 3, 3, 1, 1],
    [1, 33, 35, 34, 410, 3, 3, 1, 1],
    [1, 32, 34, 259, 38, 3, 3, 1, 1],
    [9, 33, 32, 17, 16, 3, 3, 1, 1],
    [1, 130, 200, 16, 19, 3, 3, 1, 1],
];

#[test]
fn convolution_is_its_definition() {
    let direct = CASES.iter().map(|sizes| (*sizes, TOLERANCE));
    let winograd = WINOGRAD_CASES
        .iter()
        .map(|sizes| (*sizes, WINOGRAD_TOLERANCE));
    for (sizes, tolerance) in direct.chain(winograd) {
        let (x, weight, bias, window) = case(sizes);
        let expected = by_definition(&x, &weight, &bias, window);
        let found = conv2d(&x, &weight, Some(&bias), window).unwrap();
        let error = error(&found, &expected);
        assert!(error <= tolerance, "{sizes:?}: {error:.1e}");
    }
}

#[test]
fn without_a_bias_it_is_zero() {
    let (x, weight, bias, window) = case(CASES[3]);
    let zeros = bias.zeros_like().unwrap();
    assert_eq!(
        bits(&conv2d(&x, &weight, None, window).unwrap()),
        bits(&conv2d(&x, &weight, Some(&zeros), window).unwrap())
    );
}

#[test]
fn samples_may_have_biases_of_their_own() {
    for &sizes in [CASES[3], CASES[14], WINOGRAD_CASES[1]].iter() {
        let (x, weight, _, window) = case(sizes);
        let bias = random(7, &[sizes[0], sizes[2]]);
        let found = conv2d(&x, &weight, Some(&bias), window).unwrap();
        for sample in 0..sizes[0] {
            let bias = bias.get(sample).unwrap();
            let x = x.narrow(0, sample, 1).unwrap();
            let expected = conv2d(&x, &weight, Some(&bias), window).unwrap();
            assert!(bits(&found.narrow(0, sample, 1).unwrap()) == bits(&expected));
        }
    }
}

#[test]
fn a_doubled_input_is_convolved_as_if_it_were_there() {
    for [batch, inputs, outputs, height, width, kernel, padding] in [
        [1, 1, 1, 1, 1, 3, 1],
        [2, 3, 5, 4, 3, 3, 1],
        [1, 33, 35, 17, 20, 3, 1],
        [2, 32, 32, 40, 16, 3, 1],
        [1, 3, 5, 4, 7, 1, 0],
        [1, 3, 5, 4, 7, 5, 0],
    ] {
        let x = random(1, &[batch, inputs, height, width]);
        let weight = random(2, &[outputs, inputs, kernel, kernel]);
        let bias = random(3, &[outputs]);
        for less in [[0, 0], [1, 0], [0, 1], [1, 1]] {
            let size = [2 * height - less[0], 2 * width - less[1]];
            if size.iter().any(|side| side + 2 * padding < kernel) {
                continue;
            }
            let doubled = x.upsample_nearest2d(size[0], size[1]).unwrap();
            let window = Window { stride: 1, padding };
            let expected = conv2d(&doubled, &weight, Some(&bias), window).unwrap();
            let weight = ConvWeight::new(&weight).unwrap();
            let found = conv2d_doubled(&x, size, &weight, Some(&bias), padding).unwrap();
            assert_eq!(found.dims(), expected.dims());
            assert!(bits(&found) == bits(&expected), "{size:?}");
        }
        let weight = ConvWeight::new(&weight).unwrap();
        for size in [[2 * height + 1, 2 * width], [2 * height, 2 * width - 2]] {
            assert!(conv2d_doubled(&x, size, &weight, Some(&bias), padding).is_err());
        }
    }
}

#[test]
fn neither_threads_nor_the_batch_change_a_bit() {
    for &sizes in CASES.iter().chain(WINOGRAD_CASES) {
        let (_, weight, bias, window) = case(sizes);
        let conv = |x: &Tensor| conv2d(x, &weight, Some(&bias), window).unwrap();
        assert_alone(sizes, conv);
    }
}

#[test]
fn views_are_read_as_what_they_show() {
    let (x, weight, bias, window) = case(CASES[3]);
    let turned = |t: &Tensor| t.t().unwrap().contiguous().unwrap().t().unwrap();
    let wide = Tensor::cat(&[&x, &x, &x], 0)
        .unwrap()
        .narrow(0, 2, 2)
        .unwrap();
    let found = conv2d(&wide, &turned(&weight), Some(&bias), window).unwrap();
    assert_eq!(
        bits(&found),
        bits(&conv2d(&x, &weight, Some(&bias), window).unwrap())
    );
}

#[test]
fn weights_of_f16_are_those_numbers() {
    for &sizes in CASES.iter().chain(WINOGRAD_CASES) {
        let (x, weight, bias, window) = case(sizes);
        let narrow = weight.to_dtype(DType::F16).unwrap();
        let wide = narrow.to_dtype(DType::F32).unwrap();
        let conv = |weight: &Tensor| bits(&conv2d(&x, weight, Some(&bias), window).unwrap());
        assert!(conv(&narrow) == conv(&wide), "{sizes:?}");
    }
}

#[test]
fn empty_tensors_convolve() {
    let window = Window {
        stride: 1,
        padding: 1,
    };
    let conv = |x: [usize; 4], weight: [usize; 4]| -> Result<Tensor> {
        conv2d(
            &random(1, &x),
            &random(2, &weight),
            Some(&random(3, &weight[..1])),
            window,
        )
    };
    assert_eq!(
        conv([0, 3, 4, 4], [2, 3, 3, 3]).unwrap().dims(),
        [0, 2, 4, 4]
    );
    assert_eq!(
        conv([1, 3, 4, 4], [0, 3, 3, 3]).unwrap().dims(),
        [1, 0, 4, 4]
    );
    // Nothing is added to the bias.
    let bias = values(&random(3, &[2]));
    for (x, weight, pixels) in [
        ([1, 0, 4, 4], [2, 0, 3, 3], 16),
        ([1, 3, 1, 0], [2, 3, 1, 2], 3),
    ] {
        let expected: Vec<f64> = bias.iter().flat_map(|b| vec![*b; pixels]).collect();
        assert_eq!(values(&conv(x, weight).unwrap()), expected);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let plain = Window {
        stride: 1,
        padding: 0,
    };
    let (x, weight, bias) = (
        random(1, &[1, 3, 4, 4]),
        random(2, &[2, 3, 3, 3]),
        random(3, &[2]),
    );
    let fails = |x: &Tensor, weight: &Tensor, bias: &Tensor, window| {
        conv2d(x, weight, Some(bias), window).is_err()
    };
    assert!(!fails(&x, &weight, &bias, plain));
    let double = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    assert!(fails(&random(1, &[1, 4, 4, 4]), &weight, &bias, plain));
    assert!(fails(&random(1, &[1, 3, 2, 4]), &weight, &bias, plain));
    assert!(fails(&random(1, &[3, 4, 4]), &weight, &bias, plain));
    assert!(fails(&x, &random(1, &[2, 3, 3]), &bias, plain));
    assert!(fails(&x, &random(1, &[2, 3, 0, 3]), &bias, plain));
    assert!(fails(&x, &weight, &random(1, &[3]), plain));
    assert!(!fails(&x, &weight, &random(1, &[1, 2]), plain));
    assert!(fails(&x, &weight, &random(1, &[2, 2]), plain));
    assert!(fails(&double(&x), &weight, &bias, plain));
    assert!(fails(&x, &double(&weight), &bias, plain));
    assert!(fails(&x, &weight, &double(&bias), plain));
    for (stride, padding) in [(0, 0), (1, usize::MAX), (1, usize::MAX / 4), (1, 1 << 31)] {
        assert!(fails(&x, &weight, &bias, Window { stride, padding }));
    }
}

proptest! {
    #[test]
    fn small_convolutions_are_their_definition(
        sizes in [1..3usize, 1..6, 1..8, 1..12, 1..12, 1..6, 1..6, 1..4, 0..4]
    ) {
        let (x, weight, bias, window) = case(sizes);
        let [_, _, _, height, width, kernel_height, kernel_width, ..] = sizes;
        let found = conv2d(&x, &weight, Some(&bias), window);
        if height + 2 * window.padding < kernel_height || width + 2 * window.padding < kernel_width {
            prop_assert!(found.is_err());
        } else {
            let expected = by_definition(&x, &weight, &bias, window);
            let [x, weight, bias] = [&x, &weight, &bias].map(|x| x.abs().unwrap());
            let magnitudes = values(&by_definition(&x, &weight, &bias, window));
            // What n roundings make of a sum at most, in any order (Higham 2002, section 3.1). Results may be small by
            // cancellation, all of them if they are few: errors are not relative to those.
            let terms = 1 + weight.elem_count() / weight.dims()[0];
            let bound = terms as f64 * f64::from(f32::EPSILON) / 2.;
            let found = values(&found.unwrap());
            prop_assert_eq!(found.len(), magnitudes.len());
            for ((found, sum), magnitude) in found.iter().zip(values(&expected)).zip(magnitudes) {
                prop_assert!((found - sum).abs() <= bound * magnitude, "{found}, expected {sum}");
            }
        }
    }
}
