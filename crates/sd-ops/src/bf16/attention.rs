//! Scaled dot-product attention, a block of queries of one head at a time.

use candle_core::{Result, Tensor};

use super::line::{Line, WIDTH};
use super::product::{GROUP, Left, STEP, Sums, product, right};
use crate::attention::{Inputs, Task, with_inputs};
use crate::isa::vectorized;
use crate::tasks;

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
    // The keys as columns and the values as rows, of one sample and head after the other.
    let at = |x: &[f32], head: usize, key: usize, channel: usize| {
        if key >= inputs.keys || channel >= inputs.head {
            return 0.;
        }
        let row = head / heads * inputs.keys + key;
        x[row * inputs.channels + head % heads * inputs.head + channel]
    };
    let keys = right(samples * heads * strips, steps, |step, row, column| {
        let (head, key) = (column / (strips * WIDTH), column % (strips * WIDTH));
        at(inputs.k, head, key, step * WIDTH + row)
    });
    let values = right(samples * heads * steps, strips, |step, row, column| {
        let (head, channel) = (column / (steps * WIDTH), column % (steps * WIDTH));
        at(inputs.v, head, step * WIDTH + row, channel)
    });
    let head = strips * steps * STEP;
    tasks::each(inputs.tasks(out, QUERIES), |buffers, task: Task| {
        let i = task.sample * heads + task.out.first() / inputs.head;
        let [keys, values] = [&keys, &values].map(|x| &x[i * head..][..head]);
        answer(inputs, task, keys, values, buffers);
    });
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
        let queries = &inputs.q[row * inputs.channels + out.first()..];
        vectorized!(read(queries, inputs, rows, &mut buffers.queries));
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
            let keys = &keys[strip * steps * STEP..][..count * steps * STEP];
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
                let values = &values[(step * strips + strip) * STEP..][..count * STEP];
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

/// The first `rows` queries of a head as `[steps, GROUP]` lines.
#[inline(always)]
fn read(queries: &[f32], inputs: &Inputs, rows: usize, lines: &mut [Line]) {
    for (i, query) in queries.chunks(inputs.channels).take(rows).enumerate() {
        let parts = query[..inputs.head].chunks(WIDTH);
        for (part, lines) in parts.zip(lines.chunks_exact_mut(GROUP)) {
            lines[i] = Line::new(part);
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
            let of_row = largest.iter().copied().fold(f32::MIN, f32::max);
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
        let largest = self.largest.as_flattened();
        let mut powers = [0f32; ALL];
        for (scores, weights) in scores.zip(weights.chunks_exact_mut(GROUP)) {
            let totals = self.totals.as_flattened_mut().iter_mut();
            let values = scores.iter().zip(largest).zip(totals);
            for (power, ((score, largest), total)) in powers.iter_mut().zip(values) {
                *power = power_of_two((score - largest) * scale);
                *total += *power;
            }
            Line::round(&powers, weights);
        }
    }
}

/// `2^x` to 1e-4 of itself, for `x <= 0`; not below 2^-126.
#[inline(always)]
fn power_of_two(x: f32) -> f32 {
    /// Adding it to a small number rounds that to an integer, which the sum's lowest bits are.
    const ROUND: f32 = 12_582_912.;
    let x = if x < -126. { -126. } else { x };
    let sum = x + ROUND;
    let r = x - (sum - ROUND);
    // The polynomial of the smallest relative error for |r| <= 1/2.
    let series = 0.999_928_06 + r * (0.693_260_97 + r * (0.242_611_17 + r * 0.055_171_69));
    f32::from_bits(series.to_bits().wrapping_add(sum.to_bits() << 23))
}
