//! The weights of linear layers and convolutions.

use candle_core::{DType, Result, Tensor};
use sd_ops::bf16;

use super::Ledger;

/// What the factors of a layer's products are on the CPU. Sums and activations are f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compute {
    /// f32: weights in f16 widen.
    #[default]
    F32,
    /// bf16: weights in bf16 stay what they are, and activations are rounded where they are multiplied.
    Bf16,
}

impl Compute {
    /// Of weights of `dtype`.
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            _ => Self::F32,
        }
    }
}

/// A weight: `[outputs, inputs]`, or `[outputs, inputs, kernel height, kernel width]`.
#[derive(Debug, Clone)]
pub(super) enum Weight {
    /// As it was loaded.
    Stored(Tensor),
    /// On the CPU, laid out for products of bf16.
    Packed(bf16::Weight),
}

impl Weight {
    pub(super) fn new(weight: Tensor) -> Result<Self> {
        Self::pack(weight, bf16::Weight::new)
    }

    /// Of a gated layer.
    pub(super) fn gated(weight: Tensor) -> Result<Self> {
        Self::pack(weight, bf16::Weight::gated)
    }

    fn pack(weight: Tensor, pack: impl Fn(&Tensor) -> Result<bf16::Weight>) -> Result<Self> {
        // One number seen everywhere stands for weights that are not there: only their memory is asked for.
        let is_there = weight.stride().iter().any(|stride| *stride > 0);
        if weight.device().is_cpu() && Compute::of(weight.dtype()) == Compute::Bf16 && is_there {
            return Ok(Self::Packed(pack(&weight)?));
        }
        Ok(Self::Stored(weight))
    }

    /// Length of a dimension.
    pub(super) fn dim(&self, i: usize) -> usize {
        match self {
            Self::Stored(weight) => weight.dims()[i],
            Self::Packed(weight) => weight.shape()[i],
        }
    }

    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::Stored(weight) => weight.dtype(),
            Self::Packed(_) => DType::BF16,
        }
    }

    pub(super) fn compute(&self) -> Compute {
        Compute::of(self.dtype())
    }

    /// Bytes of its copy in the dtype of the activations, none if it is multiplied as it is.
    pub(super) fn widened(&self, memory: &Ledger) -> u64 {
        match self {
            Self::Stored(weight) if memory.is_gpu() || self.compute() == Compute::F32 => {
                memory.widened(weight)
            }
            _ => 0,
        }
    }
}
