//! Prompts to conditioning: tokenizer and CLIP, once or twice.

mod chunk;
mod clip;
mod tokenizer;
mod weighting;

use candle_core::{D, DType, Device, Tensor};
use chunk::Chunk;
pub use chunk::Piece;
pub use clip::{ClipOutput, ClipTextModel};
pub use tokenizer::{Tokenizer, Tokens};
pub use weighting::Weighting;

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

/// A prompt in windows, see [`TextEncoders::cut`].
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    weighting: Weighting,
    /// Of each encoder.
    chunks: Vec<Vec<Chunk>>,
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
        self.check_number(prompts.len())?;
        let (mut outputs, mut truncated) = (Vec::new(), Vec::new());
        for (encoder, prompt) in self.encoders.iter().zip(prompts) {
            let tokens = encoder.tokenizer.encode(prompt)?;
            outputs.push(encoder.encode(&tokens.ids, self.output(clip_skip))?);
            truncated.extend(tokens.truncated.filter(|text| !truncated.contains(text)));
        }
        self.side_by_side(outputs, truncated)
    }

    /// Cuts a prompt of any length into windows of as many tokens as the encoders take at once, 75 beside the start and end
    /// tokens; `prompts` has the pieces of one text an encoder.
    ///
    /// # Errors
    /// [`Error::Input`] for another number of prompts, [`Error::Tokenizer`] as [`Tokenizer::encode`].
    pub fn cut(&self, prompts: &[Vec<Piece>], weighting: Weighting) -> Result<Windows> {
        self.check_number(prompts.len())?;
        let chunks = self.encoders.iter().zip(prompts);
        let chunks =
            chunks.map(|(encoder, pieces)| Chunk::cut(&encoder.tokenizer, pieces, weighting));
        Ok(Windows {
            weighting,
            chunks: chunks.collect::<Result<_>>()?,
        })
    }

    /// Encodes `count` windows, each for itself and one after the other: empty ones after the prompt's own, which are
    /// weighted. `clip_skip` and the layers are as for [`encode`](Self::encode), the pooled output is the first window's, and
    /// nothing is truncated.
    ///
    /// # Errors
    /// [`Error::Input`] for a `clip_skip` that leaves no layer, and for fewer windows than the prompt has.
    pub fn encode_windows(
        &self,
        windows: &Windows,
        count: usize,
        clip_skip: Option<usize>,
    ) -> Result<Conditioning> {
        if count < windows.len() {
            return Err(Error::Input {
                component: Component::TextEncoder,
                what: "the number of windows",
                found: count.to_string(),
                expected: format!("at least {}", windows.len()),
            });
        }
        let encoders = self.encoders.iter().zip(&windows.chunks);
        let outputs = encoders.map(|(encoder, chunks)| {
            encoder.encode_windows(chunks, count, windows.weighting, self.output(clip_skip))
        });
        self.side_by_side(outputs.collect::<Result<_>>()?, Vec::new())
    }

    fn check_number(&self, prompts: usize) -> Result<()> {
        if prompts == self.encoders.len() {
            return Ok(());
        }
        Err(Error::Input {
            component: Component::TextEncoder,
            what: "the number of prompts",
            found: prompts.to_string(),
            expected: format!("{}, one an encoder", self.encoders.len()),
        })
    }

    fn output(&self, clip_skip: Option<usize>) -> Output<'_> {
        Output {
            layer: self.layer,
            skip: clip_skip.unwrap_or(0),
            device: &self.device,
        }
    }

    /// The encoders' outputs, joined.
    fn side_by_side(
        &self,
        outputs: Vec<(Tensor, Tensor)>,
        truncated: Vec<String>,
    ) -> Result<Conditioning> {
        let (hidden, mut pooled): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
        let hidden =
            Tensor::cat(&hidden, D::Minus1).map_err(Error::candle(Component::TextEncoder))?;
        let pooled = pooled
            .pop()
            .filter(|_| self.layer == OutputLayer::Penultimate);
        Ok(Conditioning {
            hidden,
            pooled,
            truncated,
        })
    }

    /// The zeros that XL takes in place of a negative prompt that was not given
    /// (`force_zeros_for_empty_prompt`), in the shapes of [`encode`](Self::encode) or, for more windows than one, of
    /// [`encode_windows`](Self::encode_windows).
    ///
    /// # Errors
    /// The device fails.
    pub fn zeros(&self, windows: usize) -> Result<Conditioning> {
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
            hidden: zeros(&[1, windows * tokens, context])?,
            pooled,
            truncated: vec![],
        })
    }
}

/// The part of an encoder's output that is asked for.
#[derive(Clone, Copy)]
struct Output<'a> {
    layer: OutputLayer,
    /// Layers left out before it.
    skip: usize,
    device: &'a Device,
}

impl Windows {
    /// How many windows the prompt fills: those of the encoder that needs more.
    #[expect(clippy::len_without_is_empty, reason = "a prompt has at least one")]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).max().unwrap_or(0)
    }
}

impl TextEncoder {
    /// `[1, n, hidden]` and `[1, pooled]` of one text, f32.
    #[tracing::instrument(name = "text_encoder", level = "debug", skip_all, fields(component = %self.component))]
    fn encode(&self, ids: &[u32], output: Output<'_>) -> Result<(Tensor, Tensor)> {
        let Output {
            layer,
            skip,
            device,
        } = output;
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

    /// `[1, count * n, hidden]` and the first window's `[1, pooled]`, f32.
    fn encode_windows(
        &self,
        chunks: &[Chunk],
        count: usize,
        weighting: Weighting,
        output: Output<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let outputs = chunks.iter().map(|chunk| self.encode(&chunk.ids, output));
        let (mut rows, mut pooled): (Vec<_>, Vec<_>) =
            outputs.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if chunks.len() < count || chunks.iter().any(Chunk::is_weighted) {
            let (empty, _) = self.encode(&Chunk::new(&self.tokenizer, &[]).ids, output)?;
            for (rows, chunk) in rows.iter_mut().zip(chunks) {
                if chunk.is_weighted() {
                    let weighted = weighting.apply(rows, &chunk.weights, &empty);
                    *rows = weighted.map_err(Error::candle(self.component))?;
                }
            }
            rows.resize(count, empty);
        }
        let hidden = Tensor::cat(&rows, 1).map_err(Error::candle(self.component))?;
        // A prompt has at least one window.
        Ok((hidden, pooled.swap_remove(0)))
    }
}
