//! 3x3 convolution by Winograd's F(4x4, 3x3): 36 products for 16 pixels where the definition takes 144.
//!
//! The result is cut into tiles of 4x4 pixels. Each tile sees 6x6 pixels of the input; they and the kernel are
//! evaluated at 6x6 points, multiplied there, which sums over the channels are matrix products, and interpolated
//! (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4.3). The points are 0, ±5/8,
//! ±3/2 and infinity: f32 loses a third of what it loses with the paper's 0, ±1, ±2, to some 4e-6 of the largest result.
//!
//! The kernels are evaluated on every call. Keeping them would take four times the memory of the weights.

use std::array::from_fn;
use std::ops::{Add, Mul, Sub};

use rayon::prelude::*;

use super::{Shape, Window};
use crate::strip::{Rows, strips};

/// The points, and their squares.
const A: f32 = 0.625;
const B: f32 = 1.5;
const AA: f32 = A * A;
const BB: f32 = B * B;

/// Tiles of a band, the part of a sample that is in work at a time: enough for good matrix products.
const TILES: usize = 512;
/// Tiles that the arithmetic runs on side by side.
const LANES: usize = 8;

#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Add for Lanes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] + other.0[i]))
    }
}

impl Sub for Lanes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(from_fn(|i| self.0[i] - other.0[i]))
    }
}

impl Mul<f32> for Lanes {
    type Output = Self;
    fn mul(self, factor: f32) -> Self {
        Self(self.0.map(|v| v * factor))
    }
}

/// A kernel's line at the points.
fn kernel_at_points([x0, x1, x2]: [Lanes; 3]) -> [Lanes; 6] {
    let pair = |p: f32, pp: f32, qq: f32| {
        let norm = 1. / (2. * pp * (pp - qq));
        let (even, odd) = ((x0 + x2 * pp) * norm, x1 * (p * norm));
        (even + odd, even - odd)
    };
    let ((a, minus_a), (b, minus_b)) = (pair(A, AA, BB), pair(B, BB, AA));
    [x0 * (1. / (AA * BB)), a, minus_a, b, minus_b, x2]
}

/// What a tile sees of the input, one line, at the points.
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

/// `line` of every row, then of every column.
fn both_ways<const N: usize, const M: usize>(
    x: [[Lanes; N]; N],
    line: impl Fn([Lanes; N]) -> [Lanes; M],
) -> [[Lanes; M]; M] {
    let rows = x.map(&line);
    let columns: [[Lanes; M]; M] = from_fn(|j| line(from_fn(|i| rows[i][j])));
    from_fn(|i| from_fn(|j| columns[j][i]))
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
        && shape.image.iter().all(|side| *side >= 32)
        && shape.inputs >= 32
        && shape.outputs >= 32
}

/// Tiles of a row and rows of tiles of a band.
fn band([height, width]: [usize; 2]) -> [usize; 2] {
    let across = width.div_ceil(4);
    [across, (TILES / across).clamp(1, height.div_ceil(4))]
}

/// Elements that [`conv`] holds at most: the kernels, and a band of both sides, at the points.
pub(super) fn scratch(shape: &Shape) -> u64 {
    let [down, across] = shape.image.map(|side| side.div_ceil(4));
    let tiles = TILES.max(across).min(across.saturating_mul(down));
    let (inputs, outputs) = (shape.inputs as u64, shape.outputs as u64);
    let band = (inputs + outputs).saturating_mul(tiles as u64);
    inputs
        .saturating_mul(outputs)
        .saturating_add(band)
        .saturating_mul(36)
}

/// Convolves samples `x` to `out`; the slices' lengths are those of `shape`, for which [`pays`] holds.
pub(super) fn conv(shape: &Shape, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let ([height, width], pixels) = (shape.image, shape.image_pixels());
    let [across, tile_rows] = band(shape.image);
    let (inputs, outputs) = (shape.inputs, shape.outputs);
    let mut kernels = vec![0f32; outputs * 36 * inputs];
    kernels
        .par_chunks_mut(36 * inputs)
        .zip(weight.par_chunks(9 * inputs))
        .for_each(|(points, kernels)| evaluate_kernels(kernels, points));

    let most_tiles = tile_rows * across;
    let mut seen = vec![0f32; inputs * 36 * most_tiles];
    let mut product = vec![0f32; outputs * 36 * most_tiles];
    for (x, out) in x
        .chunks(inputs * pixels)
        .zip(out.chunks_mut(outputs * pixels))
    {
        for top in (0..height).step_by(4 * tile_rows) {
            let bottom = height.min(top + 4 * tile_rows);
            let tiles = (bottom - top).div_ceil(4) * across;
            let columns = 36 * tiles;
            let seen = &mut seen[..inputs * columns];
            let product = &mut product[..outputs * columns];
            seen.par_chunks_mut(columns)
                .zip(x.par_chunks(pixels))
                .for_each(|(points, plane)| evaluate_input(plane, width, [top, bottom], points));
            let points: Vec<_> = strips(product, columns, tiles).collect();
            points
                .into_par_iter()
                .enumerate()
                .for_each(|(i, mut strip)| {
                    let kernels = Rows::new(&kernels, 36 * inputs).columns_from(i * inputs);
                    let seen = Rows::new(seen, columns).columns_from(strip.first());
                    strip.set_product(kernels, seen, inputs);
                });
            out.par_chunks_mut(pixels)
                .zip(product.par_chunks(columns))
                .zip(bias)
                .for_each(|((plane, points), bias)| {
                    interpolate(
                        points,
                        width,
                        *bias,
                        &mut plane[top * width..bottom * width],
                    );
                });
        }
    }
}

/// `kernels [inputs, 9]` to `[36, inputs]`.
fn evaluate_kernels(kernels: &[f32], points: &mut [f32]) {
    let inputs = kernels.len() / 9;
    for first in (0..inputs).step_by(LANES) {
        let count = LANES.min(inputs - first);
        let tap = |i: usize| Lanes(from_fn(|l| kernels[(first + l.min(count - 1)) * 9 + i]));
        let values = both_ways(from_fn(|y| from_fn(|x| tap(3 * y + x))), kernel_at_points);
        for (row, values) in points.chunks_exact_mut(inputs).zip(values.as_flattened()) {
            row[first..first + count].copy_from_slice(&values.0[..count]);
        }
    }
}

/// What the tiles of rows `top` to `bottom` of the plane see of it, to `[36, tiles]`.
fn evaluate_input(plane: &[f32], width: usize, [top, bottom]: [usize; 2], points: &mut [f32]) {
    let across = width.div_ceil(4);
    let tiles = points.len() / 36;
    // The six lines that a row of tiles sees, between zeros.
    let padded = 4 * across.next_multiple_of(LANES) + 2;
    let mut lines = vec![0f32; 6 * padded];
    for (tile_row, y) in (top..bottom).step_by(4).enumerate() {
        for (i, line) in lines.chunks_exact_mut(padded).enumerate() {
            let line = &mut line[1..=width];
            match (y + i)
                .checked_sub(1)
                .and_then(|y| plane.chunks_exact(width).nth(y))
            {
                Some(source) => line.copy_from_slice(source),
                None => line.fill(0.),
            }
        }
        for first in (0..across).step_by(LANES) {
            let count = LANES.min(across - first);
            let line = |i: usize| &lines[i * padded + 4 * first..][..4 * LANES + 2];
            let seen = from_fn(|i| {
                let line = line(i);
                from_fn(|j| Lanes(from_fn(|l| line[4 * l + j])))
            });
            let values = both_ways(seen, input_at_points);
            let at = tile_row * across + first;
            for (row, values) in points.chunks_exact_mut(tiles).zip(values.as_flattened()) {
                row[at..at + count].copy_from_slice(&values.0[..count]);
            }
        }
    }
}

/// Tiles from their values at the points `[36, tiles]`, plus `bias`, to whole rows of a plane.
fn interpolate(points: &[f32], width: usize, bias: f32, rows: &mut [f32]) {
    let across = width.div_ceil(4);
    let tiles = points.len() / 36;
    for (tile_row, rows) in rows.chunks_mut(4 * width).enumerate() {
        for first in (0..across).step_by(LANES) {
            let count = LANES.min(across - first);
            let at = tile_row * across + first;
            let mut values = [[Lanes([0.; LANES]); 6]; 6];
            for (row, values) in points.chunks_exact(tiles).zip(values.as_flattened_mut()) {
                values.0[..count].copy_from_slice(&row[at..at + count]);
            }
            let values = both_ways(values, interpolated);
            for (row, values) in rows.chunks_exact_mut(width).zip(&values) {
                let row = &mut row[4 * first..];
                for (l, pixels) in row.chunks_mut(4).take(count).enumerate() {
                    for (pixel, values) in pixels.iter_mut().zip(values) {
                        *pixel = values.0[l] + bias;
                    }
                }
            }
        }
    }
}
