//! Where stochastic solvers get their noise.

use candle_core::{Device, Tensor};

use crate::rng::TorchGenerator;

/// A supply of standard normal noise.
pub trait NoiseSource {
    /// The next noise: f32, of the shape and on the device of `like`.
    fn noise(&mut self, like: &Tensor) -> candle_core::Result<Tensor>;
}

/// Noise from torch's CPU generator, drawn on the host whatever the device: one seed, one picture.
#[derive(Debug, Clone)]
pub struct SeededNoise {
    generators: Vec<TorchGenerator>,
}

impl SeededNoise {
    /// One generator for the whole batch.
    pub fn new(seed: u64) -> Self {
        Self {
            generators: vec![TorchGenerator::new(seed)],
        }
    }

    /// One generator for each sample of the batch, so that each can be made again alone.
    pub fn per_sample(seeds: &[u64]) -> Self {
        Self::from_generators(seeds.iter().copied().map(TorchGenerator::new).collect())
    }

    /// Continues from saved [`generators`](Self::generators).
    pub fn from_generators(generators: Vec<TorchGenerator>) -> Self {
        Self { generators }
    }

    /// The generators as they are now: one, or one for each sample.
    pub fn generators(&self) -> &[TorchGenerator] {
        &self.generators
    }
}

impl NoiseSource for SeededNoise {
    fn noise(&mut self, like: &Tensor) -> candle_core::Result<Tensor> {
        let count = like.elem_count();
        let values = match &mut self.generators[..] {
            [generator] => generator.randn_f32(count),
            generators
                if !generators.is_empty() && like.dims().first() == Some(&generators.len()) =>
            {
                let each = count / generators.len();
                generators
                    .iter_mut()
                    .flat_map(|generator| generator.randn_f32(each))
                    .collect()
            }
            generators => candle_core::bail!(
                "{} generators for a batch of shape {:?}",
                generators.len(),
                like.dims()
            ),
        };
        Tensor::from_vec(values, like.shape(), &Device::Cpu)?.to_device(like.device())
    }
}

/// Noise recorded elsewhere, replayed in order; an error once it is used up.
#[derive(Debug, Clone, Default)]
pub struct RecordedNoise {
    tensors: std::collections::VecDeque<Tensor>,
}

impl RecordedNoise {
    /// Replays `tensors`.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        Self {
            tensors: tensors.into_iter().collect(),
        }
    }

    /// Draws left.
    pub fn remaining(&self) -> usize {
        self.tensors.len()
    }
}

impl NoiseSource for RecordedNoise {
    fn noise(&mut self, like: &Tensor) -> candle_core::Result<Tensor> {
        match self.tensors.pop_front() {
            Some(noise) if noise.shape() == like.shape() => noise.to_device(like.device()),
            Some(noise) => candle_core::bail!(
                "recorded noise is {:?}, expected {:?}",
                noise.dims(),
                like.dims()
            ),
            None => candle_core::bail!("the recorded noise is used up"),
        }
    }
}
