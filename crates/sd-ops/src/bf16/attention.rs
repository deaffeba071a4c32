//! Scaled dot-product attention, a block of queries of one head at a time.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::line::{self, Line, Rows, WIDTH, pair};
use super::product::{GROUP, Left, Right, STEP, Sums, product};
use crate::attention::{Inputs, Task, with_inputs};
use crate::buffer::room;
use crate::isa::vectorized;
use crate::tasks;
use crate::transpose::transpose;

/// Queries of a task: each [`GROUP`] of them looks at the same keys and values, which stay in a core's cache.
const QUERIES: usize = 256;
/// Strips of keys that a group of queries looks at a time: the scores stay in a core's first cache.
const STRIPS: usize = 8;

/// As [`sd_ops::attention`](crate::attention()), with attention weights rounded to bf16, too.
///
/// # Errors
/// As there.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    with_inputs([q, k, v], heads, causal, attend)
}

/// Bytes that [`attention`] holds at most during the call beside its arguments and its result: keys and values. The queries
/// are `[batch, n, channels]`.
pub fn attention_scratch([batch, _, channels]: [usize; 3], keys: usize, heads: usize) -> u64 {
    let steps = (channels / heads.max(1)).div_ceil(WIDTH);
    let lines = (2 * STEP)
        .saturating_mul(steps.saturating_mul(keys.div_ceil(WIDTH)))
        .saturating_mul(batch.saturating_mul(heads));
    (lines as u64).saturating_mul(size_of::<Line>() as u64)
}

fn attend(inputs: &Inputs, out: &mut [f32]) {
    let heads = inputs.channels / inputs.head;
    let (strips, steps) = (inputs.keys.div_ceil(WIDTH), inputs.head.div_ceil(WIDTH));
    let samples = inputs.k.len() / (inputs.keys * inputs.channels);
    let head = strips * steps * STEP;
    let first =
        |head: usize| head / heads * inputs.keys * inputs.channels + head % heads * inputs.head;
    let rows = |values| Rows {
        values,
        stride: inputs.channels,
        width: inputs.head,
    };
    // The keys as columns and the values as rows, of one sample and head after the other.
    let [mut keys, mut values] = [(); 2].map(|()| {
        let mut lines = room(samples * heads * head);
        lines.resize(samples * heads * head, Line::ZERO);
        lines
    });
    let keys_of_strips = keys.par_chunks_mut((steps * STEP).max(1)).enumerate();
    keys_of_strips.for_each_init(Vec::new, |rounded, (i, lines)| {
        let (head, strip) = (i / strips, i % strips);
        lay_out_keys(
            rows(&inputs.k[first(head)..]),
            inputs.keys,
            strip,
            rounded,
            lines,
        );
    });
    let values_of_steps = values.par_chunks_mut((strips * STEP).max(1)).enumerate();
    values_of_steps.for_each(|(i, lines)| {
        let (head, step) = (i / steps, i % steps);
        vectorized!(lay_out_values(
            rows(&inputs.v[first(head)..]),
            inputs.keys,
            step,
            lines
        ));
    });
    tasks::each(inputs.tasks(out, QUERIES), |buffers, task: Task| {
        let i = task.sample * heads + task.out.first() / inputs.head;
        let [keys, values] = [&keys, &values].map(|x| &x[i * head..][..head]);
        answer(inputs, task, keys, values, buffers);
    });
}

/// A strip of the right matrix whose columns are `count` rows: `[steps, STEP]`.
fn lay_out_keys(
    rows: Rows,
    count: usize,
    strip: usize,
    rounded: &mut Vec<Line>,
    lines: &mut [Line],
) {
    let first = strip * WIDTH;
    let some = Rows {
        values: &rows.values[first * rows.stride..],
        ..rows
    };
    // What is left of other keys after the last ones may be anything: those scores are hidden.
    rounded.resize(lines.len(), Line::ZERO);
    some.round(WIDTH.min(count - first), rounded, WIDTH);
    vectorized!(transpose_lines(rounded, lines));
}

/// Lines of pairs, 16 at a time, as lines of what is at the same place in all of them.
#[inline(always)]
fn transpose_lines(from: &[Line], to: &mut [Line]) {
    const SIDE: usize = WIDTH / 2;
    let squares = from.as_chunks::<SIDE>().0.iter();
    for (from, to) in squares.zip(to.as_chunks_mut::<SIDE>().0) {
        let mut square = from.map(|line| line.0);
        transpose(&mut square);
        *to = square.map(Line);
    }
}

/// The strip of so many columns of the right matrix whose rows are `count` rows: `[steps, STEP]`, which is zeros.
#[inline(always)]
fn lay_out_values(rows: Rows, count: usize, strip: usize, lines: &mut [Line]) {
    const SIDE: usize = WIDTH / 2;
    for (i, lines) in lines.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
        let (step, column) = (i / 2, strip * WIDTH + i % 2 * SIDE);
        let columns = SIDE.min(rows.width.saturating_sub(column));
        if columns == 0 {
            continue;
        }
        for (p, line) in lines.iter_mut().enumerate() {
            let first = step * WIDTH + 2 * p;
            let mut pair_of_rows = [[0f32; SIDE]; 2];
            for (row, values) in (first..count).zip(&mut pair_of_rows) {
                let row = &rows.values[row * rows.stride + column..][..columns];
                match row.try_into() {
                    Ok(row) => *values = row,
                    Err(_) => values[..columns].copy_from_slice(row),
                }
            }
            let [first, second] = &pair_of_rows;
            for ((to, first), second) in line.0.iter_mut().zip(first).zip(second) {
                *to = pair(*first, *second);
            }
        }
    }
}

/// What belongs to a group of queries.
#[derive(Default)]
struct Buffers {
    /// `[steps, GROUP]`.
    queries: Vec<Line>,
    /// `[STRIPS, GROUP]`.
    scores: Vec<Sums>,
    /// `2^(scale * score)` by the largest score so far, `[STRIPS, GROUP]`.
    weights: Vec<Line>,
    softmax: Softmax,
    /// Values by weights, and those of some strips of keys: `[steps, GROUP]`.
    sums: Vec<Sums>,
    part: Vec<Sums>,
}

/// The answers to the queries of a task, a group after the other; `keys` and `values` are those of its head.
fn answer(inputs: &Inputs, task: Task, keys: &[Line], values: &[Line], buffers: &mut Buffers) {
    let Task {
        sample,
        first_query,
        mut out,
    } = task;
    let (strips, steps) = (inputs.keys.div_ceil(WIDTH), inputs.head.div_ceil(WIDTH));
    let scale = (inputs.head as f32).sqrt().recip() * std::f32::consts::LOG2_E;
    // Each step has the rows after those of the last one.
    let starts: Vec<usize> = (0..steps.max(STRIPS)).map(|step| step * GROUP).collect();
    buffers.queries.resize(steps * GROUP, Line::ZERO);
    buffers.sums.resize(steps * GROUP, [0.; WIDTH]);
    buffers.part.resize(steps * GROUP, [0.; WIDTH]);
    for first in (0..out.rows()).step_by(GROUP) {
        let rows = GROUP.min(out.rows() - first);
        let first_query = first_query + first;
        let row = sample * inputs.queries + first_query;
        let queries = Rows {
            values: &inputs.q[row * inputs.channels + out.first()..],
            stride: inputs.channels,
            width: inputs.head,
        };
        queries.round(rows, &mut buffers.queries, GROUP);
        buffers.sums.fill([0.; WIDTH]);
        buffers.softmax = Softmax::default();
        for strip in (0..strips).step_by(STRIPS) {
            let count = STRIPS.min(strips - strip);
            buffers.scores.resize(count * GROUP, [0.; WIDTH]);
            buffers.weights.resize(count * GROUP, Line::ZERO);
            let queries = Left {
                lines: &buffers.queries,
                steps: &starts[..steps],
                groups: 1,
            };
            let keys = Right {
                lines: &keys[strip * steps * STEP..][..count * steps * STEP],
                full_steps: inputs.head / WIDTH,
                pairs: (inputs.head % WIDTH).div_ceil(2),
                columns: WIDTH,
            };
            product(queries, keys, &mut buffers.scores);
            let first_hidden = |row: usize| match inputs.causal {
                true => (first_query + row + 1).min(inputs.keys),
                false => inputs.keys,
            };
            if (strip + count) * WIDTH > first_hidden(0) {
                hide(&mut buffers.scores, strip, first_hidden);
            }
            vectorized!(buffers.softmax.add(
                &buffers.scores,
                scale,
                &mut buffers.weights,
                &mut buffers.sums
            ));
            let weights = Left {
                lines: &buffers.weights,
                steps: &starts[..count],
                groups: 1,
            };
            for (step, part) in buffers.part.chunks_exact_mut(GROUP).enumerate() {
                let values = Right {
                    lines: &values[(step * strips + strip) * STEP..][..count * STEP],
                    full_steps: inputs.keys / WIDTH - strip,
                    pairs: (inputs.keys % WIDTH).div_ceil(2),
                    columns: inputs.head - step * WIDTH,
                };
                product(weights, values, part);
            }
            let sums = buffers.sums.as_flattened_mut().iter_mut();
            for (sum, part) in sums.zip(buffers.part.as_flattened()) {
                *sum += part;
            }
        }
        for (i, total) in buffers.softmax.totals.iter().enumerate().take(rows) {
            let norm = total.iter().sum::<f32>().recip();
            let sums = buffers.sums.chunks_exact(GROUP);
            for (out, sums) in out.row(first + i).chunks_mut(WIDTH).zip(sums) {
                for (out, sum) in out.iter_mut().zip(&sums[i]) {
                    *out = sum * norm;
                }
            }
        }
    }
}

/// Lowers the scores of each row's hidden keys, `[strips, GROUP]` from a strip on.
fn hide(scores: &mut [Sums], strip: usize, first_hidden: impl Fn(usize) -> usize) {
    for (scores, strip) in scores.chunks_exact_mut(GROUP).zip(strip..) {
        for (row, scores) in scores.iter_mut().enumerate() {
            let visible = first_hidden(row).saturating_sub(strip * WIDTH);
            if visible < WIDTH {
                scores[visible..].fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// The softmax of rows that come in parts (Milakov and Gimelshein 2018, algorithm 3).
#[derive(Clone)]
struct Softmax {
    /// The largest score of each row so far, in all places of a row.
    largest: [Sums; GROUP],
    /// What sums up to the denominators, which are relative to the largest scores.
    totals: [Sums; GROUP],
}

impl Default for Softmax {
    fn default() -> Self {
        Self {
            // Not infinite, as no difference of infinities is a number.
            largest: [[f32::MIN; WIDTH]; GROUP],
            totals: [[0.; WIDTH]; GROUP],
        }
    }
}

impl Softmax {
    /// `2^(scale * (score - largest of the row))` of more scores, `[strips, GROUP]`. `sums [steps, GROUP]` of what was weighted
    /// so far become relative to the new largest scores.
    #[inline(always)]
    fn add(&mut self, scores: &[Sums], scale: f32, weights: &mut [Line], sums: &mut [Sums]) {
        const ALL: usize = GROUP * WIDTH;
        let scores = scores.as_flattened().chunks_exact(ALL);
        let mut largest = self.largest;
        for scores in scores.clone() {
            for (largest, v) in largest.as_flattened_mut().iter_mut().zip(scores) {
                *largest = if *v > *largest { *v } else { *largest };
            }
        }
        for (i, (largest, before)) in largest.iter_mut().zip(&mut self.largest).enumerate() {
            let mut half = WIDTH / 2;
            while half > 0 {
                for j in 0..half {
                    largest[j] = if largest[j + half] > largest[j] {
                        largest[j + half]
                    } else {
                        largest[j]
                    };
                }
                half /= 2;
            }
            let of_row = largest[0];
            if of_row > before[0] {
                let factor = power_of_two((before[0] - of_row) * scale);
                before.fill(of_row);
                for v in &mut self.totals[i] {
                    *v *= factor;
                }
                for sums in sums.chunks_exact_mut(GROUP) {
                    for v in &mut sums[i] {
                        *v *= factor;
                    }
                }
            }
        }
        let strips = scores.zip(weights.chunks_exact_mut(GROUP));
        for (scores, weights) in strips {
            let largest = self.largest.as_flattened();
            let totals = self.totals.as_flattened_mut();
            #[cfg(target_arch = "x86_64")]
            if line::avx512::available() {
                avx512::weigh(scores, largest, scale, totals, weights);
                continue;
            }
            weigh(scores, largest, scale, totals, weights);
        }
    }
}

/// `2^(scale * (score - largest))` of all scores as `weights`, and added to `totals`.
#[inline(always)]
fn weigh(scores: &[f32], largest: &[f32], scale: f32, totals: &mut [f32], weights: &mut [Line]) {
    let mut powers = [0f32; GROUP * WIDTH];
    let values = scores.iter().zip(largest).zip(totals);
    for (power, ((score, largest), total)) in powers.iter_mut().zip(values) {
        *power = power_of_two((score - largest) * scale);
        *total += *power;
    }
    Line::round(&powers, weights);
}

/// [`weigh`] with fused products, and in half the instructions.
#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "instructions that not every machine has, on pointers"
)]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{GROUP, LEAST, POLYNOMIAL, ROUND, WIDTH};
    use crate::bf16::line::{self, Line};

    /// # Panics
    /// The machine has not the instructions, or the slices are not of a group of rows.
    pub(super) fn weigh(
        scores: &[f32],
        largest: &[f32],
        scale: f32,
        totals: &mut [f32],
        weights: &mut [Line],
    ) {
        let all = GROUP * WIDTH;
        assert!(
            line::avx512::available() && weights.len() == GROUP,
            "{} lines",
            weights.len()
        );
        assert!(scores.len() == all && largest.len() == all && totals.len() == all);
        // SAFETY: as asserted.
        unsafe { weigh_group(scores, largest, scale, totals, weights) };
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn weigh_group(
        scores: &[f32],
        largest: &[f32],
        scale: f32,
        totals: &mut [f32],
        weights: &mut [Line],
    ) {
        let scale = _mm512_set1_ps(scale);
        let power = |i: usize| {
            // SAFETY: `i` is a multiple of 16 below the length of a group.
            let [score, largest] =
                unsafe { [scores, largest].map(|x| _mm512_loadu_ps(x.as_ptr().add(i))) };
            power_of_two(_mm512_mul_ps(_mm512_sub_ps(score, largest), scale))
        };
        for (row, weights) in weights.iter_mut().enumerate() {
            let powers = [0, 16].map(|half| {
                let i = row * WIDTH + half;
                let power = power(i);
                // SAFETY: as above.
                unsafe {
                    let total = totals.as_mut_ptr().add(i);
                    _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), power));
                }
                power
            });
            *weights = line::avx512::line(powers[0], powers[1]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn power_of_two(x: __m512) -> __m512 {
        let round = _mm512_set1_ps(ROUND);
        // The second operand where one is not a number.
        let x = _mm512_max_ps(_mm512_set1_ps(LEAST), x);
        let sum = _mm512_add_ps(x, round);
        let r = _mm512_sub_ps(x, _mm512_sub_ps(sum, round));
        let [first, rest @ ..] = POLYNOMIAL;
        let series = rest.iter().fold(_mm512_set1_ps(first), |sum, c| {
            _mm512_fmadd_ps(sum, r, _mm512_set1_ps(*c))
        });
        let exponent = _mm512_slli_epi32(_mm512_castps_si512(sum), 23);
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(series), exponent))
    }
}

/// Powers of smaller numbers stay what they are here: below, some are no normal numbers.
const LEAST: f32 = -125.;
/// Adding it to a small number rounds that to an integer, which the sum's lowest bits are.
const ROUND: f32 = 12_582_912.;
/// Of the smallest relative error for `2^x` with `|x| <= 1/2`, the highest power first.
const POLYNOMIAL: [f32; 4] = [0.055_171_69, 0.242_611_17, 0.693_260_97, 0.999_928_06];

/// `2^x` to 1e-4 of itself, for `x <= 0`; not below that of [`LEAST`].
#[inline(always)]
fn power_of_two(x: f32) -> f32 {
    let x = if x < LEAST { LEAST } else { x };
    let sum = x + ROUND;
    let r = x - (sum - ROUND);
    let [first, rest @ ..] = POLYNOMIAL;
    let series = rest.iter().fold(first, |sum, c| sum * r + c);
    f32::from_bits(series.to_bits().wrapping_add(sum.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_exact_to_1e_4() {
        for i in 0..=125_000 {
            let x = -i as f32 / 1000.;
            let error = f64::from(power_of_two(x)) / f64::from(x).exp2() - 1.;
            assert!(error.abs() < 1e-4, "2^{x}: {error:e}");
        }
        assert_eq!(power_of_two(f32::NEG_INFINITY), power_of_two(LEAST));
        assert!(power_of_two(f32::NAN).is_nan());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn fused_products_give_the_same_weights() {
        if !line::avx512::available() {
            return;
        }
        const ALL: usize = GROUP * WIDTH;
        let mut scores: Vec<f32> = (0..ALL).map(|i| (i * 7919 % 2003) as f32 / 20.).collect();
        scores[..2].copy_from_slice(&[f32::NEG_INFINITY, f32::NAN]);
        let largest = [101f32; ALL];
        let run = |fused| {
            let (mut totals, mut weights) = (vec![1f32; ALL], vec![Line::ZERO; GROUP]);
            let weigh = if fused { avx512::weigh } else { weigh };
            weigh(&scores, &largest, 0.3, &mut totals, &mut weights);
            let halves = weights.iter().flat_map(|line| line.0);
            let halves = halves.flat_map(|pair| [pair << 16, pair & 0xffff_0000]);
            (totals, halves.map(f32::from_bits).collect::<Vec<_>>())
        };
        let (plain, fused) = (run(false), run(true));
        for (plain, fused) in [(&plain.0, &fused.0), (&plain.1, &fused.1)] {
            for (i, (plain, fused)) in plain.iter().zip(fused).enumerate() {
                let same =
                    plain.is_nan() && fused.is_nan() || (plain - fused).abs() <= plain / 128.;
                assert!(same, "{i}: {plain} {fused}");
            }
        }
        assert!(fused.1[1].is_nan() && fused.1[0] >= 0.);
    }
}
