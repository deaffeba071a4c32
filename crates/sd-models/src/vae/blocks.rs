//! The middle block that encoder and decoder share.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use sd_config::VaeConfig;

use crate::nn::{
    AttentionOptions, AttentionSlice, GroupNorm, Ledger, Linear, Mask, ResnetBlock, attention,
    replay_attention, sum, transpose,
};

/// Epsilon of every norm of the autoencoder; no configuration changes it.
pub(super) const NORM_EPS: f64 = 1e-6;

/// A residual layer of the autoencoder: there is no time here.
pub(super) fn resnet(
    config: &VaeConfig,
    inputs: usize,
    outputs: usize,
    vb: VarBuilder,
) -> Result<ResnetBlock> {
    ResnetBlock::new(
        inputs,
        outputs,
        None,
        (config.norm_num_groups, NORM_EPS),
        vb,
    )
}

/// Two residual layers, self-attention between them (diffusers' `UNetMidBlock2D`).
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    first: ResnetBlock,
    attention: Option<SelfAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    pub(super) fn new(config: &VaeConfig, channels: usize, vb: VarBuilder) -> Result<Self> {
        let resnets = vb.pp("resnets");
        let attention = || SelfAttention::new(config, channels, vb.pp("attentions").pp(0));
        Ok(Self {
            first: resnet(config, channels, channels, resnets.pp(0))?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            second: resnet(config, channels, channels, resnets.pp(1))?,
        })
    }

    /// The memory of [`forward`](Self::forward), which lets go of `x`.
    pub(super) fn replay(&self, memory: &mut Ledger, x: [usize; 4]) -> [usize; 4] {
        let y = self.first.replay_owned(memory, x);
        if let Some(attention) = &self.attention {
            attention.replay(memory, y);
            memory.release(&y);
        }
        self.second.replay_owned(memory, y)
    }

    pub(super) fn set_attention_slice(&mut self, slice: AttentionSlice) {
        if let Some(attention) = &mut self.attention {
            attention.slice = slice;
        }
    }

    /// `x` may be overwritten.
    pub(super) fn forward(&self, x: Tensor) -> Result<Tensor> {
        let mut x = self.first.forward_owned(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward_owned(x, None)
    }
}

/// Attention among all pixels, with one head.
#[derive(Debug, Clone)]
struct SelfAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    slice: AttentionSlice,
}

impl SelfAttention {
    fn new(config: &VaeConfig, channels: usize, vb: VarBuilder) -> Result<Self> {
        let linear = |name: &str| Linear::new(channels, channels, vb.pp(name));
        let groups = config.norm_num_groups;
        Ok(Self {
            group_norm: GroupNorm::new(groups, channels, NORM_EPS, vb.pp("group_norm"))?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
            slice: AttentionSlice::default(),
        })
    }

    fn options(&self) -> AttentionOptions {
        AttentionOptions {
            slice: self.slice,
            compute: self.to_q.compute(),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // [1, channels, h, w] as [1, h * w, channels]
        let h = transpose(&self.group_norm.forward(x)?.flatten_from(2)?)?;
        let (q, k, v) = (
            self.to_q.forward(&h)?,
            self.to_k.forward(&h)?,
            self.to_v.forward(&h)?,
        );
        let h = self
            .to_out
            .forward(&attention(&q, &k, &v, 1, Mask::None, self.options())?)?;
        sum(transpose(&h)?.reshape(x.shape())?, x)
    }

    /// The memory of [`forward`](Self::forward).
    fn replay(&self, memory: &mut Ledger, x: [usize; 4]) {
        let [batch, channels, height, width] = x;
        let rows = [batch, height.saturating_mul(width), channels];
        self.group_norm.replay(memory, &x);
        memory.hold(&rows);
        memory.release(&x);
        for linear in [&self.to_q, &self.to_k, &self.to_v] {
            linear.replay(memory, &rows);
        }
        memory.hold(&rows);
        replay_attention(memory, rows, rows[1], 1, self.options());
        self.to_out.replay(memory, &rows);
        memory.release(&rows);
        memory.hold(&x);
        for _ in 0..5 {
            memory.release(&rows);
        }
    }
}
