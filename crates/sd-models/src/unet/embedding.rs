//! What conditions all residual blocks alike: the timestep, and what some models add to it.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use sd_config::{AdditionEmbedType, ClassEmbedType, UnetConfig};

use super::Added;
use crate::nn::{Linear, activation_dtype};

/// The timesteps' frequencies (diffusers' `Timesteps`).
#[derive(Debug, Clone)]
pub(super) struct Sinusoid {
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl Sinusoid {
    fn new(dim: usize, config: &UnetConfig) -> Self {
        Self {
            dim,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// `sin` and `cos` of `values[i] * 10000^(-j / (dim / 2 - shift))`, `[values.len(), dim]` in f32.
    ///
    /// In 16 bits the product with a timestep near 1000 would be off by tenths; torch works in f32 too.
    pub(super) fn embed(&self, values: &[f32], device: &Device) -> Result<Tensor> {
        let half = self.dim / 2;
        let span = half as f32 - self.freq_shift as f32;
        let frequencies = (0..half).map(|i| {
            let exponent = -(10_000f64.ln() as f32) * i as f32 / span;
            f64::from(exponent).exp() as f32
        });
        let frequencies = frequencies.collect::<Vec<_>>();
        let mut embedded = Vec::with_capacity(values.len() * self.dim);
        for value in values {
            let angles = || {
                frequencies
                    .iter()
                    .map(|frequency| f64::from(value * frequency))
            };
            let sines = angles().map(|angle| angle.sin() as f32);
            let cosines = angles().map(|angle| angle.cos() as f32);
            if self.flip_sin_to_cos {
                embedded.extend(cosines.chain(sines));
            } else {
                embedded.extend(sines.chain(cosines));
            }
            embedded.extend((self.dim % 2 == 1).then_some(0.));
        }
        Tensor::from_vec(embedded, (values.len(), self.dim), device)
    }
}

/// Two linear layers with a SiLU between them (diffusers' `TimestepEmbedding`).
#[derive(Debug, Clone)]
pub(super) struct Mlp {
    linear_1: Linear,
    linear_2: Linear,
}

impl Mlp {
    fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(inputs, outputs, vb.pp("linear_1"))?,
            linear_2: Linear::new(outputs, outputs, vb.pp("linear_2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward(x)?.silu()?)
    }
}

/// The timestep's embedding.
#[derive(Debug, Clone)]
pub(super) struct TimeEmbedding {
    time_proj: Sinusoid,
    /// Of the guidance scale's embedding, in distilled models.
    cond_proj: Option<Linear>,
    mlp: Mlp,
    dtype: DType,
}

impl TimeEmbedding {
    pub(super) fn new(config: &UnetConfig, inputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            time_proj: Sinusoid::new(inputs, config),
            cond_proj: config
                .time_cond_proj_dim
                .map(|dim| Linear::no_bias(dim, inputs, vb.pp("cond_proj")))
                .transpose()?,
            dtype: activation_dtype(vb.device(), vb.dtype()),
            mlp: Mlp::new(inputs, config.time_embed_dim(), vb)?,
        })
    }

    /// `[timesteps.len(), time_embed_dim]`; `condition` is `[timesteps.len(), time_cond_proj_dim]`.
    pub(super) fn forward(
        &self,
        timesteps: &[f32],
        condition: Option<&Tensor>,
        device: &Device,
    ) -> Result<Tensor> {
        let mut embedded = self
            .time_proj
            .embed(timesteps, device)?
            .to_dtype(self.dtype)?;
        if let (Some(projection), Some(condition)) = (&self.cond_proj, condition) {
            embedded = (embedded + projection.forward(&condition.to_dtype(self.dtype)?)?)?;
        }
        self.mlp.forward(&embedded)
    }
}

/// The embedding of a picture's class.
#[derive(Debug, Clone)]
pub(super) enum ClassEmbedding {
    Table(Tensor),
    Timestep(Sinusoid, Mlp),
    Identity(usize),
    Projection(usize, Mlp),
    SimpleProjection(usize, Linear),
}

impl ClassEmbedding {
    /// None when `config` has no classes.
    pub(super) fn new(
        config: &UnetConfig,
        time_inputs: usize,
        vb: VarBuilder,
    ) -> Result<Option<Self>> {
        let outputs = config.time_embed_dim();
        let inputs = || match config.projection_class_embeddings_input_dim {
            Some(dim) => Ok(dim),
            None => candle_core::bail!(
                "the class projection has no projection_class_embeddings_input_dim"
            ),
        };
        Ok(Some(
            match (config.class_embed_type, config.num_class_embeds) {
                (None, None) => return Ok(None),
                (None, Some(classes)) => Self::Table(vb.get((classes, outputs), "weight")?),
                (Some(ClassEmbedType::Timestep), _) => Self::Timestep(
                    Sinusoid::new(time_inputs, config),
                    Mlp::new(time_inputs, outputs, vb)?,
                ),
                (Some(ClassEmbedType::Identity), _) => Self::Identity(outputs),
                (Some(ClassEmbedType::Projection), _) => {
                    let width = inputs()?;
                    Self::Projection(width, Mlp::new(width, outputs, vb)?)
                }
                (Some(ClassEmbedType::SimpleProjection), _) => {
                    let width = inputs()?;
                    Self::SimpleProjection(width, Linear::new(width, outputs, vb)?)
                }
            },
        ))
    }

    /// The shape of the labels of `batch` pictures.
    pub(super) fn labels_shape(&self, batch: usize) -> Vec<usize> {
        match self {
            Self::Table(_) | Self::Timestep(..) => vec![batch],
            Self::Identity(width)
            | Self::Projection(width, _)
            | Self::SimpleProjection(width, _) => {
                vec![batch, *width]
            }
        }
    }

    /// `[batch, time_embed_dim]` in `dtype`. Labels are integers for a table, numbers otherwise.
    pub(super) fn forward(&self, labels: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Table(table) => table
                .index_select(&labels.to_dtype(DType::U32)?, 0)?
                .to_dtype(dtype),
            Self::Timestep(time_proj, mlp) => {
                let values = labels.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                mlp.forward(&time_proj.embed(&values, labels.device())?.to_dtype(dtype)?)
            }
            Self::Identity(_) => labels.to_dtype(dtype),
            Self::Projection(_, mlp) => mlp.forward(&labels.to_dtype(dtype)?),
            Self::SimpleProjection(_, linear) => linear.forward(&labels.to_dtype(dtype)?),
        }
    }
}

/// XL's embedding of the pooled text and of the sizes (`text_time`).
#[derive(Debug, Clone)]
pub(super) struct AddEmbedding {
    add_time_proj: Sinusoid,
    mlp: Mlp,
    /// Width of the pooled text and of all sinusoids together.
    inputs: usize,
}

impl AddEmbedding {
    /// None when `config` has no such embedding.
    pub(super) fn new(config: &UnetConfig, vb: VarBuilder) -> Result<Option<Self>> {
        let Some(AdditionEmbedType::TextTime) = config.addition_embed_type else {
            return Ok(None);
        };
        let (Some(dim), Some(inputs)) = (
            config.addition_time_embed_dim,
            config.projection_class_embeddings_input_dim,
        ) else {
            candle_core::bail!(
                "text_time has no addition_time_embed_dim or projection_class_embeddings_input_dim"
            )
        };
        Ok(Some(Self {
            add_time_proj: Sinusoid::new(dim, config),
            mlp: Mlp::new(inputs, config.time_embed_dim(), vb)?,
            inputs,
        }))
    }

    /// The width that `text_embeds` must have beside `ids` time ids; none if there are too many of these.
    pub(super) fn text_width(&self, ids: usize) -> Option<usize> {
        self.inputs
            .checked_sub(ids.checked_mul(self.add_time_proj.dim)?)
    }

    /// `[batch, time_embed_dim]` in `dtype`.
    pub(super) fn forward(&self, added: &Added, dtype: DType) -> Result<Tensor> {
        let (batch, _) = added.time_ids.dims2()?;
        let ids = added
            .time_ids
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let sizes = self.add_time_proj.embed(&ids, added.time_ids.device())?;
        let sizes = sizes.reshape((batch, ()))?.to_dtype(dtype)?;
        self.mlp.forward(&Tensor::cat(
            &[&added.text_embeds.to_dtype(dtype)?, &sizes],
            1,
        )?)
    }
}
