//! Tensors in another order: Candle's own copies run on one thread.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::buffer::unwritten;
use crate::isa::vectorized;
use crate::transpose::transpose as transpose_square;
use crate::values;

/// Elements of a task.
const TASK: usize = 1 << 14;
/// Side of a square that is transposed at a time.
const SIDE: usize = 16;

/// `[batch, rows, columns]` to a contiguous `[batch, columns, rows]`, f32 on the CPU. No gradient is recorded.
///
/// # Errors
/// The tensor has another number of dimensions, dtype or device.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let (batch, rows, columns) = x.dims3()?;
    let x = x.contiguous()?;
    let mut out = unwritten(x.elem_count());
    if !out.is_empty() {
        let (storage, layout) = x.storage_and_layout();
        let x = values(&storage, layout)?;
        let matrix = rows * columns;
        let parts = columns.div_ceil(SIDE);
        let mut tasks: Vec<_> = out
            .chunks_mut(matrix)
            .flat_map(|out| out.chunks_mut(SIDE * rows))
            .collect();
        tasks
            .par_iter_mut()
            .enumerate()
            .with_min_len((TASK / (SIDE * rows)).max(1))
            .for_each(|(i, out)| {
                let x = &x[i / parts * matrix..][..matrix];
                vectorized!(turn(x, columns, i % parts * SIDE, out, rows));
            });
    }
    Tensor::from_vec(out, (batch, columns, rows), &Device::Cpu)
}

/// Writes some columns of `x` from `first` on as rows of `rows` elements.
#[inline(always)]
fn turn(x: &[f32], columns: usize, first: usize, out: &mut [f32], rows: usize) {
    let width = out.len() / rows;
    for row in (0..rows).step_by(SIDE) {
        let height = SIDE.min(rows - row);
        let mut square = [[0u32; SIDE]; SIDE];
        for (i, to) in square.iter_mut().enumerate().take(height) {
            let from = &x[(row + i) * columns + first..][..width];
            match from.first_chunk::<SIDE>() {
                Some(from) => *to = from.map(f32::to_bits),
                None => to
                    .iter_mut()
                    .zip(from)
                    .for_each(|(to, v)| *to = v.to_bits()),
            }
        }
        transpose_square(&mut square);
        for (out, from) in out.chunks_exact_mut(rows).zip(&square) {
            let out = &mut out[row..row + height];
            match out.first_chunk_mut::<SIDE>() {
                Some(out) => *out = from.map(f32::from_bits),
                None => out
                    .iter_mut()
                    .zip(from)
                    .for_each(|(to, v)| *to = f32::from_bits(*v)),
            }
        }
    }
}

/// `[batch, a, ..]` and `[batch, b, ..]` as `[batch, a + b, ..]`, f32 on the CPU. No gradient is recorded.
///
/// # Errors
/// The tensors differ in another dimension, or one is of another dtype or device.
pub fn concat(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [batch, channels, rest @ ..] = x.dims() else {
        bail!("concatenation of {:?}, expected two dimensions", x.shape());
    };
    let fits = y.rank() == x.rank() && y.dims()[0] == *batch && y.dims()[2..] == *rest;
    if !fits {
        bail!("concatenation of {:?} and {:?}", x.shape(), y.shape());
    }
    let dims = [&[*batch, channels + y.dims()[1]], rest].concat();
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let mut out = unwritten(x.elem_count() + y.elem_count());
    if !out.is_empty() {
        let [x, y] = [&x, &y].map(Tensor::storage_and_layout);
        let (x, y) = (values(&x.0, x.1)?, values(&y.0, y.1)?);
        let (of_x, of_y) = (x.len() / batch, y.len() / batch);
        let tasks: Vec<_> = out
            .chunks_mut(of_x + of_y)
            .enumerate()
            .flat_map(|(i, out)| {
                let (first, second) = out.split_at_mut(of_x);
                let first = first.chunks_mut(TASK).zip(x[i * of_x..].chunks(TASK));
                first.chain(second.chunks_mut(TASK).zip(y[i * of_y..].chunks(TASK)))
            })
            .collect();
        tasks
            .into_par_iter()
            .for_each(|(out, from)| out.copy_from_slice(&from[..out.len()]));
    }
    Tensor::from_vec(out, dims, &Device::Cpu)
}
