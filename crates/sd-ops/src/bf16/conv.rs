//! Two-dimensional convolution.
//!
//! The image is laid out as lines of 32 channels of a pixel. What a tap of the kernel sees at neighbouring pixels then are
//! neighbouring lines, in place: the image shifted. To that end the image is padded, and rows of pixels follow one another, so
//! that a shift is the same number of lines everywhere; the sums at the padding between two rows are of no use. With a stride of
//! `s` there are `s * s` images, of every `s`th pixel in both directions.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::Weight;
use super::line::{Line, WIDTH, pair};
use super::product::{GROUP, Left, Sums, product};
use crate::buffer::unwritten;
use crate::conv::{Shape, Window};
use crate::isa::vectorized;
use crate::norm::NormedChannels;
use crate::strip::{Strip, Tile, tiles};
use crate::tasks;
use crate::transpose::transpose;
use crate::values;

/// Most lines of the images of a task: a megabyte.
const LINES: usize = 1 << 14;
/// Most pixels of a task, with those between rows, and least, where there are so many.
const PIXELS: std::ops::RangeInclusive<usize> = 256..=2048;

/// As [`sd_ops::conv2d`](crate::conv2d).
///
/// # Errors
/// As there, or the weight is of a gated layer.
pub fn conv2d(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    window: Window,
) -> Result<Tensor> {
    conv2d_with(x, weight, bias, window, Beside::default())
}

/// What a convolution does beside, for which others would pass over memory again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// A norm of the input, of [`GroupNorm::channels`](crate::GroupNorm::channels).
    pub norm: Option<&'a NormedChannels>,
    /// What is added to the result, of its shape.
    pub residual: Option<&'a Tensor>,
}

/// [`conv2d`] of the normed `x`, plus a residual.
///
/// # Errors
/// As [`conv2d`], or the norm is of another number of channels, or the residual of another shape than the result.
pub fn conv2d_with(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    window: Window,
    beside: Beside,
) -> Result<Tensor> {
    let shape = Shape::new(x.dims4()?.into(), weight.shape(), window)?;
    run(shape, x, weight, bias, beside)
}

/// As [`sd_ops::conv2d_doubled`](crate::conv2d_doubled).
///
/// # Errors
/// As there, or the weight is of a gated layer.
pub fn conv2d_doubled(
    x: &Tensor,
    size: [usize; 2],
    weight: &Weight,
    bias: Option<&Tensor>,
    padding: usize,
) -> Result<Tensor> {
    let shape = Shape::doubled(x.dims4()?.into(), size, weight.shape(), padding)?;
    run(shape, x, weight, bias, Beside::default())
}

/// Bytes that [`conv2d`] holds at most during the call beside its arguments and its result, for an `x` and a `weight` of these
/// sizes.
///
/// # Errors
/// The sizes do not fit together.
pub fn conv2d_scratch(x: [usize; 4], weight: [usize; 4], window: Window) -> Result<u64> {
    let shape = Shape::new(x, weight, window)?;
    let plan = Plan::new(&shape);
    let image = plan.lines.saturating_mul(size_of::<Line>());
    let sums = plan.groups.saturating_mul(GROUP * size_of::<Sums>());
    let threads = rayon::current_num_threads();
    Ok(image.saturating_add(sums).saturating_mul(threads) as u64)
}

fn run(
    shape: Shape,
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    Beside { norm, residual }: Beside,
) -> Result<Tensor> {
    if weight.is_gated() {
        bail!("{weight:?} is not of a convolution");
    }
    let [height, width] = shape.result;
    let dims = [shape.batch, shape.outputs, height, width];
    if let Some(norm) = norm.filter(|norm| norm.len() != shape.batch * shape.inputs) {
        bail!("norms of {} channels of {:?}", norm.len(), x.shape());
    }
    let residual = match residual {
        Some(residual) if residual.dims() == dims => Some(residual.contiguous()?),
        Some(residual) => bail!("residual {:?}, expected {dims:?}", residual.shape()),
        None => None,
    };
    let bias = shape.bias(bias)?;
    let mut out = unwritten(shape.result_len()?);
    let x = x.contiguous()?;
    if !out.is_empty() {
        let [x, bias] = [&x, &bias].map(Tensor::storage_and_layout);
        let residual = residual.as_ref().map(Tensor::storage_and_layout);
        let residual = residual
            .as_ref()
            .map(|(storage, layout)| values(storage, layout));
        let plan = Plan::new(&shape);
        let conv = Conv {
            x: values(&x.0, x.1)?,
            bias: values(&bias.0, bias.1)?,
            norm,
            residual: residual.transpose()?,
            steps: plan.steps(&shape),
            shape,
            plan,
            weight,
        };
        conv.run(&mut out);
    }
    Tensor::from_vec(out, &dims, &Device::Cpu)
}

/// How a convolution is cut into tasks.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Rows and columns of the result that a task makes at most.
    tile: [usize; 2],
    /// Outputs that a task makes at most.
    outputs: usize,
    /// Height and width of an image: a tile and what the kernel sees beyond.
    image: [usize; 2],
    /// Groups of pixels of a task.
    groups: usize,
    /// All images of a task, and lines that are read after them and do not count.
    lines: usize,
}

impl Plan {
    fn new(shape: &Shape) -> Self {
        let stride = shape.window.stride;
        let [above, beside] = shape.kernel.map(|side| (side - 1) / stride);
        let [height, width] = shape.result;
        let images = (stride * stride).saturating_mul(shape.inputs.div_ceil(WIDTH).max(1));
        // What one image may have. Wide rows are written well, high tiles see less beyond them.
        let pixels = (LINES / images).min(*PIXELS.end());
        let columns = (pixels / 8)
            .next_multiple_of(64)
            .clamp(64, 256)
            .min(width)
            .max(1);
        let fitting = (pixels / columns.saturating_add(beside)).saturating_sub(above);
        // Four tasks a thread; if that takes too small tiles, the outputs are cut, too.
        let threads = rayon::current_num_threads();
        let strips = shape
            .batch
            .max(1)
            .saturating_mul(width.div_ceil(columns).max(1));
        let fair = height.div_ceil((4 * threads).div_ceil(strips));
        let rows = fitting.min(fair.max(PIXELS.start().div_ceil(columns)));
        let rows = rows.clamp(1, height.max(1));
        let tiles = strips.saturating_mul(height.div_ceil(rows).max(1));
        let parts = (4 * threads).div_ceil(tiles);
        let outputs = shape.outputs.div_ceil(parts).next_multiple_of(WIDTH);
        let image = [rows.saturating_add(above), columns.saturating_add(beside)];
        let [_, width] = image;
        Self {
            tile: [rows, columns],
            outputs,
            image,
            groups: rows.saturating_mul(width).div_ceil(GROUP),
            lines: images
                .saturating_mul(image[0].saturating_mul(width))
                .saturating_add(GROUP + beside),
        }
    }

    /// Where a tap of a block of input channels finds the first pixel of the result.
    fn steps(&self, shape: &Shape) -> Vec<usize> {
        let stride = shape.window.stride;
        let blocks = shape.inputs.div_ceil(WIDTH);
        let [height, width] = self.image;
        let image = height * width;
        let taps = || (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| [y, x]));
        (0..blocks)
            .flat_map(|block| {
                taps().map(move |[y, x]| {
                    let phase = y % stride * stride + x % stride;
                    (phase * blocks + block) * image + y / stride * width + x / stride
                })
            })
            .collect()
    }
}

struct Conv<'a> {
    shape: Shape,
    plan: Plan,
    x: &'a [f32],
    weight: &'a Weight,
    bias: &'a [f32],
    norm: Option<&'a NormedChannels>,
    residual: Option<&'a [f32]>,
    steps: Vec<usize>,
}

/// Some outputs of a tile of a sample.
struct Task<'a> {
    sample: usize,
    first_output: usize,
    tile: Tile<'a>,
}

#[derive(Default)]
struct Buffers {
    lines: Vec<Line>,
    sums: Vec<Sums>,
}

impl Conv<'_> {
    fn run(&self, out: &mut [f32]) {
        let pixels = self.shape.result_pixels();
        let mut tasks = Vec::new();
        for (sample, out) in out.chunks_mut(self.shape.outputs * pixels).enumerate() {
            for (i, out) in out.chunks_mut(self.plan.outputs * pixels).enumerate() {
                let tiles = tiles(out, self.shape.result, self.plan.tile);
                tasks.extend(tiles.into_iter().map(|tile| Task {
                    sample,
                    first_output: i * self.plan.outputs,
                    tile,
                }));
            }
        }
        tasks::each(tasks, |buffers, task| self.task(task, buffers));
    }

    fn task(&self, mut task: Task, Buffers { lines, sums }: &mut Buffers) {
        lines.resize(self.plan.lines, Line::ZERO);
        vectorized!(self.read(&task, lines));
        let [_, width] = self.plan.image;
        let left = Left {
            lines,
            steps: &self.steps,
            groups: (task.tile.rows.len() * width).div_ceil(GROUP),
        };
        sums.resize(left.groups * GROUP, [0.; WIDTH]);
        let outputs = task.tile.rows.first().map_or(0, Strip::rows);
        for first in (0..outputs).step_by(WIDTH) {
            let strip = (task.first_output + first) / WIDTH;
            product(left, self.weight.right(strip..strip + 1), sums);
            vectorized!(self.write(&mut task, first, sums));
        }
    }

    /// Writes the images that a task sees.
    #[inline(always)]
    fn read(&self, task: &Task, lines: &mut [Line]) {
        /// Pixels at a time.
        const SPAN: usize = 64;
        let Shape { inputs, window, .. } = self.shape;
        let [height, width] = self.plan.image;
        let [first_row, first_column] = task.tile.first;
        // An image without pixels has none to read; what the kernel sees is padding.
        let plane = self.shape.plane();
        let x = &self.x[task.sample * inputs * plane..][..inputs * plane];
        let mut span = [[0f32; SPAN]; WIDTH];
        let images = lines.chunks_exact_mut(height * width);
        for (i, image) in images
            .take(window.stride.pow(2) * inputs.div_ceil(WIDTH))
            .enumerate()
        {
            let (phase, block) = (i / inputs.div_ceil(WIDTH), i % inputs.div_ceil(WIDTH));
            let phase = [phase / window.stride, phase % window.stride];
            let channels = WIDTH.min(inputs - block * WIDTH);
            let x = &x[block * WIDTH * plane..][..channels * plane];
            span[channels..].fill([0.; SPAN]);
            for (row, line) in image.chunks_exact_mut(width).enumerate() {
                for (i, line) in line.chunks_mut(SPAN).enumerate() {
                    let pixel = [first_row + row, first_column + i * SPAN];
                    let planes = x.chunks_exact(plane.max(1));
                    for (j, (span, plane)) in span.iter_mut().zip(planes).enumerate() {
                        let span = &mut span[..line.len()];
                        let inside = self.read_span(plane, phase, pixel, span);
                        if let Some(norm) = self.norm {
                            let channel = task.sample * inputs + block * WIDTH + j;
                            norm.apply(channel, &mut span[inside]);
                        }
                    }
                    for (i, line) in line.chunks_mut(16).enumerate() {
                        let mut pairs = [[0u32; 16]; 16];
                        for (pairs, span) in pairs.iter_mut().zip(span.as_chunks::<2>().0) {
                            let [first, second] = span.each_ref().map(|s| &s[i * 16..][..16]);
                            for (j, to) in pairs.iter_mut().enumerate() {
                                *to = pair(first[j], second[j]);
                            }
                        }
                        transpose(&mut pairs);
                        for (line, pairs) in line.iter_mut().zip(pairs) {
                            *line = Line(pairs);
                        }
                    }
                }
            }
        }
    }

    /// Pixels of a channel's `plane` from one of an image's on, with zeros beyond its sides; which of them lie inside.
    #[inline(always)]
    fn read_span(
        &self,
        plane: &[f32],
        phase: [usize; 2],
        pixel: [usize; 2],
        out: &mut [f32],
    ) -> Range<usize> {
        let Window { stride, padding } = self.shape.window;
        let [height, width] = self.shape.image;
        let [y, x] = [0, 1].map(|i| pixel[i] * stride + phase[i]);
        let Some(y) = y.checked_sub(padding).filter(|y| *y < height) else {
            out.fill(0.);
            return 0..0;
        };
        // Inside the image from `left` on and before `right`.
        let left = padding.saturating_sub(x).div_ceil(stride).min(out.len());
        let right = (width + padding).saturating_sub(x).div_ceil(stride);
        let right = right.clamp(left, out.len());
        out[..left].fill(0.);
        out[right..].fill(0.);
        let inside = &mut out[left..right];
        if inside.is_empty() {
            return 0..0;
        }
        let x = x + left * stride - padding;
        if stride == 1 {
            self.shape.read_line(plane, [y, x], inside);
        } else {
            // Only images whose pixels are not repeated are convolved with a stride.
            let source = plane[y * width + x..].iter().step_by(stride);
            for (out, v) in inside.iter_mut().zip(source) {
                *out = *v;
            }
        }
        left..right
    }

    /// Writes the sums of [`WIDTH`] outputs from the task's output `first` on.
    #[inline(always)]
    fn write(&self, task: &mut Task, first: usize, sums: &[Sums]) {
        const SIDE: usize = 16;
        let outputs = task.sample * self.shape.outputs + task.first_output;
        let bias = &self.bias[outputs % self.bias.len() + first..];
        let pixels = self.shape.result_pixels();
        for (row, sums) in task
            .tile
            .rows
            .iter_mut()
            .zip(sums.chunks(self.plan.image[1]))
        {
            for side in [0, SIDE] {
                let first = first + side;
                if first >= row.rows() {
                    break;
                }
                let bias = &bias[side..];
                for (i, sums) in sums[..row.width()].chunks(SIDE).enumerate() {
                    let mut square = [[0u32; SIDE]; SIDE];
                    for (square, sums) in square.iter_mut().zip(sums) {
                        for (to, sum) in square.iter_mut().zip(&sums[side..]) {
                            *to = sum.to_bits();
                        }
                    }
                    transpose(&mut square);
                    let pixel = row.first() + i * SIDE;
                    let of_outputs = (first..row.rows()).zip(&square).zip(bias);
                    for ((output, square), bias) in of_outputs {
                        let out = &mut row.row(output)[i * SIDE..][..sums.len()];
                        let residual = self.residual.map(|residual| {
                            &residual[(outputs + output) * pixels + pixel..][..sums.len()]
                        });
                        match (<&mut [f32; SIDE]>::try_from(&mut *out), residual) {
                            (Ok(out), None) => add(out, square, *bias),
                            (Ok(out), Some(residual)) => {
                                add(out, square, *bias);
                                out.iter_mut().zip(residual).for_each(|(out, v)| *out += v);
                            }
                            (Err(_), residual) => {
                                add(out, square, *bias);
                                let residual = residual.into_iter().flatten();
                                out.iter_mut().zip(residual).for_each(|(out, v)| *out += v);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The floats of `bits` plus `bias`.
#[inline(always)]
fn add(out: &mut [f32], bits: &[u32], bias: f32) {
    for (out, bits) in out.iter_mut().zip(bits) {
        *out = f32::from_bits(*bits) + bias;
    }
}
