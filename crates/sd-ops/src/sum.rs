//! Sums of tensors.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use crate::{slice, slice_mut};

/// Elements of a task.
const TASK: usize = 1 << 14;

/// `x += y`, of one shape, contiguous, f32 and on the CPU: all tensors that share the memory of `x` change.
///
/// # Errors
/// A tensor is of another shape, layout, dtype or device.
pub fn add_in_place(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.shape() != y.shape() {
        bail!("{:?} added to {:?}", y.shape(), x.shape());
    }
    x.inplace_op2(y, &Add)
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add_in_place"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let (x, y) = (slice_mut(x, x_layout)?, slice(y, y_layout)?);
        x.par_chunks_mut(TASK)
            .zip(y.par_chunks(TASK))
            .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
        Ok(())
    }
}
