//! 3x3 convolution by Winograd's F(4x4, 3x3): 36 products for 16 pixels where the definition takes 144.
//!
//! The result is cut into tiles of 4x4 pixels. Each tile sees 6x6 pixels of the input; they and the kernel are
//! evaluated at 6x6 points, multiplied there, which sums over the channels are matrix products, and interpolated
//! (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4.3). The points are 0, ±5/8,
//! ±3/2 and infinity: f32 loses a third of what it loses with the paper's 0, ±1, ±2, to some 4e-6 of the largest result.
//!
//! The kernels are evaluated on every call, since they would take four times the memory of the weights: where there are few
//! tiles, some at a time, which stay in a core's cache until they are multiplied.

use std::ops::{Add, Mul, Range, Sub};

use rayon::prelude::*;

use super::{ConvWeight, Shape, Window, weight::BLOCK};
use crate::{
    buffer::{part, unwritten},
    isa::vectorized,
    product::{PANEL, Panels, Rows, Start, TILE, panels_len},
    strip::{Strip, strips, strips_of},
    tasks,
};

/// The points, and their squares.
const A: f32 = 0.625;
const B: f32 = 1.5;
const AA: f32 = A * A;
const BB: f32 = B * B;

/// Tiles of a band, which is in work at a time: enough for good matrix products.
const TILES: usize = 128;
/// Bands for each of which the kernels are evaluated sooner than read again.
const FEW_BANDS: usize = 4;
/// Elements between the ends and starts of neighbouring points: else 36 writes side by side would want the same few lines of a
/// cache.
const GAP: usize = 16;
/// Outputs and inputs whose kernels are in work at a time on a thread, at most: half a megabyte at the points.
const OUTPUTS: usize = 96;
const INPUTS: usize = 64;
/// Tiles, or inputs of a kernel, that the arithmetic runs on side by side.
const LANES: usize = BLOCK;

/// Aligned as a vector is: arrays of them are copied by instructions instead of calls.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes([f32; LANES]);

// Plain loops all through: what `map` and `from_fn` call is not inlined into code for other instructions.
impl Lanes {
    const ZERO: Self = Self([0.; LANES]);

    /// The values of `row`, which may be fewer.
    #[inline(always)]
    fn read(row: &[f32]) -> Self {
        match row.first_chunk() {
            Some(row) => Self(*row),
            None => {
                let mut values = [0.; LANES];
                copy_few(row, &mut values);
                Self(values)
            }
        }
    }

    /// Every `step`-th value.
    #[inline(always)]
    fn read_every(step: usize, values: &[f32]) -> Self {
        let mut lanes = Self::ZERO;
        for l in 0..LANES {
            lanes.0[l] = values[l * step];
        }
        lanes
    }

    /// Writes the first `count` values.
    #[inline(always)]
    fn write(&self, count: usize, row: &mut [f32]) {
        match row.first_chunk_mut() {
            Some(row) if count == LANES => *row = self.0,
            _ => copy_few(&self.0[..count], row),
        }
    }
}

/// Copies fewer than [`LANES`] values without a call.
#[inline(always)]
fn copy_few(from: &[f32], to: &mut [f32]) {
    let (fours, rest) = from.as_chunks::<4>();
    let (to_fours, _) = to.as_chunks_mut::<4>();
    for (to, from) in to_fours.iter_mut().zip(fours) {
        *to = *from;
    }
    for (to, from) in to[4 * fours.len()..].iter_mut().zip(rest) {
        *to = *from;
    }
}

impl Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for l in 0..LANES {
            self.0[l] += other.0[l];
        }
        self
    }
}

impl Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(mut self, other: Self) -> Self {
        for l in 0..LANES {
            self.0[l] -= other.0[l];
        }
        self
    }
}

impl Mul<f32> for Lanes {
    type Output = Self;
    #[inline(always)]
    fn mul(mut self, factor: f32) -> Self {
        for l in 0..LANES {
            self.0[l] *= factor;
        }
        self
    }
}

/// A kernel's line at the points.
#[inline(always)]
fn kernel_at_points(line: [Lanes; 3]) -> [Lanes; 6] {
    let [x0, _, x2] = line;
    let (a, minus_a) = kernel_at_pair(line, A, AA, BB);
    let (b, minus_b) = kernel_at_pair(line, B, BB, AA);
    [x0 * (1. / (AA * BB)), a, minus_a, b, minus_b, x2]
}

/// A kernel's line at a point and its opposite, of which `pp` is the square, and `qq` that of the others.
#[inline(always)]
fn kernel_at_pair([x0, x1, x2]: [Lanes; 3], p: f32, pp: f32, qq: f32) -> (Lanes, Lanes) {
    let norm = 1. / (2. * pp * (pp - qq));
    let (even, odd) = ((x0 + x2 * pp) * norm, x1 * (p * norm));
    (even + odd, even - odd)
}

/// What a tile sees of the input, one line, at the points.
#[inline(always)]
fn input_at_points([x0, x1, x2, x3, x4, x5]: [Lanes; 6]) -> [Lanes; 6] {
    let (even_a, odd_a) = (x4 - x2 * BB, (x3 - x1 * BB) * A);
    let (even_b, odd_b) = (x4 - x2 * AA, (x3 - x1 * AA) * B);
    [
        x0 * (AA * BB) - x2 * (AA + BB) + x4,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        x1 * (AA * BB) - x3 * (AA + BB) + x5,
    ]
}

/// A tile's line from its values at the points.
#[inline(always)]
fn interpolated([zero, a, minus_a, b, minus_b, infinity]: [Lanes; 6]) -> [Lanes; 4] {
    let (even_a, odd_a) = (a + minus_a, (a - minus_a) * A);
    let (even_b, odd_b) = (b + minus_b, (b - minus_b) * B);
    [
        zero + even_a + even_b,
        odd_a + odd_b,
        even_a * AA + even_b * BB,
        odd_a * AA + odd_b * BB + infinity,
    ]
}

/// `line` of every row, then of every column, of what `read` gives at a row and a column, to `write`.
#[expect(
    clippy::needless_range_loop,
    reason = "what iterators call is not inlined into code for other instructions"
)]
#[inline(always)]
fn both_ways<const N: usize, const M: usize>(
    read: impl Fn(usize, usize) -> Lanes,
    line: impl Fn([Lanes; N]) -> [Lanes; M],
    mut write: impl FnMut(usize, usize, Lanes),
) {
    let mut rows = [[Lanes::ZERO; M]; N];
    for i in 0..N {
        let mut row = [Lanes::ZERO; N];
        for j in 0..N {
            row[j] = read(i, j);
        }
        rows[i] = line(row);
    }
    for j in 0..M {
        // Else a compiler takes the columns, instead of the lanes, side by side, and scatters the results.
        let j = std::hint::black_box(j);
        let mut column = [Lanes::ZERO; N];
        for i in 0..N {
            column[i] = rows[i][j];
        }
        let column = line(column);
        for i in 0..M {
            write(i, j, column[i]);
        }
    }
}

/// Whether this algorithm can compute `shape`, and is the faster one: maps and channels must be large enough to pay
/// for the evaluations.
pub(super) fn pays(shape: &Shape) -> bool {
    shape.kernel == [3, 3]
        && shape.window
            == (Window {
                stride: 1,
                padding: 1,
            })
        && shape.image.iter().all(|side| *side >= 16)
        && shape.inputs >= 32
        && shape.outputs >= 32
}

/// Tiles along the two sides of a sample.
fn tiles(shape: &Shape) -> [usize; 2] {
    shape.image.map(|side| side.div_ceil(4))
}

/// Tiles of a band: whole rows of them, of several samples if these are small.
fn band(shape: &Shape) -> usize {
    let [down, across] = tiles(shape);
    let rows = (TILES / across).clamp(1, down.saturating_mul(shape.batch));
    rows.saturating_mul(across)
}

/// Outputs of a task: whole tiles of the product, and as much work for every thread.
fn outputs_of_task(shape: &Shape) -> usize {
    let tasks = shape.outputs.div_ceil(OUTPUTS);
    let tasks = tasks.next_multiple_of(rayon::current_num_threads());
    shape.outputs.div_ceil(tasks).next_multiple_of(TILE)
}

/// Whether there are so many bands that the kernels are evaluated once for all of them.
fn shares_kernels(shape: &Shape) -> bool {
    let [down, across] = tiles(shape);
    shape.batch.saturating_mul(down).saturating_mul(across) > FEW_BANDS * band(shape)
}

/// Inputs whose products are summed at a time.
fn inputs_at_a_time(shape: &Shape) -> usize {
    match shares_kernels(shape) {
        true => shape.inputs,
        false => INPUTS.min(shape.inputs),
    }
}

/// Elements that [`conv`] holds at most: what a band of tiles sees, at the points, each thread's kernels and products, and all
/// kernels where they are shared.
pub(super) fn scratch(shape: &Shape) -> u64 {
    let panels = panels_len(1, band(shape));
    let seen = panels.saturating_mul(shape.inputs) + GAP;
    let product = outputs_of_task(shape) * panels + GAP;
    let threads = rayon::current_num_threads();
    let own = outputs_of_task(shape) * INPUTS.min(shape.inputs) + GAP;
    // At most: no larger map takes less.
    let kernels = match shares_kernels(shape) {
        true => (shape.outputs.saturating_mul(shape.inputs) + GAP).max(own * threads),
        false => own * threads,
    };
    let products = product.saturating_mul(threads);
    36 * seen.saturating_add(kernels).saturating_add(products) as u64
}

/// Convolves samples `x` to `out`; the slices' lengths are those of `shape`, for which [`pays`] holds, that of `bias` a multiple
/// of its outputs.
pub(super) fn conv(shape: &Shape, x: &[f32], weight: &ConvWeight, bias: &[f32], out: &mut [f32]) {
    let (pixels, plane_len) = (shape.result_pixels(), shape.plane());
    let inputs = shape.inputs;
    let [down, across] = tiles(shape);
    // Tiles are counted through the batch, so that small samples share panels.
    let (all, band) = (shape.batch * down * across, band(shape));
    let shared = shares_kernels(shape).then(|| Kernels::all(shape, weight));
    let depth = inputs_at_a_time(shape);
    let mut seen = unwritten(36 * (panels_len(inputs, band.min(all)) + GAP));
    for first in (0..all).step_by(band) {
        let band = first..all.min(first + band);
        let panels = band.len().div_ceil(PANEL);
        let panel = |i: usize| {
            let first = band.start + i * PANEL;
            first..band.end.min(first + PANEL)
        };

        // [36, panels, inputs, PANEL]
        let point = panels * inputs * PANEL;
        let seen = &mut seen[..36 * (point + GAP)];
        strips_of(seen, point + GAP, 0..point, PANEL)
            .collect::<Vec<_>>()
            .into_par_iter()
            .enumerate()
            .with_min_len(8)
            .for_each(|(i, mut points)| {
                let (panel, input) = (panel(i / inputs), i % inputs);
                let plane =
                    |sample: usize| &x[(sample * inputs + input) * plane_len..][..plane_len];
                vectorized!(evaluate_input(shape, plane, panel, &mut points));
            });

        let samples = band.start / (down * across)..(band.end - 1) / (down * across) + 1;
        let planes = shape.outputs * pixels;
        let out = &mut out[samples.start * planes..samples.end * planes];
        let tasks = strips(out, planes, outputs_of_task(shape) * pixels).collect();
        tasks::each(tasks, |buffers: &mut Buffers, mut out: Strip| {
            let outputs = out.first() / pixels..(out.first() + out.width()) / pixels;
            let Buffers { own, product } = buffers;
            let product_point = panels * outputs.len() * PANEL + GAP;
            let product = part(product, 36 * product_point);
            for first in (0..inputs).step_by(depth) {
                let start = match first {
                    0 => Start::Zero,
                    _ => Start::Target,
                };
                let (kernels, row) = match &shared {
                    Some(all) => (all, outputs.start),
                    None => {
                        own.evaluate(shape, weight, outputs.clone(), first);
                        (&*own, 0)
                    }
                };
                let seen = seen.chunks_exact(seen.len() / 36);
                let products = product.chunks_exact_mut(product_point);
                for ((point, seen), product) in seen.enumerate().zip(products) {
                    let kernels = kernels.rows(point, row);
                    let products = product.chunks_exact_mut(outputs.len() * PANEL);
                    for (i, product) in products.enumerate() {
                        let seen = &seen[(i * inputs + first) * PANEL..];
                        let seen = Panels::new(seen, depth.min(inputs - first));
                        let tiles = PANEL.min(band.len() - i * PANEL);
                        for mut product in strips_of(product, PANEL, 0..tiles, PANEL) {
                            product.set_product(start, kernels, seen);
                        }
                    }
                }
            }
            let product: Vec<&[f32]> = product.chunks_exact(product_point).collect();
            for sample in samples.clone() {
                let tiles = band.start.max(sample * down * across)
                    ..band.end.min((sample + 1) * down * across);
                let planes = out.row(sample - samples.start).chunks_exact_mut(pixels);
                for ((i, output), plane) in outputs.clone().enumerate().zip(planes) {
                    let bias = bias[(sample * shape.outputs + output) % bias.len()];
                    let points = |point: usize, tile: usize| {
                        let at = tile - band.start;
                        let row = at / PANEL * outputs.len() + i;
                        &product[point][row * PANEL..][at % PANEL..PANEL]
                    };
                    let tiles = tiles.clone();
                    vectorized!(interpolate(shape, points, tiles, band.start, bias, plane));
                }
            }
        });
    }
}

/// What a thread works with: kernels that are not shared, and their products with what a band sees,
/// `[36, panels, outputs, PANEL]`.
#[derive(Default)]
struct Buffers {
    own: Kernels,
    product: Vec<f32>,
}

/// The kernels of some outputs and inputs at the points: `[36, outputs, inputs]`.
#[derive(Default)]
struct Kernels {
    values: Vec<f32>,
    inputs: usize,
    /// Elements from one point to the next.
    point: usize,
}

impl Kernels {
    /// Those of all outputs and inputs, evaluated on all threads.
    fn all(shape: &Shape, weight: &ConvWeight) -> Self {
        let (inputs, point) = (shape.inputs, shape.outputs * shape.inputs);
        let mut values = unwritten(36 * (point + GAP));
        strips_of(&mut values, point + GAP, 0..point, inputs)
            .collect::<Vec<_>>()
            .into_par_iter()
            .enumerate()
            .for_each(|(output, points)| {
                for (i, mut points) in points.parts(INPUTS).enumerate() {
                    let first = i * INPUTS;
                    let mut buffer = [0.; 9 * INPUTS];
                    let kernels = first..first + points.width();
                    let kernels = weight.kernels(output, kernels, &mut buffer);
                    vectorized!(evaluate_kernels(kernels, &mut points));
                }
            });
        Self {
            values,
            inputs,
            point: point + GAP,
        }
    }

    /// Becomes those of some outputs, and of [`INPUTS`] inputs from `first` on, or what is left.
    fn evaluate(
        &mut self,
        shape: &Shape,
        weight: &ConvWeight,
        outputs: Range<usize>,
        first: usize,
    ) {
        self.inputs = INPUTS.min(shape.inputs - first);
        let point = outputs.len() * self.inputs;
        self.point = point + GAP;
        let values = part(&mut self.values, 36 * self.point);
        let points = strips_of(values, self.point, 0..point, self.inputs);
        for (output, mut points) in outputs.zip(points) {
            let mut buffer = [0.; 9 * INPUTS];
            let kernels = weight.kernels(output, first..first + self.inputs, &mut buffer);
            vectorized!(evaluate_kernels(kernels, &mut points));
        }
    }

    /// The kernels at a point from one output's on.
    fn rows(&self, point: usize, output: usize) -> Rows<'_> {
        let first = point * self.point + output * self.inputs;
        Rows::new(&self.values[first..], self.inputs)
    }
}

/// Some tiles side by side in a sample.
#[derive(Clone, Copy)]
struct Run {
    /// The first one, counted through the batch.
    first: usize,
    /// At most [`LANES`].
    count: usize,
    sample: usize,
    /// The first one's first pixel.
    y: usize,
    x: usize,
}

/// The runs of `tiles`, none of which crosses a multiple of [`PANEL`] tiles from `origin` on.
#[inline(always)]
fn runs(shape: &Shape, tiles: Range<usize>, origin: usize) -> impl Iterator<Item = Run> {
    let [down, across] = self::tiles(shape);
    let mut first = tiles.start;
    std::iter::from_fn(move || {
        let (row, column) = (first / across, first % across);
        let count = LANES
            .min(tiles.end.checked_sub(first)?)
            .min(across - column)
            .min(PANEL - (first - origin) % PANEL);
        let run = Run {
            first,
            count,
            sample: row / down,
            y: 4 * (row % down),
            x: 4 * column,
        };
        first += count;
        (count > 0).then_some(run)
    })
}

/// The kernels of some inputs, in blocks of `[9, inputs]`, to the 36 rows of `points`.
#[expect(
    clippy::redundant_closure,
    reason = "a function that is passed on is called, and compiled for instructions of any machine"
)]
#[inline(always)]
fn evaluate_kernels(kernels: &[f32], points: &mut Strip) {
    for (i, block) in kernels.chunks(9 * BLOCK).enumerate() {
        let inputs = block.len() / 9;
        both_ways(
            #[inline(always)]
            |y, x| Lanes::read(&block[(3 * y + x) * inputs..][..inputs]),
            #[inline(always)]
            |line| kernel_at_points(line),
            #[inline(always)]
            |y, x, values| values.write(inputs, &mut points.row(6 * y + x)[i * BLOCK..]),
        );
    }
}

/// What `tiles`, all of a panel, see of the planes of their samples, to the 36 rows of `points`.
#[expect(
    clippy::redundant_closure,
    reason = "a function that is passed on is called, and compiled for instructions of any machine"
)]
#[inline(always)]
fn evaluate_input<'a>(
    shape: &Shape,
    plane: impl Fn(usize) -> &'a [f32],
    tiles: Range<usize>,
    points: &mut Strip,
) {
    const WIDTH: usize = 4 * LANES + 2;
    let [height, width] = shape.image;
    let origin = tiles.start;
    // The pixels from one above and to the left of a run's first tile on, zeros where there are none.
    let mut lines = [[0f32; WIDTH]; 6];
    for run in runs(shape, tiles, origin) {
        let plane = plane(run.sample);
        let left = run.x.saturating_sub(1);
        let right = width.min(run.x + WIDTH - 1);
        for (i, line) in lines.iter_mut().enumerate() {
            let y = (run.y + i).checked_sub(1).filter(|y| *y < height);
            if y.is_none() || right - left < WIDTH {
                *line = [0.; WIDTH];
            }
            if let Some(y) = y {
                let first = left + 1 - run.x;
                let line = &mut line[first..first + right - left];
                shape.read_line(plane, [y, left], line);
            }
        }
        let at = run.first - origin;
        both_ways(
            #[inline(always)]
            |y, x| Lanes::read_every(4, &lines[y][x..]),
            #[inline(always)]
            |line| input_at_points(line),
            #[inline(always)]
            |y, x, values| values.write(run.count, &mut points.row(6 * y + x)[at..]),
        );
    }
}

/// `tiles`, all of one sample, from their values at the points plus `bias`, to the pixels of `plane`. `points(point, tile)` are the
/// values of the tiles from `tile` to the end of its panel; panels start at `origin`.
#[expect(
    clippy::redundant_closure,
    reason = "a function that is passed on is called, and compiled for instructions of any machine"
)]
#[inline(always)]
fn interpolate<'a>(
    shape: &Shape,
    points: impl Fn(usize, usize) -> &'a [f32],
    tiles: Range<usize>,
    origin: usize,
    bias: f32,
    plane: &mut [f32],
) {
    let width = shape.image[1];
    for run in runs(shape, tiles, origin) {
        let mut values = [[Lanes::ZERO; 4]; 4];
        both_ways(
            #[inline(always)]
            |y, x| Lanes::read(&points(6 * y + x, run.first)[..run.count]),
            #[inline(always)]
            |line| interpolated(line),
            #[inline(always)]
            |y, x, pixels| values[y][x] = pixels,
        );
        let rows = plane[run.y * width..].chunks_exact_mut(width);
        for (row, values) in rows.zip(&values) {
            let mut pixels = [0f32; 4 * LANES];
            for l in 0..LANES {
                for (j, values) in values.iter().enumerate() {
                    pixels[4 * l + j] = values.0[l] + bias;
                }
            }
            let row = &mut row[run.x..];
            match row.first_chunk_mut() {
                Some(row) if run.count == LANES => *row = pixels,
                _ => {
                    let count = row.len().min(4 * run.count);
                    row[..count].copy_from_slice(&pixels[..count]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::assert_same_bits;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let numbers = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.)
                .collect()
        };
        let window = Window {
            stride: 1,
            padding: 1,
        };
        let shape = Shape::new([1, 37, 33, 71], [1, 37, 3, 3], window).unwrap();
        let (kernels, plane) = (numbers(37 * 9), numbers(33 * 71));
        assert_same_bits(|| {
            let mut points = vec![0.; 36 * 37];
            for mut points in strips(&mut points, 37, 37) {
                evaluate_kernels(&kernels, &mut points);
            }
            points
        });
        assert_same_bits(|| {
            let mut points = vec![0.; 36 * PANEL];
            for mut points in strips(&mut points, PANEL, PANEL) {
                evaluate_input(&shape, |_| &plane, 20..20 + PANEL, &mut points);
            }
            points
        });
        let values = numbers(36 * PANEL);
        assert_same_bits(|| {
            let mut plane = plane.clone();
            let points = |point: usize, tile: usize| &values[point * PANEL..][tile - 20..PANEL];
            interpolate(&shape, points, 20..20 + PANEL, 20, 0.5, &mut plane);
            plane
        });
    }
}
