//! `y = x W^T + b`.

use candle_core::{Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use sd_ops::{LinearWeight, bf16};

use super::{Compute, Ledger, activation::geglu, on_cpu, weight::Weight, widened};

/// A linear layer: weight `[outputs, inputs]`, optional bias `[outputs]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` and `bias`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: Weight::linear(vb.get((outputs, inputs), "weight")?)?,
            bias: Some(vb.get(outputs, "bias")?),
        })
    }

    /// Reads `weight` and `bias` of a layer for [`forward_geglu`](Self::forward_geglu), whose weight is `[2 * outputs, inputs]`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn gated(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: Weight::gated(vb.get((2 * outputs, inputs), "weight")?)?,
            bias: Some(vb.get(2 * outputs, "bias")?),
        })
    }

    /// Reads `weight`; there is no bias.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: Weight::linear(vb.get((outputs, inputs), "weight")?)?,
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
            weight: Weight::linear(weight)?,
            bias: Some(vb.get(outputs, "bias")?),
        })
    }

    /// The memory of [`forward`](Self::forward).
    pub(crate) fn replay(&self, memory: &mut Ledger, x: &[usize; 3]) -> [usize; 3] {
        let [batch, rows, _] = *x;
        let y = [batch, rows, self.weight.dim(0)];
        memory.hold(&y);
        if memory.is_gpu() && self.bias.is_some() {
            memory.pass(&y);
        }
        y
    }

    /// The memory of [`forward_geglu`](Self::forward_geglu).
    pub(super) fn replay_geglu(&self, memory: &mut Ledger, x: &[usize; 3]) -> [usize; 3] {
        let [batch, rows, _] = *x;
        let hidden = [batch, rows, self.weight.dim(0) / 2];
        if !memory.is_gpu() {
            memory.hold(&hidden);
            return hidden;
        }
        let gated = self.replay(memory, x);
        memory.hold(&hidden);
        memory.release(&gated);
        hidden
    }

    /// `[batch, .., inputs]` to `[batch, .., outputs]`.
    ///
    /// # Errors
    /// The last dimension is not `inputs`, or there is no other.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        let bias = self.bias(x)?;
        let weight = match &self.weight {
            Weight::Bf16(weight) => return bf16::linear(x, weight, bias.as_ref()),
            Weight::Linear(weight) => return sd_ops::linear(x, weight, bias.as_ref()),
            Weight::Stored(weight) if on_cpu(x) => {
                return sd_ops::linear(x, &LinearWeight::new(weight)?, bias.as_ref());
            }
            Weight::Stored(weight) => widened(weight, x)?.t()?,
            Weight::Conv(weight) => bail!("{weight:?} is not of a linear layer"),
        };
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = weight.dim(1)?;
        }
        let y = x.flatten_to(x.rank() - 2)?.matmul(&weight)?;
        let y = y.reshape(Shape::from(dims))?;
        match bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(&bias),
        }
    }

    /// [`forward`](Self::forward) of a layer made by [`gated`](Self::gated), seen as hidden values and gates side by side, multiplied as `hidden * gelu(gate)`:
    /// `[batch, .., outputs / 2]` (Shazeer 2020, eq. 6).
    ///
    /// # Errors
    /// As [`forward`](Self::forward), or there is an odd number of outputs.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        let bias = self.bias(x)?;
        match &self.weight {
            Weight::Bf16(weight) => bf16::linear_geglu(x, weight, bias.as_ref()),
            Weight::Linear(weight) => sd_ops::linear_geglu(x, weight, bias.as_ref()),
            Weight::Stored(weight) if on_cpu(x) => {
                sd_ops::linear_geglu(x, &LinearWeight::gated(weight)?, bias.as_ref())
            }
            Weight::Stored(_) | Weight::Conv(_) => geglu(&self.forward(x)?),
        }
    }

    /// How it multiplies on the CPU.
    pub(crate) fn compute(&self) -> Compute {
        self.weight.compute()
    }

    /// The bias in the dtype of `like`.
    fn bias(&self, like: &Tensor) -> Result<Option<Tensor>> {
        let bias = self.bias.as_ref();
        bias.map(|bias| widened(bias, like)).transpose()
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let inputs = self.weight.dim(1);
        match x.dims() {
            [_, .., last] if *last == inputs => Ok(()),
            _ => bail!("linear layer of {inputs} inputs applied to {:?}", x.shape()),
        }
    }
}
