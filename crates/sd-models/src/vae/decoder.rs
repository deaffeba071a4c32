//! From latents to a picture.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use sd_config::VaeConfig;

use super::blocks::{MidBlock, NORM_EPS, resnet};
use crate::nn::{Conv2d, ConvConfig, GroupNorm, Ledger, ResnetBlock, Upsample};

#[derive(Debug, Clone)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    pub(super) mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &VaeConfig, vb: VarBuilder) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (Some(&first), Some(&last)) = (widths.first(), widths.last()) else {
            candle_core::bail!("block_out_channels is empty")
        };
        let mut inputs = last;
        let mut up_blocks = Vec::with_capacity(widths.len());
        for (i, &outputs) in widths.iter().rev().enumerate() {
            let vb = vb.pp("up_blocks").pp(i);
            let mut resnets = Vec::with_capacity(config.layers_per_block + 1);
            for layer in 0..=config.layers_per_block {
                resnets.push(resnet(config, inputs, outputs, vb.pp("resnets").pp(layer))?);
                inputs = outputs;
            }
            let doubles = i + 1 < widths.len();
            let upsampler = doubles.then(|| Upsample::new(outputs, vb.pp("upsamplers").pp(0)));
            up_blocks.push((resnets, upsampler.transpose()?));
        }
        let latents = config.latent_channels;
        let groups = config.norm_num_groups;
        Ok(Self {
            conv_in: Conv2d::new(latents, last, ConvConfig::SAME, vb.pp("conv_in"))?,
            mid_block: MidBlock::new(config, last, vb.pp("mid_block"))?,
            up_blocks,
            conv_norm_out: GroupNorm::new(groups, first, NORM_EPS, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(
                first,
                config.out_channels,
                ConvConfig::SAME,
                vb.pp("conv_out"),
            )?,
        })
    }

    /// The memory of [`forward`](Self::forward).
    pub(super) fn replay(&self, memory: &mut Ledger, latents: [usize; 4]) -> [usize; 4] {
        let x = self.conv_in.replay(memory, latents);
        let mut x = self.mid_block.replay(memory, x);
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                x = resnet.replay_owned(memory, x);
            }
            if let Some(upsampler) = upsampler {
                x = upsampler.replay(memory, x, None);
            }
        }
        self.conv_out.replay_normed(memory, &self.conv_norm_out, x)
    }

    /// `[1, latent_channels, h, w]` to `[1, out_channels, 8 h, 8 w]`.
    pub(super) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.mid_block.forward(self.conv_in.forward(latents)?)?;
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                x = resnet.forward_owned(x, None)?;
            }
            if let Some(upsampler) = upsampler {
                x = upsampler.forward(x, None)?;
            }
        }
        self.conv_out.forward_normed(&self.conv_norm_out, x)
    }
}
