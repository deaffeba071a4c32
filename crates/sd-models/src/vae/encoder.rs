//! From a picture to the moments of its latents.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use sd_config::VaeConfig;

use super::blocks::{MidBlock, NORM_EPS, resnet};
use crate::nn::{Conv2d, ConvConfig, Downsample, GroupNorm, Ledger, ResnetBlock};

#[derive(Debug, Clone)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    pub(super) mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &VaeConfig, vb: VarBuilder) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (Some(&first), Some(&last)) = (widths.first(), widths.last()) else {
            candle_core::bail!("block_out_channels is empty")
        };
        let mut inputs = first;
        let mut down_blocks = Vec::with_capacity(widths.len());
        for (i, &outputs) in widths.iter().enumerate() {
            let vb = vb.pp("down_blocks").pp(i);
            let mut resnets = Vec::with_capacity(config.layers_per_block);
            for layer in 0..config.layers_per_block {
                resnets.push(resnet(config, inputs, outputs, vb.pp("resnets").pp(layer))?);
                inputs = outputs;
            }
            let halves = i + 1 < widths.len();
            let downsampler =
                halves.then(|| Downsample::new(outputs, 0, vb.pp("downsamplers").pp(0)));
            down_blocks.push((resnets, downsampler.transpose()?));
        }
        let moments = 2 * config.latent_channels;
        let groups = config.norm_num_groups;
        Ok(Self {
            conv_in: Conv2d::new(
                config.in_channels,
                first,
                ConvConfig::SAME,
                vb.pp("conv_in"),
            )?,
            down_blocks,
            mid_block: MidBlock::new(config, last, vb.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(groups, last, NORM_EPS, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(last, moments, ConvConfig::SAME, vb.pp("conv_out"))?,
        })
    }

    /// `[1, in_channels, h, w]` to `[1, 2 * latent_channels, h / 8, w / 8]`.
    pub(super) fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                x = resnet.forward_owned(x, None)?;
            }
            if let Some(downsampler) = downsampler {
                x = downsampler.forward(&x)?;
            }
        }
        let x = self.mid_block.forward(x)?;
        self.conv_out.forward_normed(&self.conv_norm_out, x)
    }

    /// The memory of [`forward`](Self::forward).
    pub(super) fn replay(&self, memory: &mut Ledger, image: [usize; 4]) -> [usize; 4] {
        let mut x = self.conv_in.replay(memory, image);
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                x = resnet.replay_owned(memory, x);
            }
            if let Some(downsampler) = downsampler {
                let y = downsampler.replay(memory, x);
                memory.release(&x);
                x = y;
            }
        }
        let x = self.mid_block.replay(memory, x);
        self.conv_out.replay_normed(memory, &self.conv_norm_out, x)
    }
}
