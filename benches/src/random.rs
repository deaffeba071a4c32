//! Tensors of random numbers, the same in every run.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Weights for any network: each is drawn when asked for, seeded by its name, so that two implementations that use
/// the same names get the same model. On the CPU, in f32.
pub fn weights() -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(RandomWeights), DType::F32, Device::Cpu)
}

/// Uniform numbers of mean 0 and standard deviation 1.
///
/// # Errors
/// There is no memory for that shape.
pub fn input(shape: impl Into<Shape>) -> Result<Tensor> {
    uniform(&shape.into(), 1.0, 0)
}

struct RandomWeights;

impl SimpleBackend for RandomWeights {
    /// Scales that keep activations near 1: a network of zeros or of infinities would be timed wrongly.
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let fan_in: usize = shape.dims().iter().skip(1).product();
        let tensor = match shape.rank() {
            1 if name.ends_with("weight") => Tensor::ones(shape, DType::F32, device)?,
            1 => Tensor::zeros(shape, DType::F32, device)?,
            _ => uniform(&shape, 1.0 / (fan_in as f32).sqrt(), hash(name))?,
        };
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: a random tensor needs a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn uniform(shape: &Shape, std: f32, seed: u64) -> Result<Tensor> {
    // A uniform distribution over (-a, a) has standard deviation a / sqrt(3).
    let scale = std * 3f32.sqrt();
    let values: Vec<f32> = (0..shape.elem_count() as u64)
        .map(|index| {
            let unit = (mix(seed.wrapping_add(index)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            unit * scale
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// One output of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0, |seed, byte| mix(seed ^ u64::from(byte)))
}
