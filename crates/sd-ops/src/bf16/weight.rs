//! Weights as the products read them.

use std::sync::Arc;

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use half::{bf16, f16};

use super::line::{Line, WIDTH};
use super::product::{Right, STEP, right};

/// The weight of a layer, rounded to bf16 and laid out for the products: about the memory of the same weight as bf16 tensor.
/// Clones share it.
#[derive(Clone)]
pub struct Weight {
    lines: Arc<Vec<Line>>,
    /// Outputs and inputs, of a gated layer with the gates among the outputs; height and width of the kernel.
    shape: [usize; 4],
    gated: bool,
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weight")
            .field("shape", &self.shape)
            .field("gated", &self.gated)
            .finish_non_exhaustive()
    }
}

impl Weight {
    /// Of a linear layer, `[outputs, inputs]`, or of a convolution, `[outputs, inputs, kernel height, kernel width]`.
    ///
    /// # Errors
    /// The tensor has another number of dimensions, is not f32, f16 or bf16, or not on the CPU.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let shape = match *weight.dims() {
            [outputs, inputs] => [outputs, inputs, 1, 1],
            [outputs, inputs, height, width] => [outputs, inputs, height, width],
            _ => bail!(
                "a weight of {:?}, expected 2 or 4 dimensions",
                weight.shape()
            ),
        };
        Self::pack(weight, shape, false)
    }

    /// Of a gated linear layer, see [`linear_geglu`](super::linear_geglu): `[2 * outputs, inputs]`.
    ///
    /// # Errors
    /// As [`new`](Self::new), or the number of rows is odd.
    pub fn gated(weight: &Tensor) -> Result<Self> {
        let (rows, inputs) = weight.dims2()?;
        if !rows.is_multiple_of(2) {
            bail!("a gated layer of {rows} rows, expected an even number");
        }
        Self::pack(weight, [rows, inputs, 1, 1], true)
    }

    fn pack(weight: &Tensor, shape: [usize; 4], gated: bool) -> Result<Self> {
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let mut packed = Self {
            lines: Arc::default(),
            shape,
            gated,
        };
        let lines = match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(storage), Some((start, end))) => match storage {
                CpuStorage::F32(values) => packed.lines_of(&values[start..end], |v| v),
                CpuStorage::F16(values) => packed.lines_of(&values[start..end], f16::to_f32),
                CpuStorage::BF16(values) => packed.lines_of(&values[start..end], bf16::to_f32),
                _ => bail!("a weight of another dtype, expected F32, F16 or BF16"),
            },
            _ => bail!("expected a tensor on the CPU"),
        };
        packed.lines = Arc::new(lines);
        Ok(packed)
    }

    /// `values [outputs, inputs, taps]` as a right matrix, whose steps are the taps of each block of inputs.
    fn lines_of<T: Copy + Sync>(&self, values: &[T], wide: impl Fn(T) -> f32 + Sync) -> Vec<Line> {
        let ([outputs, inputs, ..], taps) = (self.shape, self.taps());
        let output_of = |column: usize| {
            if !self.gated {
                return (column < outputs).then_some(column);
            }
            // Strips are in turn hidden values and gates.
            let (strip, half) = (column / WIDTH, outputs / 2);
            let output = strip / 2 * WIDTH + column % WIDTH;
            (output < half).then_some(strip % 2 * half + output)
        };
        right(self.strips(), self.steps(), |step, row, column| {
            let (input, tap) = (step / taps * WIDTH + row, step % taps);
            match output_of(column) {
                Some(output) if input < inputs => {
                    wide(values[(output * inputs + input) * taps + tap])
                }
                _ => 0.,
            }
        })
    }

    /// The tensor's shape, with a kernel of 1x1 for linear layers.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Whether it is of a gated layer.
    pub(super) fn is_gated(&self) -> bool {
        self.gated
    }

    /// Strips of outputs, or pairs of strips of hidden values and gates.
    pub(super) fn strips(&self) -> usize {
        match self.gated {
            true => 2 * (self.shape[0] / 2).div_ceil(WIDTH),
            false => self.shape[0].div_ceil(WIDTH),
        }
    }

    /// Steps of a product: taps of each block of inputs.
    pub(super) fn steps(&self) -> usize {
        self.shape[1].div_ceil(WIDTH) * self.taps()
    }

    pub(super) fn taps(&self) -> usize {
        self.shape[2] * self.shape[3]
    }

    /// Some strips as a product's right matrix.
    pub(super) fn right(&self, strips: std::ops::Range<usize>) -> Right<'_> {
        let [outputs, inputs, ..] = self.shape;
        let strip = self.steps() * STEP;
        let columns = match self.gated {
            true => WIDTH,
            false => outputs - (strips.end - 1) * WIDTH,
        };
        Right {
            lines: &self.lines[strips.start * strip..strips.end * strip],
            full_steps: inputs / WIDTH * self.taps(),
            pairs: (inputs % WIDTH).div_ceil(2),
            columns,
        }
    }
}
