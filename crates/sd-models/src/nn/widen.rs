//! Weights from 16 bits to 32.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, WithDType, bail};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Elements of a task.
const TASK: usize = 1 << 14;

/// The elements of a contiguous tensor.
fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// f16 or bf16 to f32.
pub(super) struct Widen;

impl CustomOp1 for Widen {
    fn name(&self) -> &'static str {
        "widen"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn widen<T: WithDType>(x: &[T], convert: impl Fn(&[T], &mut [f32]) + Sync) -> CpuStorage {
            let mut out = vec![0f32; x.len()];
            out.par_chunks_mut(TASK)
                .zip(x.par_chunks(TASK))
                .for_each(|(out, x)| convert(x, out));
            CpuStorage::F32(out)
        }
        let out = match x {
            CpuStorage::F16(_) => widen(slice::<half::f16>(x, layout)?, |x, out| {
                x.convert_to_f32_slice(out)
            }),
            CpuStorage::BF16(_) => widen(slice::<half::bf16>(x, layout)?, |x, out| {
                x.convert_to_f32_slice(out)
            }),
            _ => bail!("only f16 and bf16 widen"),
        };
        Ok((out, layout.shape().clone()))
    }
}
