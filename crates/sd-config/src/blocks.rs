//! The UNet's blocks: every per-block rule of diffusers resolved once
//! (`UNet2DConditionModel.__init__`, `models/unets/unet_2d_condition.py`).

use crate::{DownBlockType, MidBlockType, UnetConfig, UpBlockType};

/// The transformers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockAttention {
    /// Attention heads; divides the block's channels.
    pub heads: usize,
    /// Layers of each transformer.
    pub depth: usize,
    /// Width of the text's hidden states.
    pub context_dim: usize,
}

/// One block of the UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnetBlock {
    /// Down and middle blocks: channels of the input. Up blocks: channels of the last skip
    /// connection taken, where all the others have `out_channels`.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Up blocks: channels of what comes from the block before, without the skip connection.
    /// Others: `in_channels`.
    pub prev_output_channels: usize,
    /// Residual layers.
    pub layers: usize,
    /// The transformers: one behind each residual layer; in the middle block, one between its two.
    pub attention: Option<BlockAttention>,
    /// Down blocks end with a downsampling by 2, up blocks with an upsampling.
    pub resample: bool,
}

impl UnetConfig {
    /// The down path, first to last.
    pub fn down_blocks(&self) -> Vec<UnetBlock> {
        let count = self.down_block_types.len();
        let block = |(i, kind): (usize, &DownBlockType)| {
            let in_channels = self.channels(i.saturating_sub(1));
            let depth = self.transformer_layers_per_block.get(i);
            UnetBlock {
                in_channels,
                out_channels: self.channels(i),
                prev_output_channels: in_channels,
                layers: self.layers_per_block.get(i),
                attention: (*kind == DownBlockType::CrossAttnDownBlock2D)
                    .then(|| self.attention(i, depth)),
                resample: i + 1 < count,
            }
        };
        self.down_block_types
            .iter()
            .enumerate()
            .map(block)
            .collect()
    }

    /// The middle block. Its transformer is like those of the last down block, whether or not that
    /// one has any.
    pub fn mid_block(&self) -> Option<UnetBlock> {
        let last = self.down_block_types.len().saturating_sub(1);
        let channels = self.channels(last);
        let depth = self.transformer_layers_per_block.get(last);
        self.mid_block_type.map(|kind| UnetBlock {
            in_channels: channels,
            out_channels: channels,
            prev_output_channels: channels,
            layers: match kind {
                MidBlockType::UNetMidBlock2DCrossAttn => 2,
                MidBlockType::UNetMidBlock2D => 1,
            },
            attention: (kind == MidBlockType::UNetMidBlock2DCrossAttn)
                .then(|| self.attention(last, depth)),
            resample: false,
        })
    }

    /// The up path, lowest resolution first.
    pub fn up_blocks(&self) -> Vec<UnetBlock> {
        let last = self.up_block_types.len().saturating_sub(1);
        let block = |(i, kind): (usize, &UpBlockType)| {
            let down = last - i;
            let depth = match &self.reverse_transformer_layers_per_block {
                Some(depths) => depths.get(i).copied().unwrap_or(0),
                None => self.transformer_layers_per_block.get(down),
            };
            UnetBlock {
                in_channels: self.channels(down.saturating_sub(1)),
                out_channels: self.channels(down),
                prev_output_channels: self.channels((down + 1).min(last)),
                layers: self.layers_per_block.get(down).saturating_add(1),
                attention: (*kind == UpBlockType::CrossAttnUpBlock2D)
                    .then(|| self.attention(down, depth)),
                resample: i < last,
            }
        };
        self.up_block_types.iter().enumerate().map(block).collect()
    }

    /// All blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = UnetBlock> {
        let (down, mid, up) = (self.down_blocks(), self.mid_block(), self.up_blocks());
        down.into_iter().chain(mid).chain(up)
    }

    fn channels(&self, down: usize) -> usize {
        self.block_out_channels.get(down).copied().unwrap_or(0)
    }

    fn attention(&self, down: usize, depth: usize) -> BlockAttention {
        let heads = self.attention_head_dim.get(down);
        BlockAttention {
            heads,
            depth,
            context_dim: self.cross_attention_dim.get(down),
        }
    }
}
