//! The denoising network: `unet/config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::json::File;
use crate::{Result, files, json};

/// A value for all blocks, or a list with one a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a whole number, or a list with one a block"
)]
pub enum PerBlock<T> {
    /// The same for all blocks.
    Same(T),
    /// One a block, in the order of the down blocks.
    Each(Vec<T>),
}

impl PerBlock<usize> {
    /// The value of down block `i`; 0 when the list is too short, which a checked configuration
    /// never is.
    pub fn get(&self, i: usize) -> usize {
        match self {
            Self::Same(value) => *value,
            Self::Each(values) => values.get(i).copied().unwrap_or(0),
        }
    }
}

/// What a block of the down path is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual layers, each followed by a transformer that attends to the text.
    CrossAttnDownBlock2D,
    /// Residual layers.
    DownBlock2D,
}

/// What the middle block is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlockType {
    /// A residual layer, a transformer, a residual layer.
    UNetMidBlock2DCrossAttn,
    /// One residual layer.
    UNetMidBlock2D,
}

/// What a block of the up path is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual layers, each followed by a transformer that attends to the text.
    CrossAttnUpBlock2D,
    /// Residual layers.
    UpBlock2D,
}

/// Further conditioning added to the time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// The pooled text and the sinusoids of the sizes ("time ids") through a two-layer network: XL.
    TextTime,
}

/// How `class_labels` enter the time embedding. With `num_class_embeds` and no type they are
/// indices of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassEmbedType {
    /// Numbers, embedded as timesteps are.
    Timestep,
    /// Vectors as wide as the time embedding, added as they are.
    Identity,
    /// Vectors through a two-layer network.
    Projection,
    /// Vectors through a linear layer.
    SimpleProjection,
}

/// `UNet2DConditionModel` of diffusers, with that class's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// Size of the latents the network was trained on: both ways, or `[height, width]`.
    pub sample_size: Option<PerBlock<usize>>,
    /// Channels of the input: the latents, for inpainting also the mask and the masked picture's
    /// latents.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// The input is in 0..1 and becomes `2x - 1`.
    #[serde(deserialize_with = "json::null_is_false")]
    pub center_input_sample: bool,
    /// The timestep's sinusoids are `[cos, sin]` instead of `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponent of the sinusoids.
    pub freq_shift: f64,
    /// First to last.
    pub down_block_types: Vec<DownBlockType>,
    /// None: there is no middle block.
    pub mid_block_type: Option<MidBlockType>,
    /// First, the lowest resolution, to last.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each down block.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of a down block; an up block has one more.
    pub layers_per_block: PerBlock<usize>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the residual layers' and the output's group norms; the transformers' have 1e-6.
    pub norm_eps: f64,
    /// Width of the text's hidden states.
    pub cross_attention_dim: PerBlock<usize>,
    /// Transformer layers behind each residual layer of a block with attention.
    pub transformer_layers_per_block: PerBlock<usize>,
    /// The same for the up blocks, in their order. None: the down blocks' values reversed.
    pub reverse_transformer_layers_per_block: Option<Vec<usize>>,
    /// The number of heads, in spite of the key's name.
    pub attention_head_dim: PerBlock<usize>,
    /// The transformers' outer projections are linear layers instead of 1x1 convolutions.
    #[serde(deserialize_with = "json::null_is_false")]
    pub use_linear_projection: bool,
    /// Attention scores are wanted in f32.
    #[serde(deserialize_with = "json::null_is_false")]
    pub upcast_attention: bool,
    /// None: no class conditioning, or a table of `num_class_embeds`.
    pub class_embed_type: Option<ClassEmbedType>,
    /// Rows of the class table.
    pub num_class_embeds: Option<usize>,
    /// None: text and timestep only.
    pub addition_embed_type: Option<AdditionEmbedType>,
    /// Sinusoids of each size given to the `text_time` conditioning.
    pub addition_time_embed_dim: Option<usize>,
    /// Input width of the `text_time` network, or of the class projection.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Width of the time embedding; see [`UnetConfig::time_embed_dim`].
    pub time_embedding_dim: Option<usize>,
    /// Width of the guidance embedding added before the time embedding's network: latent
    /// consistency models.
    pub time_cond_proj_dim: Option<usize>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        use {DownBlockType::*, UpBlockType::*};
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                CrossAttnDownBlock2D,
                DownBlock2D,
            ],
            mid_block_type: Some(MidBlockType::UNetMidBlock2DCrossAttn),
            up_block_types: vec![
                UpBlock2D,
                CrossAttnUpBlock2D,
                CrossAttnUpBlock2D,
                CrossAttnUpBlock2D,
            ],
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::Same(2),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::Same(1280),
            transformer_layers_per_block: PerBlock::Same(1),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerBlock::Same(8),
            use_linear_projection: false,
            upcast_attention: false,
            class_embed_type: None,
            num_class_embeds: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_embedding_dim: None,
            time_cond_proj_dim: None,
        }
    }
}

impl UnetConfig {
    /// Parses and checks the text of `unet/config.json`.
    ///
    /// # Errors
    /// Text that is no JSON object, and values of a wrong type, out of range, or not supported.
    pub fn parse(json: &str) -> Result<Self> {
        let file = File(files::UNET_CONFIG);
        let map = file.object(json)?;
        refuse_variants(file, &map)?;
        let written_by = map.get("_diffusers_version").and_then(Value::as_str);
        let old = written_by.is_some_and(is_before_0_9);
        let mut config: Self = file.read(map)?;
        // The first files named the size of an early training stage; diffusers' pipelines correct
        // them.
        if old && matches!(config.sample_size, Some(PerBlock::Same(..64))) {
            config.sample_size = Some(PerBlock::Same(64));
        }
        config.check()?;
        Ok(config)
    }

    /// Checks values that were not parsed.
    ///
    /// # Errors
    /// A value out of range, or at odds with another one.
    pub fn check(&self) -> Result<()> {
        let file = File(files::UNET_CONFIG);
        let blocks = self.block_out_channels.len();
        file.range("in_channels", self.in_channels, 1..=1 << 10)?;
        file.range("out_channels", self.out_channels, 1..=1 << 10)?;
        file.positive("norm_eps", self.norm_eps)?;
        file.block_out_channels(&self.block_out_channels, self.norm_num_groups)?;
        file.length("down_block_types", &self.down_block_types, blocks)?;
        file.length("up_block_types", &self.up_block_types, blocks)?;
        for (key, values, range) in [
            ("layers_per_block", &self.layers_per_block, 1..=64),
            (
                "cross_attention_dim",
                &self.cross_attention_dim,
                1..=1 << 16,
            ),
            (
                "transformer_layers_per_block",
                &self.transformer_layers_per_block,
                0..=128,
            ),
            ("attention_head_dim", &self.attention_head_dim, 1..=1 << 10),
        ] {
            file.per_block(key, values, blocks, range)?;
        }
        if let Some(depths) = &self.reverse_transformer_layers_per_block {
            let key = "reverse_transformer_layers_per_block";
            file.length(key, depths, blocks)?;
            depths
                .iter()
                .try_for_each(|&depth| file.range(key, depth, 0..=128))?;
        }
        if let Some(size) = &self.sample_size {
            file.per_block("sample_size", size, 2, 1..=1 << 12)?;
        }
        self.check_heads(file)?;
        self.check_embeddings(file)
    }

    /// Heads divide the channels of each block with attention.
    fn check_heads(&self, file: File<'_>) -> Result<()> {
        for block in self.blocks() {
            let (channels, heads) = (block.out_channels, block.attention.map_or(1, |a| a.heads));
            if !channels.is_multiple_of(heads) {
                let expected = format!("expected a divisor of the block's {channels} channels");
                return Err(file.invalid("attention_head_dim", heads, expected));
            }
        }
        Ok(())
    }

    fn check_embeddings(&self, file: File<'_>) -> Result<()> {
        let projected = self.projection_class_embeddings_input_dim;
        let sizes = self.addition_time_embed_dim;
        for (key, value, range) in [
            ("time_embedding_dim", self.time_embedding_dim, 1..=1 << 16),
            ("time_cond_proj_dim", self.time_cond_proj_dim, 4..=1 << 16),
            ("num_class_embeds", self.num_class_embeds, 1..=1 << 24),
            ("addition_time_embed_dim", sizes, 2..=1 << 16),
            (
                "projection_class_embeddings_input_dim",
                projected,
                1..=1 << 20,
            ),
        ] {
            value.map_or(Ok(()), |value| file.range(key, value, range))?;
        }

        // Sinusoids come in pairs, and divide by the number of pairs less the shift.
        let first = self.block_out_channels.first().copied();
        for (key, width) in [
            ("block_out_channels", first),
            ("addition_time_embed_dim", sizes),
        ] {
            let Some(width) = width else { continue };
            if !width.is_multiple_of(2) {
                return Err(file.invalid(key, width, "expected an even number"));
            }
            let pairs = width / 2;
            if self.freq_shift >= pairs as f64 {
                let expected = format!("expected less than {pairs}, half of {key}");
                return Err(file.invalid("freq_shift", self.freq_shift, expected));
            }
        }

        let text_time = self.addition_embed_type.is_some();
        if text_time && sizes.is_none() {
            let expected = "expected a number with text_time";
            return Err(file.invalid("addition_time_embed_dim", sizes, expected));
        }
        let projection = matches!(
            self.class_embed_type,
            Some(ClassEmbedType::Projection | ClassEmbedType::SimpleProjection)
        );
        if (text_time || projection) && projected.is_none() {
            let key = "projection_class_embeddings_input_dim";
            let expected = "expected a number with text_time or a class projection";
            return Err(file.invalid(key, projected, expected));
        }
        Ok(())
    }

    /// Width of the time embedding that every residual layer receives.
    pub fn time_embed_dim(&self) -> usize {
        let first = self.block_out_channels.first().copied().unwrap_or(0);
        self.time_embedding_dim.unwrap_or(first.saturating_mul(4))
    }
}

/// Refuses the variants of the network that are not built: these keys may only say what is built.
fn refuse_variants(file: File<'_>, map: &Map<String, Value>) -> Result<()> {
    file.only(
        map,
        &[
            ("act_fn", &[json!("silu")]),
            ("attention_type", &[json!("default")]),
            ("class_embeddings_concat", &[json!(false)]),
            ("conv_in_kernel", &[json!(3)]),
            ("conv_out_kernel", &[json!(3)]),
            ("cross_attention_norm", &[json!(null)]),
            ("downsample_padding", &[json!(1)]),
            ("dual_cross_attention", &[json!(false)]),
            ("encoder_hid_dim", &[json!(null)]),
            ("encoder_hid_dim_type", &[json!(null)]),
            (
                "mid_block_only_cross_attention",
                &[json!(null), json!(false)],
            ),
            ("mid_block_scale_factor", &[json!(1)]),
            ("num_attention_heads", &[json!(null)]),
            ("only_cross_attention", &[json!(false)]),
            ("resnet_out_scale_factor", &[json!(1)]),
            ("resnet_skip_time_act", &[json!(false)]),
            ("resnet_time_scale_shift", &[json!("default")]),
            ("time_embedding_act_fn", &[json!(null)]),
            ("time_embedding_type", &[json!("positional")]),
            ("timestep_post_act", &[json!(null)]),
        ],
    )
}

/// Whether a version of diffusers, such as `0.8.0` or `0.24.0.dev0`, is older than 0.9.
fn is_before_0_9(version: &str) -> bool {
    let mut numbers = version
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(0), Some(..9)))
}
