//! What the tests of all operators share.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::alloc::{GlobalAlloc, Layout, System};

use candle_core::{DType, Device, Result, Tensor};
use sd_ops::{ConvWeight, Window};

/// Fills memory with bits that are no number in f32 or bf16: a result that nobody wrote is none either.
struct NoNumbers;

#[global_allocator]
static MEMORY: NoNumbers = NoNumbers;

#[expect(unsafe_code, reason = "allocators are")]
// SAFETY: the system's, but for what is written into memory of that size.
unsafe impl GlobalAlloc for NoNumbers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe {
            let start = System.alloc(layout);
            if !start.is_null() {
                start.write_bytes(0xff, layout.size());
            }
            start
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(start, layout) }
    }
}

/// Numbers between -1 and 1.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed;
    let values = (0..shape.iter().product()).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.
    });
    Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

pub(crate) fn values(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    x.to_vec1().unwrap()
}

/// Runs `f` on `threads` threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(f)
}

pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// The largest difference over the largest expected value.
pub(crate) fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let largest = expected
        .iter()
        .fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let errors = found.iter().zip(&expected).map(|(f, e)| (f - e).abs());
    // `f64::max` would drop a NaN.
    errors.fold(0., |m, e| if e <= m { m } else { e }) / largest
}

/// Batch, inputs, outputs, height, width, kernel height, kernel width, stride, padding.
pub(crate) type Case = [usize; 9];

/// Every way that tasks and blocks are cut, with and without a rest.
pub(crate) const CASES: &[Case] = &[
    [1, 1, 1, 1, 1, 1, 1, 1, 0],
    [1, 1, 1, 1, 1, 3, 3, 1, 1],
    [2, 1, 5, 9, 7, 3, 3, 1, 1],
    [2, 3, 4, 7, 9, 3, 3, 2, 1],
    [1, 5, 3, 8, 8, 3, 3, 2, 0],
    [1, 3, 2, 5, 6, 5, 3, 1, 2],
    [1, 2, 3, 6, 5, 2, 4, 3, 3],
    [1, 2, 2, 3, 3, 3, 3, 1, 4],
    [1, 4, 4, 2, 2, 6, 6, 1, 2],
    [3, 37, 19, 5, 3, 1, 1, 1, 0],
    [1, 3, 5, 6, 7, 1, 1, 2, 0],
    [1, 3, 5, 6, 7, 1, 1, 1, 1],
    [1, 4, 320, 13, 11, 3, 3, 1, 1],
    [1, 320, 4, 13, 11, 3, 3, 1, 1],
    [2, 130, 300, 8, 8, 3, 3, 1, 1],
    [1, 33, 17, 37, 41, 3, 3, 1, 1],
    [1, 33, 17, 37, 41, 3, 3, 2, 1],
    [1, 40, 24, 33, 35, 1, 1, 1, 0],
    [1, 3, 2, 2, 1500, 3, 3, 1, 1],
    [1, 2, 3, 1500, 1, 3, 3, 1, 1],
];

/// A case's input, weight, bias and window.
pub(crate) fn case(
    [
        batch,
        inputs,
        outputs,
        height,
        width,
        kernel_height,
        kernel_width,
        stride,
        padding,
    ]: Case,
) -> (Tensor, Tensor, Tensor, Window) {
    (
        random(1, &[batch, inputs, height, width]),
        random(2, &[outputs, inputs, kernel_height, kernel_width]),
        random(3, &[outputs]),
        Window { stride, padding },
    )
}

/// The convolution in f32 with a weight that is not laid out yet.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
) -> Result<Tensor> {
    sd_ops::conv2d(x, &ConvWeight::new(weight)?, bias, window)
}

/// Asserts that a convolution of a case gives each sample the same bits on any number of threads and in any batch.
pub(crate) fn assert_alone(sizes: Case, conv: impl Fn(&Tensor) -> Tensor + Sync) {
    let (x, ..) = case(sizes);
    let expected = on_threads(1, || bits(&conv(&x)));
    for threads in [2, 3, 8] {
        assert!(
            on_threads(threads, || bits(&conv(&x))) == expected,
            "{sizes:?}"
        );
    }
    let mates = random(9, &[2, sizes[1], sizes[3], sizes[4]]);
    let batch = conv(&Tensor::cat(&[&mates, &x, &mates], 0).unwrap());
    assert!(
        bits(&batch.narrow(0, 2, sizes[0]).unwrap()) == expected,
        "{sizes:?}"
    );
}

/// Batch, rows, inputs, outputs of linear layers.
pub(crate) const LAYERS: &[[usize; 4]] = &[
    [1, 1, 1, 2],
    [2, 3, 7, 10],
    [1, 7, 64, 64],
    [2, 100, 65, 130],
    [1, 500, 300, 66],
    [3, 77, 33, 322],
];

/// Batch, queries, keys, heads, channels of a head.
pub(crate) const ATTENTIONS: &[[usize; 5]] = &[
    [1, 1, 1, 1, 1],
    [2, 7, 5, 3, 4],
    [1, 77, 77, 2, 64],
    [2, 300, 300, 2, 40],
    [1, 100, 77, 1, 130],
    [1, 5, 1500, 2, 20],
];
