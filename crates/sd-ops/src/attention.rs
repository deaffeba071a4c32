//! Scaled dot-product attention, a block of queries of one head at a time.
//!
//! The scores of a block stay in a core's cache; those of all queries would take gigabytes. Heads are read and written
//! where they lie, side by side in the channels; keys and values are copied once, as products read them.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    buffer::{part, unwritten},
    isa::vectorized,
    math::exp,
    product::{PANEL, Panels, Rows, Start, panels_len},
    strip::{Strip, strips, strips_of},
    tasks, values,
};

/// Scores of a block: half a megabyte.
const SCORES: usize = 36 << 12;
/// Queries of a block are a multiple of this, whole tiles of both products.
const TILES: usize = 18;
/// Fewer make poor matrix products, more leave cores without work.
const QUERIES: std::ops::RangeInclusive<usize> = TILES..=14 * TILES;
/// Scores between the rows of a block, which would otherwise often want the same few lines of a cache.
const GAP: usize = 16;

/// `softmax(q k^T / sqrt(d)) v` in each head (Vaswani 2017, eq. 1).
///
/// Queries `[batch, n, heads * d]`, keys and values `[batch, m, heads * d]`, f32 on the CPU; the result has the
/// queries' shape. If `causal`, query `i` sees the keys up to `i`. No gradient is recorded.
///
/// # Errors
/// The shapes do not fit together, there is no key, or a tensor is of another dtype or device.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    with_inputs([q, k, v], heads, causal, |inputs, out| inputs.attend(out))
}

/// A tensor like `q`, filled by `attend`, if the inputs fit together.
pub(crate) fn with_inputs(
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    causal: bool,
    attend: impl FnOnce(&Inputs, &mut [f32]),
) -> Result<Tensor> {
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
    let mut out = unwritten(q.elem_count());
    if !out.is_empty() {
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
        attend(&inputs, &mut out);
    }
    Tensor::from_vec(out, (batch, queries, channels), &Device::Cpu)
}

/// Bytes that [`attention`] holds at most during the call beside its arguments and its result: keys and values, and each
/// thread the scores of a block. The queries are `[batch, n, channels]`.
pub fn attention_scratch([batch, n, channels]: [usize; 3], keys: usize, heads: usize) -> u64 {
    let head = channels / heads.max(1);
    let copies = panels_len(head, keys)
        .saturating_add(panels_len(keys, head))
        .saturating_mul(batch.saturating_mul(heads));
    let scores = block(keys)
        .min(n)
        .saturating_mul(keys.saturating_add(GAP))
        .saturating_mul(rayon::current_num_threads());
    (copies.saturating_add(scores) as u64).saturating_mul(size_of::<f32>() as u64)
}

/// Queries of a block.
fn block(keys: usize) -> usize {
    let queries = (SCORES / keys.max(1)).clamp(*QUERIES.start(), *QUERIES.end());
    queries / TILES * TILES
}

pub(crate) struct Inputs<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Of all heads.
    pub(crate) channels: usize,
    /// Channels of one head.
    pub(crate) head: usize,
    pub(crate) causal: bool,
}

/// One head's answers to some neighbouring queries.
pub(crate) struct Task<'a> {
    pub(crate) sample: usize,
    pub(crate) first_query: usize,
    pub(crate) out: Strip<'a>,
}

impl Inputs<'_> {
    fn attend(&self, out: &mut [f32]) {
        let (keys, values) = (self.keys_in_panels(), self.values_in_panels());
        let heads = self.channels / self.head;
        fn of_head(panels: &[f32], depth: usize, columns: usize, i: usize) -> Panels<'_> {
            let len = panels_len(depth, columns);
            Panels::new(&panels[i * len..][..len], depth)
        }
        tasks::each(self.tasks(out, block(self.keys)), |scores, task: Task| {
            let i = task.sample * heads + task.out.first() / self.head;
            let keys = of_head(&keys, self.head, self.keys, i);
            let values = of_head(&values, self.keys, self.head, i);
            self.run(task, keys, values, scores);
        });
    }

    /// What is to be done, for `block` queries at a time.
    pub(crate) fn tasks<'a>(&self, out: &'a mut [f32], block: usize) -> Vec<Task<'a>> {
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
    }

    /// The keys of each sample and head as columns.
    fn keys_in_panels(&self) -> Vec<f32> {
        self.in_panels(self.k, self.head, self.keys, |key, first, panel| {
            for (column, i) in (first..self.keys.min(first + PANEL)).enumerate() {
                for (row, v) in panel.chunks_exact_mut(PANEL).zip(key(i)) {
                    row[column] = *v;
                }
            }
        })
    }

    /// The values of each sample and head as rows.
    fn values_in_panels(&self) -> Vec<f32> {
        self.in_panels(self.v, self.keys, self.head, |value, first, panel| {
            let last = self.head.min(first + PANEL);
            for (i, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                row[..last - first].copy_from_slice(&value(i)[first..last]);
            }
        })
    }

    /// A matrix of `depth` rows and `columns` of each sample and head of `x`: `[batch, heads, columns / PANEL, depth, PANEL]`.
    /// `write(row, first, panel)` fills a panel from column `first` on, where `row(i)` is the head's row `i` of `x`.
    fn in_panels<'a>(
        &self,
        x: &'a [f32],
        depth: usize,
        columns: usize,
        write: impl Fn(&dyn Fn(usize) -> &'a [f32], usize, &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let heads = self.channels / self.head;
        let samples = x.len() / (self.keys * self.channels);
        let panels = columns.div_ceil(PANEL);
        let mut out = unwritten(samples * heads * panels_len(depth, columns));
        out.par_chunks_mut(depth * PANEL)
            .enumerate()
            .for_each(|(i, panel)| {
                let (head, first) = (i / panels, i % panels * PANEL);
                let row = |i: usize| {
                    let row = head / heads * self.keys + i;
                    &x[row * self.channels + head % heads * self.head..][..self.head]
                };
                write(&row, first, panel);
            });
        out
    }

    fn run(&self, task: Task, keys: Panels, values: Panels, scores: &mut Vec<f32>) {
        let Task {
            sample,
            first_query,
            mut out,
        } = task;
        let first_row = sample * self.queries + first_query;
        let q = &self.q[first_row * self.channels + out.first()..];
        let q = Rows::new(q, self.channels);
        let row = self.keys + GAP;
        let scores = part(scores, out.rows() * row);
        for mut block in strips_of(scores, row, 0..self.keys, self.keys) {
            block.set_product(Start::Zero, q, keys);
        }
        let scale = (self.head as f32).sqrt().recip();
        let sums: Vec<f32> = scores
            .chunks_mut(row)
            .zip(first_query..)
            .map(|(scores, query)| {
                let visible = if self.causal { query + 1 } else { self.keys };
                let (seen, hidden) = scores.split_at_mut(visible.min(self.keys));
                hidden.fill(0.);
                vectorized!(exponentials(seen, scale))
            })
            .collect();
        out.set_product(Start::Zero, Rows::new(scores, row), values);
        for (i, sum) in sums.into_iter().enumerate() {
            let norm = sum.recip();
            out.row(i).iter_mut().for_each(|v| *v *= norm);
        }
    }
}

/// `exp(scale * (score - largest))` in place of each score; their sum.
#[inline(always)]
fn exponentials(scores: &mut [f32], scale: f32) -> f32 {
    const LANES: usize = 16;
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, v) in largest.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    let largest = largest.iter().chain(rest).copied();
    let largest = largest.fold(f32::NEG_INFINITY, f32::max);
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    // A few exponentials are summed in f32, of which a vector holds twice as many as of the f64 that these sums are summed in.
    let mut lanes = [0f64; LANES];
    for chunks in chunks.chunks_mut(16) {
        let mut few = [0f32; LANES];
        for chunk in chunks {
            for (few, score) in few.iter_mut().zip(chunk) {
                *score = exp((*score - largest) * scale);
                *few += *score;
            }
        }
        for (lane, few) in lanes.iter_mut().zip(few) {
            *lane += f64::from(few);
        }
    }
    for (lane, score) in lanes.iter_mut().zip(rest) {
        *score = exp((*score - largest) * scale);
        *lane += f64::from(*score);
    }
    lanes.iter().sum::<f64>() as f32
}
