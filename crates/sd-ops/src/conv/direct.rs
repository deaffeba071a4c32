//! Convolution as a matrix product, for any kernel.
//!
//! In `[channels, pixels]` layout the result is `weight [outputs, inputs * taps]` times the matrix whose column `p`
//! holds what the kernel sees at pixel `p`. That matrix is as many times larger than the input as the kernel has
//! taps, so it is made in blocks that stay in a core's cache: some pixels, a few channels. A 1x1 kernel needs none.
//!
//! The cuts depend on the sizes of one sample alone, so neither the threads nor the batch change a sum's order.

use rayon::prelude::*;

use super::{Shape, Window};
use crate::strip::{Rows, Strip, strips};

/// Pixels of a task.
const PIXELS: usize = 1024;
/// Elements of a block of the matrix: half a megabyte.
const BLOCK: usize = 1 << 17;
/// Tasks that a sample is cut into at least, if it has the channels.
const TASKS: usize = 4;
/// Output channels that a task has at least: making the block must not outweigh the product.
const OUTPUTS: usize = 128;

/// The output channels from `first_output` on at some pixels of one sample.
struct Task<'a> {
    sample: usize,
    first_output: usize,
    out: Strip<'a>,
}

/// Elements that [`conv`] holds at most: each thread a block of the matrix.
pub(super) fn scratch(shape: &Shape) -> u64 {
    if shape.is_point() {
        return 0;
    }
    let channel = shape
        .taps()
        .saturating_mul(shape.result_pixels().min(PIXELS));
    let block = BLOCK.max(channel).min(channel.saturating_mul(shape.inputs));
    (block as u64).saturating_mul(rayon::current_num_threads() as u64)
}

/// Convolves samples `x` to `out`; the slices' lengths are those of `shape`.
pub(super) fn conv(shape: &Shape, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let pixels = shape.result_pixels();
    let outputs = shape
        .outputs
        .div_ceil(TASKS.div_ceil(pixels.div_ceil(PIXELS)))
        .max(OUTPUTS.min(shape.outputs));
    let mut tasks = Vec::new();
    for (sample, out) in out.chunks_mut(shape.outputs * pixels).enumerate() {
        for (i, out) in out.chunks_mut(outputs * pixels).enumerate() {
            tasks.extend(strips(out, pixels, PIXELS).map(|out| Task {
                sample,
                first_output: i * outputs,
                out,
            }));
        }
    }
    tasks
        .into_par_iter()
        .for_each_init(Vec::new, |block, task| {
            run(shape, x, weight, bias, task, block)
        });
}

fn run(
    shape: &Shape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    Task {
        sample,
        first_output,
        mut out,
    }: Task,
    block: &mut Vec<f32>,
) {
    for row in 0..out.rows() {
        out.row(row).fill(bias[first_output + row]);
    }
    if x.is_empty() {
        return;
    }
    let pixels = shape.image_pixels();
    let depth = shape.inputs * shape.taps();
    let x = &x[sample * shape.inputs * pixels..][..shape.inputs * pixels];
    let weight = &weight[first_output * depth..];
    let (first, width) = (out.first(), out.width());
    if shape.is_point() {
        let (weight, x) = (
            Rows::new(weight, depth),
            Rows::new(x, pixels).columns_from(first),
        );
        return out.add_product(weight, x, depth);
    }
    let channels = (BLOCK / (shape.taps() * width)).max(1);
    for (i, planes) in x.chunks(channels * pixels).enumerate() {
        let depth_of_block = planes.len() / pixels * shape.taps();
        block.resize(depth_of_block * width, 0.);
        gather(shape, planes, first, width, block);
        let weight = &weight[i * channels * shape.taps()..];
        out.add_product(
            Rows::new(weight, depth),
            Rows::new(block, width),
            depth_of_block,
        );
    }
}

/// Writes what each tap of the kernel sees of each of `planes` at the `width` pixels from `first` on.
fn gather(shape: &Shape, planes: &[f32], first: usize, width: usize, block: &mut [f32]) {
    let taps = (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| [y, x]));
    let rows = planes
        .chunks_exact(shape.image_pixels())
        .flat_map(|plane| taps.clone().map(move |tap| (plane, tap)));
    for (row, (plane, tap)) in block.chunks_exact_mut(width).zip(rows) {
        let (mut rest, mut pixel) = (row, first);
        while !rest.is_empty() {
            let [y, x] = [pixel / shape.result[1], pixel % shape.result[1]];
            let line = rest.len().min(shape.result[1] - x);
            let (now, later) = rest.split_at_mut(line);
            gather_line(shape, plane, tap, [y, x], now);
            (rest, pixel) = (later, pixel + line);
        }
    }
}

/// Writes what one tap sees along a line of the result that starts at `[y, x]`.
fn gather_line(
    shape: &Shape,
    plane: &[f32],
    tap: [usize; 2],
    [y, x]: [usize; 2],
    line: &mut [f32],
) {
    let [height, width] = shape.image;
    let Window { stride, padding } = shape.window;
    let Some(y) = (y * stride + tap[0])
        .checked_sub(padding)
        .filter(|y| *y < height)
    else {
        return line.fill(0.);
    };
    // The tap is inside the image from the result's column `left` on and before `right`.
    let left = padding.saturating_sub(tap[1]).div_ceil(stride);
    let right = (width + padding).saturating_sub(tap[1]).div_ceil(stride);
    let clip = |column: usize| column.saturating_sub(x).min(line.len());
    let (left, right) = (clip(left), clip(right));
    let (before, rest) = line.split_at_mut(left);
    let (inside, after) = rest.split_at_mut(right.saturating_sub(left));
    before.fill(0.);
    after.fill(0.);
    if inside.is_empty() {
        return;
    }
    let source = &plane[y * width + (x + left) * stride + tap[1] - padding..];
    if stride == 1 {
        inside.copy_from_slice(&source[..inside.len()]);
    } else {
        for (out, v) in inside.iter_mut().zip(source.iter().step_by(stride)) {
            *out = *v;
        }
    }
}
