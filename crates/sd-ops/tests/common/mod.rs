//! What the tests of all operators share.

use candle_core::{DType, Device, Tensor};

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
