//! The CLIP text encoder: `text_encoder/config.json`.

use serde::{Deserialize, Serialize};

use crate::json::File;
use crate::{Result, files};

/// The activation between the two linear layers of a CLIP layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    /// The exact GELU, with the error function, of OpenCLIP.
    Gelu,
}

/// `CLIPTextConfig` of transformers, with that class's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Class names; the pooled output goes through a projection when `CLIPTextModelWithProjection`
    /// is among them.
    pub architectures: Vec<String>,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the two linear layers of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Rows of the position embedding: the longest input, in tokens.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward part.
    pub hidden_act: Activation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Width of the projected pooled output.
    pub projection_dim: usize,
    /// The id whose first row is pooled; 2, an old mistake kept by the published files, means the
    /// largest id instead.
    pub eos_token_id: u32,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl ClipConfig {
    /// Parses and checks the text of `text_encoder/config.json`.
    ///
    /// # Errors
    /// Text that is no JSON object, and values of a wrong type, out of range, or not supported.
    pub fn parse(json: &str) -> Result<Self> {
        Self::parse_as(File(files::TEXT_ENCODER_CONFIG), json)
    }

    pub(crate) fn parse_as(file: File<'_>, json: &str) -> Result<Self> {
        let config: Self = file.read(file.object(json)?)?;
        config.check_as(file)?;
        Ok(config)
    }

    /// Checks values that were not parsed.
    ///
    /// # Errors
    /// A value out of range, or at odds with another one.
    pub fn check(&self) -> Result<()> {
        self.check_as(File(files::TEXT_ENCODER_CONFIG))
    }

    fn check_as(&self, file: File<'_>) -> Result<()> {
        for (key, value, range) in [
            ("vocab_size", self.vocab_size, 1..=1 << 24),
            ("hidden_size", self.hidden_size, 1..=1 << 16),
            ("intermediate_size", self.intermediate_size, 1..=1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1..=1 << 8),
            ("num_attention_heads", self.num_attention_heads, 1..=1 << 10),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                2..=1 << 16,
            ),
            ("projection_dim", self.projection_dim, 1..=1 << 16),
        ] {
            file.range(key, value, range)?;
        }
        file.positive("layer_norm_eps", self.layer_norm_eps)?;
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if !width.is_multiple_of(heads) {
            let expected = format!("expected a divisor of hidden_size, {width}");
            return Err(file.invalid("num_attention_heads", heads, expected));
        }
        Ok(())
    }

    /// Whether the pooled output goes through a projection of width `projection_dim`.
    pub fn has_projection(&self) -> bool {
        self.architectures
            .iter()
            .any(|name| name == "CLIPTextModelWithProjection")
    }
}
