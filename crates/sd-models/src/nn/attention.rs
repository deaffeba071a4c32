//! Scaled dot-product attention.

use std::num::{NonZeroUsize, ParseIntError};
use std::str::FromStr;

use candle_core::{D, DType, Result, Tensor};

use super::{Compute, Ledger, elements, on_cpu};

/// Bytes of scores that a GPU has at a time: the full matrix of one XL picture takes gigabytes, and small blocks leave it
/// idle.
const SCORE_BYTES: u64 = 1 << 30;

/// How many queries attend at a time where their scores are in memory: on a GPU without FlashAttention.
///
/// It does not matter on the CPU, where a core has the scores of some queries of one head at a time, and no others
/// exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AttentionSlice {
    /// So many that their scores take a gigabyte.
    #[default]
    Automatic,
    /// So many that their scores take this many bytes, but at least one.
    Bytes(u64),
    /// This many, each with all its samples and heads.
    Queries(NonZeroUsize),
}

impl AttentionSlice {
    /// Queries at a time, if the scores of one take `bytes`.
    pub(super) fn queries(self, bytes: u64) -> usize {
        let bytes_at_a_time = match self {
            Self::Automatic => SCORE_BYTES,
            Self::Bytes(bytes) => bytes,
            Self::Queries(queries) => return queries.get(),
        };
        let queries = bytes_at_a_time / bytes.max(1);
        usize::try_from(queries).unwrap_or(usize::MAX).max(1)
    }
}

impl FromStr for AttentionSlice {
    type Err = ParseIntError;

    /// `auto`, or a number of queries.
    fn from_str(text: &str) -> std::result::Result<Self, ParseIntError> {
        match text {
            "auto" => Ok(Self::Automatic),
            queries => queries.parse().map(Self::Queries),
        }
    }
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All.
    None,
    /// Those at its own position and before: text.
    Causal,
}

/// How attention is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttentionOptions {
    /// On a GPU.
    pub slice: AttentionSlice,
    /// On the CPU.
    pub compute: Compute,
}

/// `softmax(q k^T / sqrt(d)) v` in each head (Vaswani 2017, eq. 1).
///
/// Queries `[batch, n, heads * d]`, keys and values `[batch, m, heads * d]`; the result has the queries' shape.
/// Scores are f32 and exist for a block of queries at a time, see [`AttentionSlice`].
///
/// # Errors
/// The shapes do not fit together.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Mask,
    options: AttentionOptions,
) -> Result<Tensor> {
    let AttentionOptions { slice, compute } = options;
    if on_cpu(q) {
        let attention = match compute {
            Compute::F32 => sd_ops::attention,
            Compute::Bf16 => sd_ops::bf16::attention,
        };
        return attention(q, k, v, heads, mask == Mask::Causal);
    }
    let (batch, _, channels) = q.dims3()?;
    let (key_batch, m, key_channels) = k.dims3()?;
    let fits = heads > 0
        && channels % heads == 0
        && (key_batch, key_channels) == (batch, channels)
        && k.shape() == v.shape()
        && m > 0;
    if !fits {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        candle_core::bail!("attention of {heads} heads over {q:?}, {k:?} and {v:?}");
    }
    if q.elem_count() == 0 {
        return Ok(q.clone());
    }
    #[cfg(feature = "flash-attn")]
    if flash::supports(q, k, heads, mask) {
        return flash::attention(q, k, v, heads, mask);
    }
    let (batch, n, channels) = q.dims3()?;
    // [batch, n, heads * d] as [batch * heads, n, d]
    let split = |x: &Tensor| {
        let x = x.reshape((batch, x.dim(1)?, heads, channels / heads))?;
        x.transpose(1, 2)?.contiguous()?.flatten(0, 1)
    };
    let out = one_head(&split(q)?, &split(k)?, &split(v)?, mask, slice)?;
    out.reshape((batch, heads, n, channels / heads))?
        .transpose(1, 2)?
        .reshape(q.shape())
}

/// Attention of `[b, n, d]` to `[b, m, d]`, a block of queries after the other.
fn one_head(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Mask,
    slice: AttentionSlice,
) -> Result<Tensor> {
    let (b, n, d) = q.dims3()?;
    let scale = (d as f64).sqrt().recip();
    let keys = k.transpose(1, 2)?;
    let scores = (size_of::<f32>() * b * k.dim(1)?) as u64;
    let block = slice.queries(scores).min(n);
    let blocks = (0..n).step_by(block).map(|start| {
        let q = q.narrow(1, start, block.min(n - start))?;
        let causal = (mask == Mask::Causal).then_some(start);
        weights(&q, &keys, scale, causal)?
            .to_dtype(v.dtype())?
            .matmul(v)
    });
    Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)
}

/// The memory of [`attention`] beside its result, for queries `[batch, n, channels]` and keys `[batch, m, channels]`.
pub(crate) fn replay(
    memory: &mut Ledger,
    q: [usize; 3],
    m: usize,
    heads: usize,
    options: AttentionOptions,
) {
    let AttentionOptions { slice, compute } = options;
    if !memory.is_gpu() {
        let scratch = match compute {
            Compute::F32 => sd_ops::attention_scratch,
            Compute::Bf16 => sd_ops::bf16::attention_scratch,
        };
        return memory.pass_bytes(scratch(q, m, heads));
    }
    let [batch, n, _] = q;
    let row = elements(&[batch, heads, m, size_of::<f32>()]);
    let queries = slice.queries(row).min(n) as u64;
    // The scores, their exponentials and the quotients.
    memory.pass_bytes(row.saturating_mul(queries).saturating_mul(3));
}

/// The attention weights, in f32: in f16 the scores of v2.1 overflow.
fn weights(q: &Tensor, keys: &Tensor, scale: f64, causal: Option<usize>) -> Result<Tensor> {
    let scores = (q.to_dtype(DType::F32)? * scale)?.matmul(&keys.to_dtype(DType::F32)?)?;
    let scores = match causal {
        None => scores,
        Some(first) => {
            let (n, m) = (scores.dim(1)?, scores.dim(2)?);
            let bias =
                |query| (0..m).map(move |key| if key > query { f32::NEG_INFINITY } else { 0. });
            let bias = (first..first + n).flat_map(bias).collect::<Vec<_>>();
            scores.broadcast_add(&Tensor::from_vec(bias, (n, m), scores.device())?)?
        }
    };
    candle_nn::ops::softmax(&scores, D::Minus1)
}

/// FlashAttention (Dao 2023): on CUDA, without any score matrix.
#[cfg(feature = "flash-attn")]
mod flash {
    use candle_core::{DType, Result, Tensor};

    use super::Mask;

    /// Its kernels take 16-bit floats and heads of at most 256. Their causal mask aligns the last query with the last
    /// key, ours the first with the first.
    pub(super) fn supports(q: &Tensor, k: &Tensor, heads: usize, mask: Mask) -> bool {
        let head = q.dims()[2] / heads;
        let half = matches!(q.dtype(), DType::F16 | DType::BF16);
        let aligned = mask == Mask::None || q.dims()[1] == k.dims()[1];
        q.device().is_cuda() && half && aligned && head <= 256 && head.is_multiple_of(8)
    }

    pub(super) fn attention(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        mask: Mask,
    ) -> Result<Tensor> {
        let head = q.dim(2)? / heads;
        let split = |x: &Tensor| x.reshape((x.dim(0)?, x.dim(1)?, heads, head))?.contiguous();
        let scale = (head as f32).sqrt().recip();
        candle_flash_attn::flash_attn(
            &split(q)?,
            &split(k)?,
            &split(v)?,
            scale,
            mask == Mask::Causal,
        )?
        .reshape(q.shape())
    }
}
