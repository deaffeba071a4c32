//! Scaled dot-product attention, a block of queries of one head at a time.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::line::{Line, WIDTH};
use super::product::{GROUP, Left, STEP, Sums, product, right};
use crate::attention::{Inputs, Task, with_inputs};
use crate::isa::vectorized;

/// Scores of a block: half a megabyte.
const SCORES: usize = 1 << 17;
/// Most queries of a block.
const QUERIES: usize = 256;

/// As [`sd_ops::attention`](crate::attention()), with attention weights rounded to bf16, too.
///
/// # Errors
/// As there.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    with_inputs([q, k, v], heads, causal, attend)
}

/// Bytes that [`attention`] holds at most during the call beside its arguments and its result: keys and values, and each
/// thread what belongs to a block. The queries are `[batch, n, channels]`.
pub fn attention_scratch([batch, _, channels]: [usize; 3], keys: usize, heads: usize) -> u64 {
    let head = (channels / heads.max(1)).div_ceil(WIDTH);
    let strips = keys.div_ceil(WIDTH);
    let copies = (2 * STEP)
        .saturating_mul(head.saturating_mul(strips))
        .saturating_mul(batch.saturating_mul(heads));
    // Queries and weights are lines, scores and results twice as large.
    let of_query = 3usize.saturating_mul(head.saturating_add(strips));
    let of_threads = of_query.saturating_mul(block(strips) * rayon::current_num_threads());
    (copies.saturating_add(of_threads) as u64).saturating_mul(size_of::<Line>() as u64)
}

/// Queries of a block, for so many strips of keys.
fn block(strips: usize) -> usize {
    let queries = SCORES / (strips * WIDTH).max(1) / GROUP * GROUP;
    queries.clamp(GROUP, QUERIES)
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
    inputs
        .tasks(out, block(strips))
        .into_par_iter()
        .for_each_init(Buffers::default, |buffers, task| {
            let i = task.sample * heads + task.out.first() / inputs.head;
            let [keys, values] = [&keys, &values].map(|x| &x[i * head..][..head]);
            answer(inputs, task, keys, values, buffers);
        });
}

#[derive(Default)]
struct Buffers {
    queries: Vec<Line>,
    scores: Vec<Sums>,
    weights: Vec<Line>,
    sums: Vec<Sums>,
}

fn answer(inputs: &Inputs, task: Task, keys: &[Line], values: &[Line], buffers: &mut Buffers) {
    let Task {
        sample,
        first_query,
        mut out,
    } = task;
    let (strips, steps) = (inputs.keys.div_ceil(WIDTH), inputs.head.div_ceil(WIDTH));
    let rows = out.rows().next_multiple_of(GROUP);
    buffers.queries.resize(steps * rows, Line::ZERO);
    buffers.scores.resize(strips * rows, [0.; WIDTH]);
    buffers.weights.resize(strips * rows, Line::ZERO);
    buffers.sums.resize(steps * rows, [0.; WIDTH]);
    for i in 0..out.rows() {
        let row = sample * inputs.queries + first_query + i;
        let query = &inputs.q[row * inputs.channels + out.first()..][..inputs.head];
        for (query, lines) in query.chunks(WIDTH).zip(buffers.queries.chunks_mut(rows)) {
            lines[i] = Line::new(query);
        }
    }
    // Each step has the rows after those of the last one.
    let starts: Vec<usize> = (0..strips.max(steps)).map(|step| step * rows).collect();
    let groups = rows / GROUP;
    let queries = Left {
        lines: &buffers.queries,
        steps: &starts[..steps],
        groups,
    };
    product(queries, keys, &mut buffers.scores);
    let visible = |row: usize| match inputs.causal {
        true => (first_query + row + 1).min(inputs.keys),
        false => inputs.keys,
    };
    for (i, scores) in buffers.scores.iter_mut().enumerate() {
        let (first, row) = (i / rows * WIDTH, i % rows);
        if first + WIDTH > visible(row) {
            scores[visible(row).saturating_sub(first)..].fill(f32::NEG_INFINITY);
        }
    }
    let scale = (inputs.head as f32).sqrt().recip();
    let totals = vectorized!(exponentials(
        &buffers.scores,
        scale,
        rows,
        &mut buffers.weights
    ));
    let weights = Left {
        lines: &buffers.weights,
        steps: &starts[..strips],
        groups,
    };
    product(weights, values, &mut buffers.sums);
    for (i, total) in totals.iter().enumerate().take(out.rows()) {
        let norm = total.recip();
        for (out, sums) in out.row(i).chunks_mut(WIDTH).zip(buffers.sums.chunks(rows)) {
            for (out, sum) in out.iter_mut().zip(&sums[i]) {
                *out = sum * norm;
            }
        }
    }
}

/// `exp(scale * (score - largest of the row))` of the scores `[strips, rows]`, and the sum of each row.
#[inline(always)]
fn exponentials(scores: &[Sums], scale: f32, rows: usize, weights: &mut [Line]) -> Vec<f32> {
    let mut largest = vec![[f32::NEG_INFINITY; WIDTH]; rows];
    for scores in scores.chunks_exact(rows) {
        for (largest, scores) in largest.iter_mut().zip(scores) {
            for (largest, v) in largest.iter_mut().zip(scores) {
                *largest = if *v > *largest { *v } else { *largest };
            }
        }
    }
    for largest in &mut largest {
        let of_all = largest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        largest.fill(of_all);
    }
    let mut totals = vec![[0f32; WIDTH]; rows];
    let scale = scale * std::f32::consts::LOG2_E;
    let strips = scores.chunks_exact(rows).zip(weights.chunks_exact_mut(rows));
    for (scores, weights) in strips {
        for (i, (scores, weights)) in scores.iter().zip(weights).enumerate() {
            let mut powers = [0f32; WIDTH];
            for j in 0..WIDTH {
                powers[j] = power_of_two((scores[j] - largest[i][j]) * scale);
                totals[i][j] += powers[j];
            }
            *weights = Line::full(&powers);
        }
    }
    totals.iter().map(|lanes| lanes.iter().sum()).collect()
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
