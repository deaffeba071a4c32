//! Prompts to conditioning: tokenizer and CLIP, once or twice.

mod clip;
mod tokenizer;

use candle_core::{D, DType, Device, Tensor};
pub use clip::{ClipOutput, ClipTextModel};
pub use tokenizer::{Tokenizer, Tokens};

use crate::{Component, Error, Result};

/// A tokenizer and its encoder.
#[derive(Debug, Clone)]
pub(crate) struct TextEncoder {
    pub(crate) component: Component,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) model: ClipTextModel,
}

/// The text encoders of a model in the order of use: one, or two for XL.
#[derive(Debug, Clone)]
pub struct TextEncoders {
    encoders: Vec<TextEncoder>,
    layer: OutputLayer,
    device: Device,
}

/// Which hidden state conditions the UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputLayer {
    /// The last, through the final norm: v1 and v2.
    LastNormed,
    /// The last but one as it is, and the pooled output of the last encoder: XL.
    Penultimate,
}

/// What the UNet gets to know of a prompt.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// One row a token, `[1, n, context]`, f32; the encoders' rows side by side.
    pub hidden: Tensor,
    /// XL: one row for the whole prompt, `[1, p]`, f32.
    pub pooled: Option<Tensor>,
    /// What the encoders did not see because the prompt is too long, without repetitions.
    pub truncated: Vec<String>,
}

impl TextEncoders {
    /// `encoders` has one or two elements whose outputs have the same number of rows.
    pub(crate) fn new(encoders: Vec<TextEncoder>, layer: OutputLayer, device: Device) -> Self {
        Self {
            encoders,
            layer,
            device,
        }
    }

    /// The number of encoders.
    #[expect(clippy::len_without_is_empty, reason = "a model has at least one")]
    pub fn len(&self) -> usize {
        self.encoders.len()
    }

    /// Encodes a prompt; `prompts` has one text an encoder. `clip_skip` leaves out so many of the
    /// last layers; diffusers encodes the negative prompt without it.
    ///
    /// v1 and v2: the final norm of `hidden_states[-(clip_skip + 1)]` (diffusers
    /// pipeline_stable_diffusion.py, `encode_prompt`). XL: `hidden_states[-(clip_skip + 2)]` of
    /// each encoder, and the pooled output of the last one (pipeline_stable_diffusion_xl.py).
    ///
    /// # Errors
    /// [`Error::Input`] for another number of prompts, or for a `clip_skip` that leaves no layer.
    pub fn encode(&self, prompts: &[&str], clip_skip: Option<usize>) -> Result<Conditioning> {
        if prompts.len() != self.encoders.len() {
            return Err(Error::Input {
                component: Component::TextEncoder,
                what: "the number of prompts",
                found: prompts.len().to_string(),
                expected: format!("{}, one an encoder", self.encoders.len()),
            });
        }
        let mut hidden = Vec::new();
        let mut pooled = None;
        let mut truncated = Vec::new();
        for (encoder, prompt) in self.encoders.iter().zip(prompts) {
            let tokens = encoder.tokenizer.encode(prompt)?;
            let (rows, row) = encoder.encode(
                &tokens.ids,
                self.layer,
                clip_skip.unwrap_or(0),
                &self.device,
            )?;
            hidden.push(rows);
            pooled = Some(row);
            truncated.extend(tokens.truncated.filter(|text| !truncated.contains(text)));
        }
        let hidden =
            Tensor::cat(&hidden, D::Minus1).map_err(Error::candle(Component::TextEncoder))?;
        let pooled = pooled.filter(|_| self.layer == OutputLayer::Penultimate);
        Ok(Conditioning {
            hidden,
            pooled,
            truncated,
        })
    }

    /// The zeros that XL takes in place of a negative prompt that was not given
    /// (`force_zeros_for_empty_prompt`), in the shapes of [`encode`](Self::encode).
    ///
    /// # Errors
    /// The device fails.
    pub fn zeros(&self) -> Result<Conditioning> {
        let zeros = |shape: &[usize]| {
            let zeros = Tensor::zeros(shape, DType::F32, &self.device);
            zeros.map_err(Error::candle(Component::TextEncoder))
        };
        let (mut tokens, mut context, mut pooled) = (0, 0, 0);
        for TextEncoder {
            tokenizer, model, ..
        } in &self.encoders
        {
            let (hidden, last) = model.widths();
            (tokens, context, pooled) = (tokenizer.max_length(), context + hidden, last);
        }
        let pooled = match self.layer {
            OutputLayer::LastNormed => None,
            OutputLayer::Penultimate => Some(zeros(&[1, pooled])?),
        };
        Ok(Conditioning {
            hidden: zeros(&[1, tokens, context])?,
            pooled,
            truncated: vec![],
        })
    }
}

impl TextEncoder {
    /// `[1, n, hidden]` and `[1, pooled]` of one text, f32.
    #[tracing::instrument(name = "text_encoder", level = "debug", skip_all, fields(component = %self.component))]
    fn encode(
        &self,
        ids: &[u32],
        layer: OutputLayer,
        skip: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let ids = Tensor::new(ids, device).and_then(|ids| ids.unsqueeze(0));
        let output = self
            .model
            .forward(&ids.map_err(Error::candle(self.component))?)?;
        let states = &output.hidden_states;
        let depth = match layer {
            OutputLayer::LastNormed => 1,
            OutputLayer::Penultimate => 2,
        };
        let state = states
            .len()
            .checked_sub(depth)
            .and_then(|last| last.checked_sub(skip))
            .map(|i| &states[i]);
        let state = state.ok_or_else(|| Error::Input {
            component: self.component,
            what: "clip_skip",
            found: skip.to_string(),
            expected: format!("at most {}", states.len().saturating_sub(depth)),
        })?;
        let hidden = match layer {
            OutputLayer::LastNormed => self.model.final_norm(state)?,
            OutputLayer::Penultimate => state.clone(),
        };
        let wide = |x: Tensor| {
            x.to_dtype(DType::F32)
                .map_err(Error::candle(self.component))
        };
        Ok((wide(hidden)?, wide(output.pooled)?))
    }
}
