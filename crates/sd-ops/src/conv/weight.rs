//! The weights of convolutions.

use std::{borrow::Cow, ops::Range, sync::Arc};

use candle_core::{DType, Result, Tensor};
use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{
    buffer::{room, unwritten},
    from_numbers,
};

/// Inputs of a block, whose kernels lie tap by tap.
pub(super) const BLOCK: usize = 16;

/// The weight of a convolution, laid out for products. Clones share it.
#[derive(Clone)]
pub struct ConvWeight {
    numbers: Numbers,
    /// Outputs and inputs, height and width of the kernel.
    shape: [usize; 4],
}

/// Of each output, of each [`BLOCK`] of inputs, or what is left: `[taps, inputs of the block]`.
#[derive(Clone)]
enum Numbers {
    F32(Arc<Vec<f32>>),
    F16(Arc<Vec<f16>>),
}

impl std::fmt::Debug for ConvWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConvWeight")
            .field("shape", &self.shape)
            .field("dtype", &self.dtype())
            .finish_non_exhaustive()
    }
}

impl ConvWeight {
    /// Of `[outputs, inputs, kernel height, kernel width]`. f16 stays f16.
    ///
    /// # Errors
    /// The tensor has another number of dimensions, is not f32 or f16, or not on the CPU.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let shape: [usize; 4] = weight.dims4()?.into();
        let numbers = from_numbers(
            weight,
            |values| Numbers::F32(Arc::new(blocks(values, shape))),
            |values| Numbers::F16(Arc::new(blocks(values, shape))),
        )?;
        Ok(Self { numbers, shape })
    }

    /// The tensor's shape.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The tensor's dtype.
    pub fn dtype(&self) -> DType {
        match self.numbers {
            Numbers::F32(_) => DType::F32,
            Numbers::F16(_) => DType::F16,
        }
    }

    /// All in f32.
    pub(super) fn widened(&self) -> Cow<'_, [f32]> {
        match &self.numbers {
            Numbers::F32(values) => Cow::Borrowed(values),
            Numbers::F16(values) => {
                let mut wide = unwritten(values.len());
                let chunk = 1 << 14;
                wide.par_chunks_mut(chunk)
                    .zip(values.par_chunks(chunk))
                    .for_each(|(wide, values)| values.convert_to_f32_slice(wide));
                Cow::Owned(wide)
            }
        }
    }

    /// The kernels of an output and of some blocks of inputs, in f32, for which `buffer` may be used if they fit into it.
    pub(super) fn kernels<'a>(
        &'a self,
        output: usize,
        inputs: Range<usize>,
        buffer: &'a mut [f32],
    ) -> &'a [f32] {
        let [_, all, height, width] = self.shape;
        let at = |input: usize| (output * all + input) * height * width;
        let range = at(inputs.start)..at(inputs.end);
        match &self.numbers {
            Numbers::F32(values) => &values[range],
            Numbers::F16(values) => {
                let buffer = &mut buffer[..range.len()];
                values[range].convert_to_f32_slice(buffer);
                buffer
            }
        }
    }
}

/// `values [outputs, inputs, taps]` in blocks.
fn blocks<T: Copy + Default + Send + Sync>(values: &[T], shape: [usize; 4]) -> Vec<T> {
    let [_, inputs, height, width] = shape;
    let taps = height * width;
    let mut laid_out = room(values.len());
    laid_out.resize(values.len(), T::default());
    if values.is_empty() {
        return laid_out;
    }
    let outputs = laid_out.par_chunks_mut(inputs * taps);
    outputs
        .zip(values.par_chunks(inputs * taps))
        .for_each(|(laid_out, values)| {
            let blocks = laid_out.chunks_mut(BLOCK * taps);
            for (laid_out, values) in blocks.zip(values.chunks(BLOCK * taps)) {
                let inputs = values.len() / taps;
                for (tap, row) in laid_out.chunks_exact_mut(inputs).enumerate() {
                    for (v, kernel) in row.iter_mut().zip(values.chunks_exact(taps)) {
                        *v = kernel[tap];
                    }
                }
            }
        });
    laid_out
}
