//! Two-dimensional convolution.
//!
//! The image is laid out as lines of 32 channels of a pixel. What a tap of the kernel sees at neighbouring pixels then are
//! neighbouring lines, in place: the image shifted. To that end the image is padded, and rows of pixels follow one another, so
//! that a shift is the same number of lines everywhere; the sums at the padding between two rows are of no use. With a stride of
//! `s` there are `s * s` images, of every `s`th pixel in both directions.

use candle_core::{Device, Result, Tensor, bail};

use super::Weight;
use super::line::{Line, WIDTH, pair};
use super::product::{GROUP, Left, Sums, product};
use crate::buffer::zeros;
use crate::conv::{Shape, Window};
use crate::isa::vectorized;
use crate::strip::{Strip, strips_of};
use crate::tasks;
use crate::transpose::transpose;
use crate::values;

/// Most lines of the images of a task: a megabyte.
const LINES: usize = 1 << 14;
/// Most pixels of a task, with those between rows.
const PIXELS: usize = 1 << 11;

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
    let shape = Shape::new(x.dims4()?.into(), 1, weight.shape(), window)?;
    run(shape, x, weight, bias)
}

/// As [`sd_ops::conv2d_doubled`](crate::conv2d_doubled).
///
/// # Errors
/// As there, or the weight is of a gated layer.
pub fn conv2d_doubled(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    padding: usize,
) -> Result<Tensor> {
    let window = Window { stride: 1, padding };
    let shape = Shape::new(x.dims4()?.into(), 2, weight.shape(), window)?;
    run(shape, x, weight, bias)
}

/// Bytes that [`conv2d`] holds at most during the call beside its arguments and its result, for an `x` and a `weight` of these
/// sizes.
///
/// # Errors
/// The sizes do not fit together.
pub fn conv2d_scratch(x: [usize; 4], weight: [usize; 4], window: Window) -> Result<u64> {
    let shape = Shape::new(x, 1, weight, window)?;
    let plan = Plan::new(&shape);
    let image = plan.lines.saturating_mul(size_of::<Line>());
    let sums = plan.groups.saturating_mul(GROUP * size_of::<Sums>());
    let threads = rayon::current_num_threads();
    Ok(image.saturating_add(sums).saturating_mul(threads) as u64)
}

fn run(shape: Shape, x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    if weight.is_gated() {
        bail!("{weight:?} is not of a convolution");
    }
    let bias = shape.bias(bias)?;
    let mut out = zeros(shape.result_len()?);
    let x = x.contiguous()?;
    if !out.is_empty() {
        let [x, bias] = [&x, &bias].map(Tensor::storage_and_layout);
        let plan = Plan::new(&shape);
        let conv = Conv {
            x: values(&x.0, x.1)?,
            bias: values(&bias.0, bias.1)?,
            steps: plan.steps(&shape),
            shape,
            plan,
            weight,
        };
        conv.run(&mut out);
    }
    let [height, width] = shape.result;
    Tensor::from_vec(
        out,
        (shape.batch, shape.outputs, height, width),
        &Device::Cpu,
    )
}

/// How a convolution is cut into tasks.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Rows of pixels of the result that a task makes at most.
    rows: usize,
    /// Outputs that a task makes at most.
    outputs: usize,
    /// Pixels of a row of an image: those of the result and what the kernel sees beyond.
    width: usize,
    /// Rows of an image.
    height: usize,
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
        let width = width.saturating_add(beside);
        let images = (stride * stride).saturating_mul(shape.inputs.div_ceil(WIDTH).max(1));
        let row = images.saturating_mul(width);
        let fitting = (LINES / row).saturating_sub(above).min(PIXELS / width);
        let threads = rayon::current_num_threads();
        // Four tasks a thread; few rows of pixels see as many again beyond them, so outputs are cut, too.
        let per_sample = (4 * threads).div_ceil(shape.batch.max(1));
        let fair = height.div_ceil(per_sample).max(256usize.div_ceil(width));
        let rows = fitting.min(fair).clamp(1, height.max(1));
        let parts = per_sample.div_ceil(height.div_ceil(rows).max(1));
        let outputs = shape.outputs.div_ceil(parts.max(1)).next_multiple_of(WIDTH);
        let image = (rows + above).saturating_mul(width);
        let groups = rows.saturating_mul(width).div_ceil(GROUP);
        Self {
            rows,
            outputs,
            width,
            height: rows + above,
            groups,
            lines: images.saturating_mul(image).saturating_add(GROUP + beside),
        }
    }

    /// Where a tap of a block of input channels finds the first pixel of the result.
    fn steps(&self, shape: &Shape) -> Vec<usize> {
        let stride = shape.window.stride;
        let blocks = shape.inputs.div_ceil(WIDTH);
        let image = self.height * self.width;
        let taps = || (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| [y, x]));
        (0..blocks)
            .flat_map(|block| {
                taps().map(move |[y, x]| {
                    let phase = y % stride * stride + x % stride;
                    (phase * blocks + block) * image + y / stride * self.width + x / stride
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
    steps: Vec<usize>,
}

/// Some outputs at some rows of pixels of a sample.
struct Task<'a> {
    sample: usize,
    first_row: usize,
    rows: usize,
    first_output: usize,
    /// A row an output.
    out: Strip<'a>,
}

#[derive(Default)]
struct Buffers {
    lines: Vec<Line>,
    sums: Vec<Sums>,
}

impl Conv<'_> {
    fn run(&self, out: &mut [f32]) {
        let pixels = self.shape.result_pixels();
        let width = self.shape.result[1];
        let mut tasks = Vec::new();
        for (sample, out) in out.chunks_mut(self.shape.outputs * pixels).enumerate() {
            for (i, out) in out.chunks_mut(self.plan.outputs * pixels).enumerate() {
                let strips = strips_of(out, pixels, 0..pixels, self.plan.rows * width);
                tasks.extend(strips.map(|out| Task {
                    sample,
                    first_row: out.first() / width,
                    rows: out.width() / width,
                    first_output: i * self.plan.outputs,
                    out,
                }));
            }
        }
        tasks::each(tasks, |buffers, task| self.task(task, buffers));
    }

    fn task(&self, mut task: Task, Buffers { lines, sums }: &mut Buffers) {
        lines.resize(self.plan.lines, Line::ZERO);
        vectorized!(self.read(&task, lines));
        let pixels = (task.rows - 1) * self.plan.width + self.shape.result[1];
        let left = Left {
            lines,
            steps: &self.steps,
            groups: pixels.div_ceil(GROUP),
        };
        sums.resize(left.groups * GROUP, [0.; WIDTH]);
        let bias = &self.bias[task.sample * self.shape.outputs % self.bias.len()..];
        for first in (0..task.out.rows()).step_by(WIDTH) {
            let output = task.first_output + first;
            let strip = output / WIDTH;
            product(left, self.weight.right(strip..strip + 1), sums);
            vectorized!(self.write(&mut task, first, sums, &bias[output..]));
        }
    }

    /// Writes the images that a task sees.
    #[inline(always)]
    fn read(&self, task: &Task, lines: &mut [Line]) {
        /// Pixels at a time.
        const SPAN: usize = 64;
        let Shape { inputs, window, .. } = self.shape;
        let Plan { width, height, .. } = self.plan;
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
                    let pixel = [task.first_row + row, i * SPAN];
                    for (span, plane) in span.iter_mut().zip(x.chunks_exact(plane)) {
                        self.read_span(plane, phase, pixel, &mut span[..line.len()]);
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

    /// Pixels of a channel's `plane` from one of an image's on, with zeros beyond its sides.
    #[inline(always)]
    fn read_span(&self, plane: &[f32], phase: [usize; 2], pixel: [usize; 2], out: &mut [f32]) {
        let Window { stride, padding } = self.shape.window;
        let [height, width] = self.shape.image;
        let [y, x] = [0, 1].map(|i| pixel[i] * stride + phase[i]);
        let Some(y) = y.checked_sub(padding).filter(|y| *y < height) else {
            return out.fill(0.);
        };
        // Inside the image from `left` on and before `right`.
        let left = padding.saturating_sub(x).div_ceil(stride).min(out.len());
        let right = (width + padding).saturating_sub(x).div_ceil(stride);
        let right = right.clamp(left, out.len());
        out[..left].fill(0.);
        out[right..].fill(0.);
        let inside = &mut out[left..right];
        if inside.is_empty() {
            return;
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
    }

    /// Writes the sums of [`WIDTH`] outputs from the task's output `first` on, `bias` being of those.
    #[inline(always)]
    fn write(&self, task: &mut Task, first: usize, sums: &[Sums], bias: &[f32]) {
        const SIDE: usize = 16;
        let width = self.shape.result[1];
        for side in [0, SIDE] {
            let outputs = (first + side)..task.out.rows().min(first + side + SIDE);
            if outputs.is_empty() {
                break;
            }
            for row in 0..task.rows {
                let sums = &sums[row * self.plan.width..][..width];
                for (i, sums) in sums.chunks(SIDE).enumerate() {
                    let mut square = [[0u32; SIDE]; SIDE];
                    for (square, sums) in square.iter_mut().zip(sums) {
                        for (to, sum) in square.iter_mut().zip(&sums[side..]) {
                            *to = sum.to_bits();
                        }
                    }
                    transpose(&mut square);
                    let pixel = row * width + i * SIDE;
                    for ((output, pixels), bias) in outputs.clone().zip(&square).zip(&bias[side..])
                    {
                        let out = &mut task.out.row(output)[pixel..pixel + sums.len()];
                        match <&mut [f32; SIDE]>::try_from(&mut *out) {
                            Ok(out) => {
                                for (out, bits) in out.iter_mut().zip(pixels) {
                                    *out = f32::from_bits(*bits) + bias;
                                }
                            }
                            Err(_) => {
                                for (out, bits) in out.iter_mut().zip(pixels) {
                                    *out = f32::from_bits(*bits) + bias;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
