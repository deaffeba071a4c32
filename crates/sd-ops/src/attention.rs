//! Scaled dot-product attention, a block of queries of one head at a time.
//!
//! The scores of a block stay in a core's cache; those of all queries would take gigabytes. Heads are read and written
//! where they lie, side by side in the channels. The blocks depend on the sizes of one sample alone, so neither the
//! threads nor the batch change a sum's order.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    exp::exp,
    strip::{Rows, Strip, strips},
    values,
};

/// Scores of a block: a megabyte.
const SCORES: usize = 1 << 18;
/// Queries of a block: fewer make poor matrix products, more leave cores without work.
const QUERIES: std::ops::RangeInclusive<usize> = 16..=256;

/// `softmax(q k^T / sqrt(d)) v` in each head (Vaswani 2017, eq. 1).
///
/// Queries `[batch, n, heads * d]`, keys and values `[batch, m, heads * d]`, f32 on the CPU; the result has the
/// queries' shape. If `causal`, query `i` sees the keys up to `i`. No gradient is recorded.
///
/// # Errors
/// The shapes do not fit together, there is no key, or a tensor is of another dtype or device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, queries, channels) = q.dims3()?;
    let (key_batch, keys, key_channels) = k.dims3()?;
    let fits = heads > 0
        && channels % heads == 0
        && (key_batch, key_channels) == (batch, channels)
        && k.shape() == v.shape()
        && keys > 0;
    if !fits {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        bail!("attention of {heads} heads over {q:?}, {k:?} and {v:?}");
    }
    let [q, k, v] = [q.contiguous()?, k.contiguous()?, v.contiguous()?];
    let mut out = vec![0f32; q.elem_count()];
    {
        let [q, k, v] = [&q, &k, &v].map(Tensor::storage_and_layout);
        let inputs = Inputs {
            q: values(&q.0, q.1)?,
            k: values(&k.0, k.1)?,
            v: values(&v.0, v.1)?,
            queries,
            keys,
            channels,
            head: channels / heads,
            causal,
        };
        inputs.attend(&mut out);
    }
    Tensor::from_vec(out, (batch, queries, channels), &Device::Cpu)
}

/// Bytes that [`attention`] holds at most during the call beside its arguments and its result: each thread the scores of
/// a block.
pub fn attention_scratch(queries: usize, keys: usize) -> u64 {
    let rows = |count: usize| keys.saturating_mul(count);
    let scores = SCORES
        .clamp(rows(*QUERIES.start()), rows(*QUERIES.end()))
        .min(rows(queries));
    let bytes = scores.saturating_mul(size_of::<f32>());
    (bytes as u64).saturating_mul(rayon::current_num_threads() as u64)
}

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    queries: usize,
    keys: usize,
    /// Of all heads.
    channels: usize,
    /// Channels of one head.
    head: usize,
    causal: bool,
}

/// One head's answers to some neighbouring queries.
struct Task<'a> {
    sample: usize,
    first_query: usize,
    out: Strip<'a>,
}

impl Inputs<'_> {
    fn attend(&self, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let block = (SCORES / self.keys).clamp(*QUERIES.start(), *QUERIES.end());
        let mut tasks = Vec::new();
        for (sample, out) in out.chunks_mut(self.queries * self.channels).enumerate() {
            for (i, out) in out.chunks_mut(block * self.channels).enumerate() {
                tasks.extend(strips(out, self.channels, self.head).map(|out| Task {
                    sample,
                    first_query: i * block,
                    out,
                }));
            }
        }
        tasks
            .into_par_iter()
            .for_each_init(Vec::new, |scores, task| self.run(task, scores));
    }

    fn run(&self, task: Task, scores: &mut Vec<f32>) {
        let Task {
            sample,
            first_query,
            mut out,
        } = task;
        let head = |x, first_row: usize| {
            let rows: &[f32] = x;
            Rows::new(&rows[first_row * self.channels..], self.channels).columns_from(out.first())
        };
        let q = head(self.q, sample * self.queries + first_query);
        let k = head(self.k, sample * self.keys);
        let v = head(self.v, sample * self.keys);

        scores.resize(out.rows() * self.keys, 0.);
        for mut block in strips(scores, self.keys, self.keys) {
            block.set_product(q, k.transposed(), self.head);
        }
        let scale = (self.head as f32).sqrt().recip();
        let sums: Vec<f32> = scores
            .chunks_mut(self.keys)
            .zip(first_query..)
            .map(|(scores, query)| {
                let visible = if self.causal { query + 1 } else { self.keys };
                let (seen, hidden) = scores.split_at_mut(visible.min(self.keys));
                hidden.fill(0.);
                exponentials(seen, scale)
            })
            .collect();
        out.set_product(Rows::new(scores, self.keys), v, self.keys);
        for (i, sum) in sums.into_iter().enumerate() {
            let norm = sum.recip();
            out.row(i).iter_mut().for_each(|v| *v *= norm);
        }
    }
}

/// `exp(scale * (score - largest))` in place of each score; their sum.
fn exponentials(scores: &mut [f32], scale: f32) -> f32 {
    const LANES: usize = 16;
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Short sums in f32 lanes, of which f64 takes the total: exact enough, and fast.
    let mut total = 0f64;
    for chunk in scores.chunks_mut(8 * LANES) {
        for score in chunk.iter_mut() {
            *score = exp((*score - largest) * scale);
        }
        let mut lanes = [0f32; LANES];
        for part in chunk.chunks(LANES) {
            for (lane, v) in lanes.iter_mut().zip(part) {
                *lane += v;
            }
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    total as f32
}
