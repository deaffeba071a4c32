//! The one tensor operation that solvers are made of.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

/// Elements summed at a time: the accumulators stay in the first-level cache.
const CHUNK: usize = 1024;

/// The weighted sum of tensors of one shape, f32. Terms of weight zero are not read, so that an
/// infinity under a zero weight does no harm.
///
/// On the CPU this is one pass with f64 accumulators, so a step rounds once, whatever its number of
/// terms.
pub(crate) fn combine(terms: &[(f64, &Tensor)]) -> candle_core::Result<Tensor> {
    let mut used = terms.iter().filter(|(weight, _)| *weight != 0.0).peekable();
    match (used.peek(), terms.first()) {
        (Some((_, tensor)), _) if matches!(tensor.device(), Device::Cpu) => {
            combine_on_cpu(&used.copied().collect::<Vec<_>>())
        }
        (Some(_), _) => {
            let mut used =
                used.map(|(weight, tensor)| tensor.to_dtype(DType::F32)?.affine(*weight, 0.0));
            let first = used
                .next()
                .unwrap_or_else(|| candle_core::bail!("no terms"))?;
            used.try_fold(first, |sum, term| sum + term?)
        }
        (None, Some((_, tensor))) => tensor.to_dtype(DType::F32)?.zeros_like(),
        (None, None) => candle_core::bail!("a sum of no tensors"),
    }
}

fn combine_on_cpu(terms: &[(f64, &Tensor)]) -> candle_core::Result<Tensor> {
    let shape = terms[0].1.shape();
    let mut tensors = Vec::with_capacity(terms.len());
    for (weight, tensor) in terms {
        if tensor.shape() != shape {
            candle_core::bail!("cannot add {:?} to {shape:?}", tensor.shape());
        }
        tensors.push((*weight, tensor.to_dtype(DType::F32)?.contiguous()?));
    }
    let storages: Vec<_> = tensors
        .iter()
        .map(|(weight, tensor)| (*weight, tensor.storage_and_layout()))
        .collect();
    let mut inputs = Vec::with_capacity(storages.len());
    for (weight, (storage, layout)) in &storages {
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&**storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("expected contiguous f32 tensors on the CPU");
        };
        inputs.push((*weight, &values[start..end]));
    }

    let count = shape.elem_count();
    let mut sum = Vec::with_capacity(count);
    let mut accumulators = [0f64; CHUNK];
    for start in (0..count).step_by(CHUNK) {
        let end = count.min(start + CHUNK);
        let accumulators = &mut accumulators[..end - start];
        accumulators.fill(0.0);
        for (weight, values) in &inputs {
            for (accumulator, value) in accumulators.iter_mut().zip(&values[start..end]) {
                *accumulator += weight * f64::from(*value);
            }
        }
        sum.extend(accumulators.iter().map(|value| *value as f32));
    }
    Tensor::from_vec(sum, shape, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_across_chunks_and_layouts() {
        let device = Device::Cpu;
        let a = Tensor::arange(0f32, 3000.0, &device)
            .unwrap()
            .reshape((50, 60))
            .unwrap();
        let b = Tensor::arange(0f32, 3000.0, &device)
            .unwrap()
            .reshape((60, 50))
            .unwrap()
            .t()
            .unwrap();
        let sum = combine(&[(2.0, &a), (0.0, &a), (-0.5, &b)]).unwrap();
        let expected = ((&a * 2.0).unwrap() - (&b * 0.5).unwrap()).unwrap();
        assert_eq!(
            sum.to_vec2::<f32>().unwrap(),
            expected.to_vec2::<f32>().unwrap()
        );
    }

    #[test]
    fn a_zero_weight_hides_infinities() {
        let infinite = Tensor::new(&[f32::INFINITY], &Device::Cpu).unwrap();
        let one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        assert_eq!(
            combine(&[(0.0, &infinite), (3.0, &one)])
                .unwrap()
                .to_vec1::<f32>()
                .unwrap(),
            [3.0]
        );
        assert_eq!(
            combine(&[(0.0, &infinite)])
                .unwrap()
                .to_vec1::<f32>()
                .unwrap(),
            [0.0]
        );
    }

    #[test]
    fn refuses_shapes_that_differ() {
        let a = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let b = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(combine(&[(1.0, &a), (1.0, &b)]).is_err());
    }
}
