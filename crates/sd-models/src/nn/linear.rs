//! `y = x W^T + b`.

use candle_core::{Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::{Ledger, cpu, each_sample, on_cpu, widened};

/// A linear layer: weight `[outputs, inputs]`, optional bias `[outputs]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((outputs, inputs), "weight")?;
        Ok(Self {
            weight,
            bias: Some(vb.get(outputs, "bias")?),
        })
    }

    /// Reads `weight`; there is no bias.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get((outputs, inputs), "weight")?,
            bias: None,
        })
    }

    /// Reads `weight`, stored as the 1x1 convolution `[outputs, inputs, 1, 1]`, and `bias`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn from_conv(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb
            .get((outputs, inputs, 1, 1), "weight")?
            .squeeze(3)?
            .squeeze(2)?;
        Ok(Self {
            weight,
            bias: Some(vb.get(outputs, "bias")?),
        })
    }

    /// The memory of [`forward`](Self::forward).
    pub(crate) fn replay(&self, memory: &mut Ledger, x: &[usize; 3]) -> [usize; 3] {
        let [batch, rows, _] = *x;
        let y = [batch, rows, self.weight.dims()[0]];
        let weight = memory.widened(&self.weight);
        memory.hold_bytes(weight);
        memory.hold(&y);
        if memory.is_gpu() {
            if self.bias.is_some() {
                memory.pass(&y);
            }
        } else if batch > 1 {
            memory.pass(&y[1..]);
        }
        memory.release_bytes(weight);
        y
    }

    /// `[batch, .., inputs]` to `[batch, .., outputs]`.
    ///
    /// # Errors
    /// The last dimension is not `inputs`, or there is no other.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = widened(&self.weight, x)?.t()?;
        let inputs = weight.dim(0)?;
        let mut dims = x.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == inputs => *last = weight.dim(1)?,
            _ => candle_core::bail!("linear layer of {inputs} inputs applied to {:?}", x.shape()),
        }
        let y = each_sample(x, |x| x.reshape(((), inputs))?.matmul(&weight))?;
        let y = y.reshape(Shape::from(dims))?;
        match &self.bias {
            None => Ok(y),
            Some(bias) if on_cpu(&y) => {
                y.inplace_op2(&widened(bias, x)?, &cpu::AddBias)?;
                Ok(y)
            }
            Some(bias) => y.broadcast_add(&widened(bias, x)?),
        }
    }
}
