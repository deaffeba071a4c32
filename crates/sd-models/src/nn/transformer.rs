//! The transformer between two residual blocks (diffusers' `Transformer2DModel`).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    AttentionOptions, AttentionSlice, GroupNorm, LayerNorm, Ledger, Linear, Mask, attention,
    replay_attention, sum, transpose,
};

/// Epsilon of torch's layer norm; no configuration changes it.
const LAYER_NORM_EPS: f64 = 1e-5;
/// Epsilon of the transformer's group norm, whatever the residual blocks use.
const GROUP_NORM_EPS: f64 = 1e-6;

/// Keys and values that an [`Attention`] computed from its context, `[batch, m, channels]` each.
#[derive(Debug, Clone)]
pub struct KeysValues {
    keys: Tensor,
    values: Tensor,
}

/// Attention with its projections.
#[derive(Debug, Clone)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    slice: AttentionSlice,
}

impl Attention {
    /// Reads `to_q`, `to_k`, `to_v` and `to_out.0`; the context is `context_dim` wide.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(channels: usize, context_dim: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, vb.pp("to_q"))?,
            to_k: Linear::no_bias(context_dim, channels, vb.pp("to_k"))?,
            to_v: Linear::no_bias(context_dim, channels, vb.pp("to_v"))?,
            to_out: Linear::new(channels, channels, vb.pp("to_out").pp("0"))?,
            heads,
            slice: AttentionSlice::default(),
        })
    }

    /// What the queries look at. It depends on the context alone, so one call serves all steps of a run.
    ///
    /// # Errors
    /// The context, `[batch, m, context_dim]`, has another width.
    pub fn keys_values(&self, context: &Tensor) -> Result<KeysValues> {
        Ok(KeysValues {
            keys: self.to_k.forward(context)?,
            values: self.to_v.forward(context)?,
        })
    }

    /// `[batch, n, channels]` to the same shape.
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn forward(&self, x: &Tensor, context: &KeysValues) -> Result<Tensor> {
        let KeysValues { keys, values } = context;
        let q = self.to_q.forward(x)?;
        let x = attention(&q, keys, values, self.heads, Mask::None, self.options())?;
        self.to_out.forward(&x)
    }
}

impl Attention {
    fn options(&self) -> AttentionOptions {
        AttentionOptions {
            slice: self.slice,
            compute: self.to_q.compute(),
        }
    }

    /// The memory of [`forward`](Self::forward) with the keys and values of `context`.
    fn replay(&self, memory: &mut Ledger, x: &[usize; 3], context: &[usize; 3]) {
        let keys = self.to_k.replay(memory, context);
        self.to_v.replay(memory, context);
        let q = self.to_q.replay(memory, x);
        memory.hold(&q);
        replay_attention(memory, q, keys[1], self.heads, self.options());
        self.to_out.replay(memory, &q);
        for gone in [q, q, keys, keys] {
            memory.release(&gone);
        }
    }
}

/// Self-attention, cross-attention and a gated feed-forward layer (diffusers' `BasicTransformerBlock`).
#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl Block {
    fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
        let &TransformerConfig {
            channels,
            context_dim,
            heads,
            ..
        } = config;
        let norm = |name| LayerNorm::new(channels, LAYER_NORM_EPS, vb.pp(name));
        let ff = vb.pp("ff").pp("net");
        let hidden = 4 * channels;
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(channels, channels, heads, vb.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(channels, context_dim, heads, vb.pp("attn2"))?,
            norm3: norm("norm3")?,
            ff_in: Linear::gated(channels, hidden, ff.pp("0").pp("proj"))?,
            ff_out: Linear::new(hidden, channels, ff.pp("2"))?,
        })
    }

    /// `x` may be overwritten.
    fn forward(&self, x: Tensor, context: &Tensor) -> Result<Tensor> {
        let attended = {
            let h = self.norm1.forward(&x)?;
            self.attn1.forward(&h, &self.attn1.keys_values(&h)?)?
        };
        let x = sum(x, &attended)?;
        drop(attended);
        let attended = {
            let h = self.norm2.forward(&x)?;
            self.attn2.forward(&h, &self.attn2.keys_values(context)?)?
        };
        let x = sum(x, &attended)?;
        drop(attended);
        let h = self.ff_in.forward_geglu(&self.norm3.forward(&x)?)?;
        sum(x, &self.ff_out.forward(&h)?)
    }
}

impl Block {
    /// The memory of [`forward`](Self::forward), which holds the result where it held `x`.
    fn replay(&self, memory: &mut Ledger, x: &[usize; 3], context: &[usize; 3]) {
        for (attention, context) in [(&self.attn1, x), (&self.attn2, context)] {
            memory.hold(x);
            attention.replay(memory, x, context);
            memory.release(x);
            memory.release(x);
        }
        memory.hold(x);
        let hidden = self.ff_in.replay_geglu(memory, x);
        memory.release(x);
        let y = self.ff_out.replay(memory, &hidden);
        memory.release(&hidden);
        memory.release(&y);
    }
}

/// How the weights of a transformer's input and output projections are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// As 1x1 convolutions (v1).
    Conv,
    /// As matrices (v2, XL).
    Linear,
}

/// The shape of a [`Transformer2d`].
#[derive(Debug, Clone)]
pub struct TransformerConfig {
    /// Channels of its input and output.
    pub channels: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Blocks.
    pub depth: usize,
    /// Width of the cross-attention's context.
    pub context_dim: usize,
    /// Groups of its norm.
    pub norm_num_groups: usize,
    /// How its projections are stored.
    pub projection: Projection,
}

/// A stack of transformer blocks over the pixels of an image.
#[derive(Debug, Clone)]
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<Block>,
    proj_out: Linear,
}

impl Transformer2d {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.channels;
        let projection = |name| match config.projection {
            Projection::Conv => Linear::from_conv(channels, channels, vb.pp(name)),
            Projection::Linear => Linear::new(channels, channels, vb.pp(name)),
        };
        let blocks = vb.pp("transformer_blocks");
        Ok(Self {
            norm: GroupNorm::new(
                config.norm_num_groups,
                channels,
                GROUP_NORM_EPS,
                vb.pp("norm"),
            )?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..config.depth)
                .map(|i| Block::new(config, blocks.pp(i)))
                .collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// The memory of [`forward`](Self::forward) for a context of `[batch, m, context_dim]`.
    pub(crate) fn replay(&self, memory: &mut Ledger, x: [usize; 4], context: &[usize; 3]) {
        let [batch, channels, height, width] = x;
        let rows = [batch, height.saturating_mul(width), channels];
        self.norm.replay(memory, &x);
        memory.hold(&rows);
        memory.release(&x);
        self.proj_in.replay(memory, &rows);
        memory.release(&rows);
        for block in &self.transformer_blocks {
            block.replay(memory, &rows, context);
        }
        self.proj_out.replay(memory, &rows);
        memory.release(&rows);
        memory.pass(&x);
    }

    /// Sets how many queries attend at a time.
    pub fn set_attention_slice(&mut self, slice: AttentionSlice) {
        for block in &mut self.transformer_blocks {
            block.attn1.slice = slice;
            block.attn2.slice = slice;
        }
    }

    /// `[batch, channels, h, w]` to the same shape; `context` is `[batch, m, context_dim]`.
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        // [batch, channels, h, w] as [batch, h * w, channels]
        let mut h = transpose(&self.norm.forward(x)?.flatten_from(2)?)?;
        h = self.proj_in.forward(&h)?;
        for block in &self.transformer_blocks {
            h = block.forward(h, context)?;
        }
        h = self.proj_out.forward(&h)?;
        h = transpose(&h)?;
        sum(h.reshape(x.shape())?, x)
    }
}
