//! Residual blocks and changes of resolution.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::{Conv2d, ConvConfig, GroupNorm, Ledger, Linear, sum};

/// Two normalised convolutions beside a shortcut (diffusers' `ResnetBlock2D`).
#[derive(Debug, Clone)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// Reads the weights. `time_embed_dim` is the width of the time embedding, `None` in the autoencoder;
    /// `norm` is the number of groups and the epsilon.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(
        inputs: usize,
        outputs: usize,
        time_embed_dim: Option<usize>,
        norm: (usize, f64),
        vb: VarBuilder,
    ) -> Result<Self> {
        let (groups, eps) = norm;
        Ok(Self {
            norm1: GroupNorm::new(groups, inputs, eps, vb.pp("norm1"))?,
            conv1: Conv2d::new(inputs, outputs, ConvConfig::SAME, vb.pp("conv1"))?,
            time_emb_proj: time_embed_dim
                .map(|width| Linear::new(width, outputs, vb.pp("time_emb_proj")))
                .transpose()?,
            norm2: GroupNorm::new(groups, outputs, eps, vb.pp("norm2"))?,
            conv2: Conv2d::new(outputs, outputs, ConvConfig::SAME, vb.pp("conv2"))?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(inputs, outputs, ConvConfig::POINT, vb.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// `[batch, inputs, h, w]` to `[batch, outputs, h, w]`. `time` is `silu` of the time embedding
    /// `[batch, time_embed_dim]`: all blocks of a network share it.
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        if self.conv1.fuses() {
            return self.fused(x.clone(), time);
        }
        let h = self.after_norm(self.norm1.forward_silu(x)?, time)?;
        match &self.conv_shortcut {
            Some(shortcut) => sum(shortcut.forward(x)?, &h),
            None => sum(h, x),
        }
    }

    /// [`forward`](Self::forward) for less memory, as it may overwrite `x`: there must be no other handle to its data.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn forward_owned(&self, x: Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        if self.conv1.fuses() {
            return self.fused(x, time);
        }
        let Some(shortcut) = &self.conv_shortcut else {
            return self.forward(&x, time);
        };
        let beside = shortcut.forward(&x)?;
        let h = self.after_norm(self.norm1.silu_in_place(x)?, time)?;
        sum(beside, &h)
    }

    /// [`forward`](Self::forward) without the norms' results.
    fn fused(&self, x: Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let shift = self.shift(time)?;
        let h = self
            .conv1
            .forward_fused(&self.norm1, &x, shift.as_ref(), None)?;
        let residual = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(&x)?,
            None => x.clone(),
        };
        drop(x);
        self.conv2
            .forward_fused(&self.norm2, &h, None, Some(&residual))
    }

    /// The memory of [`fused`](Self::fused), which lets go of `x` if it is `owned`.
    fn replay_fused(&self, memory: &mut Ledger, x: [usize; 4], owned: bool) -> [usize; 4] {
        let h = self.conv1.replay(memory, x);
        let Some(shortcut) = &self.conv_shortcut else {
            let y = self.conv2.replay(memory, h);
            memory.release(&h);
            if owned {
                memory.release(&x);
            }
            return y;
        };
        let residual = shortcut.replay(memory, x);
        if owned {
            memory.release(&x);
        }
        let y = self.conv2.replay(memory, h);
        memory.release(&h);
        memory.release(&residual);
        y
    }

    /// The memory of [`forward`](Self::forward).
    pub(crate) fn replay(&self, memory: &mut Ledger, x: [usize; 4]) -> [usize; 4] {
        if self.conv1.fuses_in(memory) {
            return self.replay_fused(memory, x, false);
        }
        self.norm1.replay(memory, &x);
        let y = self.replay_after_norm(memory, x);
        if let Some(shortcut) = &self.conv_shortcut {
            shortcut.replay(memory, x);
            memory.release(&y);
        }
        y
    }

    /// The memory of [`forward_owned`](Self::forward_owned), which lets go of `x`.
    pub(crate) fn replay_owned(&self, memory: &mut Ledger, x: [usize; 4]) -> [usize; 4] {
        if self.conv1.fuses_in(memory) {
            return self.replay_fused(memory, x, true);
        }
        let Some(shortcut) = &self.conv_shortcut else {
            let y = self.replay(memory, x);
            memory.release(&x);
            return y;
        };
        let y = shortcut.replay(memory, x);
        self.norm1.replay_in_place(memory, &x);
        self.replay_after_norm(memory, x);
        memory.release(&y);
        y
    }

    /// The memory of [`after_norm`](Self::after_norm), which lets go of `x`.
    fn replay_after_norm(&self, memory: &mut Ledger, x: [usize; 4]) -> [usize; 4] {
        let y = self.conv1.replay(memory, x);
        memory.release(&x);
        self.norm2.replay_in_place(memory, &y);
        self.conv2.replay(memory, y);
        memory.release(&y);
        y
    }

    /// What the first convolution adds for the time: `[batch, outputs]`.
    fn shift(&self, time: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (&self.time_emb_proj, time) {
            (Some(projection), Some(time)) => projection.forward(time).map(Some),
            _ => Ok(None),
        }
    }

    /// The convolutions, of the first norm's result.
    fn after_norm(&self, normed: Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let h = match self.shift(time)? {
            Some(shift) => self.conv1.forward_shifted(&normed, &shift)?,
            None => self.conv1.forward(&normed)?,
        };
        drop(normed);
        self.conv2.forward(&self.norm2.silu_in_place(h)?)
    }
}

/// Halves the resolution by a convolution of stride 2.
#[derive(Debug, Clone)]
pub struct Downsample {
    conv: Conv2d,
    padding: usize,
}

impl Downsample {
    /// Reads `conv`. With `padding` 0 one row and column of zeros are added below and to the right, as the
    /// autoencoder's encoder does.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(channels: usize, padding: usize, vb: VarBuilder) -> Result<Self> {
        let config = ConvConfig {
            kernel: 3,
            stride: 2,
            padding,
        };
        Ok(Self {
            conv: Conv2d::new(channels, channels, config, vb.pp("conv"))?,
            padding,
        })
    }

    /// The memory of [`forward`](Self::forward).
    pub(crate) fn replay(&self, memory: &mut Ledger, x: [usize; 4]) -> [usize; 4] {
        if self.padding > 0 {
            return self.conv.replay(memory, x);
        }
        let [batch, channels, height, width] = x;
        let [taller, wider] = [height, width].map(|side| side.saturating_add(1));
        let padded = [batch, channels, taller, wider];
        let wider = [batch, channels, height, wider];
        memory.hold(&wider);
        memory.hold(&padded);
        memory.release(&wider);
        let y = self.conv.replay(memory, padded);
        memory.release(&padded);
        y
    }

    /// `[batch, channels, h, w]` to `[batch, channels, h', w']`: half, rounded up with padding 1 and down with
    /// padding 0.
    ///
    /// # Errors
    /// `x` has another number of channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.padding > 0 {
            return self.conv.forward(x);
        }
        let x = x
            .pad_with_zeros(D::Minus1, 0, 1)?
            .pad_with_zeros(D::Minus2, 0, 1)?;
        self.conv.forward(&x)
    }
}

/// Raises the resolution by repeating pixels, then convolves.
#[derive(Debug, Clone)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Reads `conv`.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(channels, channels, ConvConfig::SAME, vb.pp("conv"))?,
        })
    }

    /// The memory of [`forward`](Self::forward), which lets go of `x`.
    pub(crate) fn replay(
        &self,
        memory: &mut Ledger,
        x: [usize; 4],
        size: Option<[usize; 2]>,
    ) -> [usize; 4] {
        let [batch, channels, height, width] = x;
        let [height, width] = size.unwrap_or([height, width].map(|side| side.saturating_mul(2)));
        let repeated = [batch, channels, height, width];
        if !memory.is_gpu() {
            let y = self.conv.replay(memory, repeated);
            memory.release(&x);
            return y;
        }
        memory.hold(&repeated);
        memory.release(&x);
        let y = self.conv.replay(memory, repeated);
        memory.release(&repeated);
        y
    }

    /// `[batch, channels, h, w]` to `[batch, channels, height, width]`; twice the input unless `size` is given, whose sides may be one
    /// less than that.
    ///
    /// # Errors
    /// `x` has another number of channels, or the size is another.
    pub fn forward(&self, x: Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let (height, width) = size.unwrap_or((2 * height, 2 * width));
        self.conv.forward_doubled(x, [height, width])
    }
}
