//! The weights of linear layers and convolutions.

use candle_core::{DType, Result, Tensor};
use sd_ops::{ConvWeight, LinearWeight, bf16};

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
    /// As it was loaded: on the CPU linear layers that would take more memory when laid out.
    Stored(Tensor),
    /// On the CPU, of a convolution, laid out for products of f32.
    Conv(ConvWeight),
    /// On the CPU, of a linear layer, laid out for products of f32.
    Linear(LinearWeight),
    /// On the CPU, laid out for products of bf16.
    Bf16(bf16::Weight),
}

impl Weight {
    /// Of a linear layer.
    pub(super) fn linear(weight: Tensor) -> Result<Self> {
        Self::new(weight, bf16::Weight::new, |weight| {
            if !weight.dims()[0].is_multiple_of(LinearWeight::PANEL) {
                return Ok(Self::Stored(weight));
            }
            LinearWeight::new(&weight).map(Self::Linear)
        })
    }

    /// Of a gated linear layer.
    pub(super) fn gated(weight: Tensor) -> Result<Self> {
        Self::new(weight, bf16::Weight::gated, |weight| {
            if !weight.dims()[0].is_multiple_of(2 * LinearWeight::PANEL) {
                return Ok(Self::Stored(weight));
            }
            LinearWeight::gated(&weight).map(Self::Linear)
        })
    }

    /// Of a convolution.
    pub(super) fn conv(weight: Tensor) -> Result<Self> {
        Self::new(weight, bf16::Weight::new, |weight| {
            ConvWeight::new(&weight).map(Self::Conv)
        })
    }

    fn new(
        weight: Tensor,
        in_bf16: impl Fn(&Tensor) -> Result<bf16::Weight>,
        in_f32: impl Fn(Tensor) -> Result<Self>,
    ) -> Result<Self> {
        // One number seen everywhere stands for weights that are not there: only their memory is asked for.
        let is_there = weight.stride().iter().any(|stride| *stride > 0);
        if !weight.device().is_cpu() || !is_there {
            return Ok(Self::Stored(weight));
        }
        match Compute::of(weight.dtype()) {
            Compute::F32 => in_f32(weight),
            Compute::Bf16 => in_bf16(&weight).map(Self::Bf16),
        }
    }

    /// Length of a dimension.
    pub(super) fn dim(&self, i: usize) -> usize {
        match self {
            Self::Stored(weight) => weight.dims()[i],
            Self::Conv(weight) => weight.shape()[i],
            Self::Linear(weight) => weight.shape()[i],
            Self::Bf16(weight) => weight.shape()[i],
        }
    }

    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::Stored(weight) => weight.dtype(),
            Self::Conv(weight) => weight.dtype(),
            Self::Linear(weight) => weight.dtype(),
            Self::Bf16(_) => DType::BF16,
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
