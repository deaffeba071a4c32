//! The transformer between two residual blocks (diffusers' `Transformer2DModel`).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{GroupNorm, LayerNorm, Linear, Mask, attention, geglu};

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
        let x = attention(&self.to_q.forward(x)?, keys, values, self.heads, Mask::None)?;
        self.to_out.forward(&x)
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
            ff_in: Linear::new(channels, 2 * hidden, ff.pp("0").pp("proj"))?,
            ff_out: Linear::new(hidden, channels, ff.pp("2"))?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = (self.attn1.forward(&h, &self.attn1.keys_values(&h)?)? + x)?;
        let h = self.norm2.forward(&x)?;
        let x = (self.attn2.forward(&h, &self.attn2.keys_values(context)?)? + x)?;
        let h = geglu(&self.ff_in.forward(&self.norm3.forward(&x)?)?)?;
        self.ff_out.forward(&h)? + x
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

    /// `[batch, channels, h, w]` to the same shape; `context` is `[batch, m, context_dim]`.
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        // [batch, channels, h, w] as [batch, h * w, channels]
        let h = self
            .norm
            .forward(x)?
            .flatten_from(2)?
            .transpose(1, 2)?
            .contiguous()?;
        let mut h = self.proj_in.forward(&h)?;
        for block in &self.transformer_blocks {
            h = block.forward(&h, context)?;
        }
        let h = self.proj_out.forward(&h)?;
        h.transpose(1, 2)?.reshape(x.shape())? + x
    }
}
