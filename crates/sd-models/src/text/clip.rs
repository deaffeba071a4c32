//! The CLIP text encoder (Radford 2021), as transformers' models/clip/modeling_clip.py.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use sd_config::{Activation, ClipConfig};

use crate::nn::{
    self, AttentionOptions, AttentionSlice, LayerNorm, Ledger, Linear, Mask, activation_dtype,
    attention,
};
use crate::{Component, Error, Result};

/// A CLIP text encoder: a causal transformer over token ids.
#[derive(Debug, Clone)]
pub struct ClipTextModel {
    component: Component,
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    pooled_width: usize,
    end_of_text: EndOfText,
}

/// What the encoder makes of a batch of `b` texts of `n` tokens.
#[derive(Debug, Clone)]
pub struct ClipOutput {
    /// The embeddings, then the output of each layer, before the final norm: `[b, n, hidden_size]`
    /// each.
    pub hidden_states: Vec<Tensor>,
    /// The final norm of the last hidden state, `[b, n, hidden_size]`.
    pub last_hidden_state: Tensor,
    /// The row of `last_hidden_state` at the end of the text, `[b, hidden_size]`; projected to
    /// `[b, projection_dim]` if the model has a projection.
    pub pooled: Tensor,
}

/// Where a text ends: the row that is pooled.
#[derive(Debug, Clone, Copy)]
enum EndOfText {
    /// At the first of the largest ids. The published files say that the end token is 2, which it
    /// is not, and transformers keeps reading that as this older rule.
    LargestId,
    /// At the first token of this id; at the start if there is none.
    Id(u32),
}

impl ClipTextModel {
    /// Reads the encoder's weights, named as [`Weights`](crate::Weights) names them: without
    /// `text_model.`. `component` is the one that errors name.
    ///
    /// # Errors
    /// The builder fails.
    pub fn new(vb: VarBuilder, config: &ClipConfig, component: Component) -> Result<Self> {
        Self::build(vb, config, component).map_err(Error::candle(component))
    }

    fn build(
        vb: VarBuilder,
        config: &ClipConfig,
        component: Component,
    ) -> candle_core::Result<Self> {
        let width = config.hidden_size;
        let embeddings = vb.pp("embeddings");
        let layers = vb.pp("encoder.layers");
        let pooled_width = match config.has_projection() {
            true => config.projection_dim,
            false => width,
        };
        let text_projection = config
            .has_projection()
            .then(|| Linear::no_bias(width, pooled_width, vb.pp("text_projection")));
        Ok(Self {
            component,
            token_embedding: embeddings
                .get((config.vocab_size, width), "token_embedding.weight")?,
            position_embedding: embeddings.get(
                (config.max_position_embeddings, width),
                "position_embedding.weight",
            )?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(layers.pp(i), config))
                .collect::<candle_core::Result<_>>()?,
            final_layer_norm: LayerNorm::new(
                width,
                config.layer_norm_eps,
                vb.pp("final_layer_norm"),
            )?,
            text_projection: text_projection.transpose()?,
            pooled_width,
            end_of_text: match config.eos_token_id {
                2 => EndOfText::LargestId,
                id => EndOfText::Id(id),
            },
        })
    }

    /// Encodes `ids`, `[b, n]` u32 with `n` from 1 to `max_position_embeddings`.
    ///
    /// # Errors
    /// [`Error::Input`] for another shape or dtype or an id beyond the vocabulary,
    /// [`Error::Candle`] if the device fails.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipOutput> {
        let rows = self.checked_rows(ids)?;
        self.run(ids, &rows).map_err(Error::candle(self.component))
    }

    /// `ids` on the host, known to lie in the vocabulary.
    fn checked_rows(&self, ids: &Tensor) -> Result<Vec<Vec<u32>>> {
        let input = |found: String, expected: String| Error::Input {
            component: self.component,
            what: "token ids",
            found,
            expected,
        };
        let positions = self.position_embedding.dims()[0];
        let fits = matches!(*ids.dims(), [batch, n] if batch > 0 && (1..=positions).contains(&n));
        if !fits || ids.dtype() != DType::U32 {
            let found = format!("{:?} {:?}", ids.dims(), ids.dtype());
            return Err(input(found, format!("[batch, 1 to {positions}] U32")));
        }
        let rows = ids
            .to_vec2::<u32>()
            .map_err(Error::candle(self.component))?;
        let vocabulary = self.token_embedding.dims()[0];
        match rows.iter().flatten().find(|&&id| id as usize >= vocabulary) {
            Some(id) => Err(input(format!("id {id}"), format!("less than {vocabulary}"))),
            None => Ok(rows),
        }
    }

    fn run(&self, ids: &Tensor, rows: &[Vec<u32>]) -> candle_core::Result<ClipOutput> {
        let (batch, n) = ids.dims2()?;
        let weights = self.token_embedding.dtype();
        let dtype = activation_dtype(ids.device(), weights);
        let tokens = self
            .token_embedding
            .index_select(&ids.flatten_all()?, 0)?
            .to_dtype(dtype)?;
        let positions = self.position_embedding.narrow(0, 0, n)?.to_dtype(dtype)?;
        let embedded = tokens.reshape((batch, n, ()))?.broadcast_add(&positions)?;

        let mut hidden_states = vec![embedded.clone()];
        let mut x = embedded;
        for layer in &self.layers {
            x = layer.forward(&x)?;
            hidden_states.push(x.clone());
        }
        let last_hidden_state = self.final_layer_norm.forward(&x)?;
        let ends = rows
            .iter()
            .zip(0..)
            .map(|(row, i)| last_hidden_state.get(i)?.get(self.end_of_text.find(row)));
        let pooled = Tensor::stack(&ends.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let pooled = match &self.text_projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok(ClipOutput {
            hidden_states,
            last_hidden_state,
            pooled,
        })
    }

    /// The memory of [`forward`](Self::forward) for one text of as many tokens as there is room for.
    pub(crate) fn replay(&self, memory: &mut Ledger) {
        let [n, width] = [
            self.position_embedding.dims()[0],
            self.token_embedding.dims()[1],
        ];
        let row = [1, n, width];
        memory.hold(&row);
        for layer in &self.layers {
            layer.replay(memory, &row);
        }
        memory.pass(&row);
    }

    /// Width of a hidden state and of the pooled output.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.token_embedding.dims()[1], self.pooled_width)
    }

    /// The final norm of a hidden state.
    pub(super) fn final_norm(&self, hidden_state: &Tensor) -> Result<Tensor> {
        self.final_layer_norm
            .forward(hidden_state)
            .map_err(Error::candle(self.component))
    }
}

impl EndOfText {
    fn find(self, ids: &[u32]) -> usize {
        let end = match self {
            Self::LargestId => ids.iter().copied().max(),
            Self::Id(id) => Some(id),
        };
        ids.iter().position(|&id| Some(id) == end).unwrap_or(0)
    }
}

/// Attention and a two-layer perceptron, each after a norm and around a residual connection.
#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Layer {
    fn new(vb: VarBuilder, config: &ClipConfig) -> candle_core::Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        Ok(Self {
            layer_norm1: LayerNorm::new(width, config.layer_norm_eps, vb.pp("layer_norm1"))?,
            q_proj: Linear::new(width, width, attention.pp("q_proj"))?,
            k_proj: Linear::new(width, width, attention.pp("k_proj"))?,
            v_proj: Linear::new(width, width, attention.pp("v_proj"))?,
            out_proj: Linear::new(width, width, attention.pp("out_proj"))?,
            heads: config.num_attention_heads,
            layer_norm2: LayerNorm::new(width, config.layer_norm_eps, vb.pp("layer_norm2"))?,
            fc1: Linear::new(width, inner, mlp.pp("fc1"))?,
            fc2: Linear::new(inner, width, mlp.pp("fc2"))?,
            activation: config.hidden_act,
        })
    }

    /// The memory of [`forward`](Self::forward).
    fn replay(&self, memory: &mut Ledger, x: &[usize; 3]) {
        // The norm, attention's inputs and outputs and both sums, all of which stay to the end.
        for linear in [&self.q_proj, &self.k_proj, &self.v_proj, &self.out_proj] {
            memory.hold(x);
            linear.replay(memory, x);
        }
        let inner = self.fc1.replay(memory, x);
        memory.hold(&inner);
        if memory.is_gpu() {
            // The activation's factors.
            memory.pass(&inner);
        }
        self.fc2.replay(memory, &inner);
        memory.release(&inner);
        memory.release(&inner);
        for _ in 0..8 {
            memory.release(x);
        }
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let normed = self.layer_norm1.forward(x)?;
        let [q, k, v] =
            [&self.q_proj, &self.k_proj, &self.v_proj].map(|project| project.forward(&normed));
        // A text is too short to be worth cutting.
        let options = AttentionOptions {
            slice: AttentionSlice::default(),
            compute: self.q_proj.compute(),
        };
        let attended = attention(&q?, &k?, &v?, self.heads, Mask::Causal, options)?;
        let x = (x + self.out_proj.forward(&attended)?)?;

        let inner = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let inner = match self.activation {
            Activation::QuickGelu => nn::quick_gelu(&inner)?,
            Activation::Gelu => nn::gelu(&inner)?,
        };
        x + self.fc2.forward(&inner)?
    }
}
