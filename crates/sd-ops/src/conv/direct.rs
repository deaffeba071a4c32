//! Convolution as a matrix product, for any kernel.
//!
//! In `[channels, pixels]` layout the result is `weight [outputs, inputs * taps]` times the matrix whose column `p`
//! holds what the kernel sees at pixel `p`. That matrix is as many times larger than the input as the kernel has
//! taps, so it is made in bands: panels of pixels, as the product reads them.

use rayon::prelude::*;

use super::{ConvWeight, Shape, Window, weight::BLOCK};
use crate::buffer::unwritten;
use crate::product::{PANEL, Panels, Rows, Start};
use crate::strip::{Strip, strips_of};
use crate::tasks;

/// Elements of a band: 16 megabytes.
const BAND: usize = 1 << 22;
/// Output channels and pixels of a task.
const OUTPUTS: usize = 96;
const PIXELS: usize = 512;

/// [`PANEL`] pixels of a sample, or what is left.
#[derive(Clone, Copy)]
struct Panel {
    sample: usize,
    first: usize,
    width: usize,
}

/// Panels of a band.
fn band(shape: &Shape) -> usize {
    let panel = shape.inputs.saturating_mul(shape.taps() * PANEL);
    (BAND / panel.max(1)).max(1)
}

/// Elements that [`conv`] holds at most, beside a weight in f32.
pub(super) fn scratch(shape: &Shape) -> u64 {
    let panels = shape.result_pixels().div_ceil(PANEL);
    let panels = panels.saturating_mul(shape.batch).min(band(shape));
    let depth = shape.inputs.saturating_mul(shape.taps());
    depth.saturating_mul(panels).saturating_mul(PANEL) as u64
}

/// Convolves samples `x` to `out`; the slices' lengths are those of `shape`, that of `bias` a multiple of its outputs.
pub(super) fn conv(shape: &Shape, x: &[f32], weight: &ConvWeight, bias: &[f32], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let pixels = shape.result_pixels();
    let panels: Vec<Panel> = (0..shape.batch)
        .flat_map(|sample| {
            (0..pixels).step_by(PANEL).map(move |first| Panel {
                sample,
                first,
                width: PANEL.min(pixels - first),
            })
        })
        .collect();
    let depth = shape.inputs * shape.taps();
    let most = panels.len().min(band(shape));
    let weight = weight.widened();
    let mut seen = unwritten(most * depth * PANEL);
    for band in panels.chunks(most) {
        let seen = &mut seen[..band.len() * depth * PANEL];
        if depth > 0 {
            gather(shape, x, band, seen);
        }
        tasks::each(plan(shape, band, out), |(): &mut (), task| {
            let Task {
                sample,
                first_output,
                first_panel,
                mut out,
            } = task;
            let bias = &bias[sample * shape.outputs % bias.len()..][first_output..];
            let weight = Rows::new(&weight[first_output * depth..], depth);
            let seen = &seen[first_panel * depth * PANEL..];
            out.set_product(Start::Rows(bias), weight, Panels::new(seen, depth));
        });
    }
}

/// Some output channels at some pixels of a sample.
struct Task<'a> {
    sample: usize,
    first_output: usize,
    /// In the band.
    first_panel: usize,
    out: Strip<'a>,
}

/// What is to be done for the pixels of a band.
fn plan<'a>(shape: &Shape, band: &[Panel], out: &'a mut [f32]) -> Vec<Task<'a>> {
    let pixels = shape.result_pixels();
    let mut tasks = Vec::new();
    let mut first_panel = 0;
    let mut samples = out.chunks_mut(shape.outputs * pixels);
    let mut next_sample = 0;
    for panels in band.chunk_by(|a, b| a.sample == b.sample) {
        let (Some(first), Some(last)) = (panels.first(), panels.last()) else {
            continue;
        };
        let Some(out) = samples.nth(first.sample - next_sample) else {
            break;
        };
        next_sample = first.sample + 1;
        let columns = first.first..last.first + last.width;
        for (i, out) in out.chunks_mut(OUTPUTS * pixels).enumerate() {
            let strips = strips_of(out, pixels, columns.clone(), PIXELS);
            tasks.extend(strips.map(|out| Task {
                sample: first.sample,
                first_output: i * OUTPUTS,
                first_panel: first_panel + (out.first() - columns.start) / PANEL,
                out,
            }));
        }
        first_panel += panels.len();
    }
    tasks
}

/// Writes what the kernel sees at the pixels of a band: `[panels, inputs * taps, PANEL]`, in the order of the weight.
fn gather(shape: &Shape, x: &[f32], band: &[Panel], seen: &mut [f32]) {
    let (plane, taps) = (shape.plane(), shape.taps());
    let panels = seen.par_chunks_mut(shape.inputs * taps * PANEL);
    panels
        .zip(band)
        .flat_map(|(seen, panel)| {
            let blocks = seen.par_chunks_mut(BLOCK * taps * PANEL).enumerate();
            blocks.map(move |(i, seen)| (panel, i * BLOCK, seen))
        })
        .for_each(|(panel, first, seen)| {
            let first = (panel.sample * shape.inputs + first) * plane;
            let inputs = seen.len() / (taps * PANEL);
            let taps = (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| [y, x]));
            for (rows, tap) in seen.chunks_exact_mut(inputs * PANEL).zip(taps) {
                for (input, row) in rows.chunks_exact_mut(PANEL).enumerate() {
                    let plane = &x[first + input * plane..][..plane];
                    gather_row(shape, plane, tap, panel, row);
                }
            }
        });
}

/// Writes what one tap sees at the pixels of a panel.
fn gather_row(shape: &Shape, plane: &[f32], tap: [usize; 2], panel: &Panel, row: &mut [f32]) {
    let (mut rest, mut pixel) = (&mut row[..panel.width], panel.first);
    while !rest.is_empty() {
        let [y, x] = [pixel / shape.result[1], pixel % shape.result[1]];
        let line = rest.len().min(shape.result[1] - x);
        let (now, later) = rest.split_at_mut(line);
        gather_line(shape, plane, tap, [y, x], now);
        (rest, pixel) = (later, pixel + line);
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
    let x = (x + left) * stride + tap[1] - padding;
    if stride == 1 {
        shape.read_line(plane, [y, x], inside);
    } else {
        // Only images whose pixels are not repeated are convolved with a stride.
        let source = &plane[y * width + x..];
        for (out, v) in inside.iter_mut().zip(source.iter().step_by(stride)) {
            *out = *v;
        }
    }
}
