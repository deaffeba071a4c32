//! What a model takes in memory, known from its configuration: weights are counted and computations replayed, nothing is
//! loaded or computed.
//!
//! The figures are those of the CPU's kernels, to a few per cent. On a GPU the same tensors are counted with Candle's
//! larger temporaries; a driver's context and caches come on top.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use sd_config::{ModelConfig, VaeConfig};

use crate::nn::{AttentionSlice, Ledger, activation_dtype, elements};
use crate::text::ClipTextModel;
use crate::unet::Unet;
use crate::vae::AutoencoderKl;
use crate::{Component, Model, Result};

/// The memory of a model's weights and computations, in bytes.
///
/// ```
/// use candle_core::{DType, Device};
/// use sd_config::{ModelConfig, Version};
/// use sd_models::ModelMemory;
///
/// let memory = ModelMemory::new(&ModelConfig::preset(Version::V1_5), DType::F16, &Device::Cpu)?;
/// assert_eq!(memory.weights() >> 20, 2_033);
/// // One picture of 512x512 pixels: a UNet call with guidance, and the decoder.
/// let (unet, decoder) = (memory.unet(2, [64, 64], 77), memory.decode([64, 64], false));
/// assert!(unet < decoder && decoder < 700 << 20);
/// # Ok::<(), sd_models::Error>(())
/// ```
#[derive(Debug)]
pub struct ModelMemory {
    /// The networks with weights that take no memory.
    text: Vec<ClipTextModel>,
    unet: Unet,
    vae: AutoencoderKl,
    weights: u64,
    activations: DType,
    vae_activations: DType,
    gpu: bool,
}

impl ModelMemory {
    /// For a model whose weights are kept as `dtype` on `device`, as by [`LoadOptions`](crate::LoadOptions).
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: &ModelConfig, dtype: DType, device: &Device) -> Result<Self> {
        let count = Arc::new(AtomicU64::new(0));
        let builder = |dtype| {
            let backend = Box::new(Counter(count.clone()));
            VarBuilder::from_backend(backend, dtype, Device::Cpu)
        };
        let vae_dtype = vae_dtype(&config.vae, dtype, device);
        let text = config
            .text_encoders
            .iter()
            .map(|encoder| {
                ClipTextModel::new(builder(dtype), &encoder.clip, Component::TextEncoder)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            text,
            unet: Unet::new(builder(dtype), &config.unet)?,
            vae: AutoencoderKl::new(builder(vae_dtype), &config.vae)?,
            weights: count.load(Ordering::Relaxed),
            activations: activation_dtype(device, dtype),
            vae_activations: activation_dtype(device, vae_dtype),
            gpu: !device.is_cpu(),
        })
    }

    /// For a model that is loaded.
    ///
    /// # Errors
    /// The model's public configuration was changed to one that contradicts itself.
    pub fn of(model: &Model) -> Result<Self> {
        Self::new(
            &model.config,
            model.unet.weights_dtype(),
            model.vae.device(),
        )
    }

    /// Cuts attention as the networks' `set_attention_slice` does.
    pub fn set_attention_slice(&mut self, slice: AttentionSlice) {
        self.unet.set_attention_slice(slice);
        self.vae.set_attention_slice(slice);
    }

    /// All weights.
    pub fn weights(&self) -> u64 {
        self.weights
    }

    /// Encoding one text.
    pub fn text(&self) -> u64 {
        let encoders = self.text.iter().map(|encoder| {
            let mut memory = self.ledger(self.activations);
            encoder.replay(&mut memory);
            memory.peak()
        });
        encoders.max().unwrap_or(0)
    }

    /// A UNet call for so many samples of `[height, width]` latents and as many tokens each, beside its inputs.
    pub fn unet(&self, samples: usize, latents: [usize; 2], tokens: usize) -> u64 {
        let mut memory = self.ledger(self.activations);
        self.unet.replay(&mut memory, samples, latents, tokens);
        memory.peak()
    }

    /// Encoding pictures of `[height, width]` pixels, one after the other, beside the pictures.
    pub fn encode(&self, pixels: [usize; 2], tiled: bool) -> u64 {
        let mut memory = self.ledger(self.vae_activations);
        self.vae.replay_encode(&mut memory, pixels, tiled);
        memory.peak()
    }

    /// Decoding one picture of `[height, width]` latents, the picture included.
    pub fn decode(&self, latents: [usize; 2], tiled: bool) -> u64 {
        let mut memory = self.ledger(self.vae_activations);
        self.vae.replay_decode(&mut memory, latents, tiled);
        memory.peak()
    }

    fn ledger(&self, activations: DType) -> Ledger {
        Ledger::new(activations, self.gpu)
    }
}

/// What the autoencoder's weights are kept as: XL's overflows in f16 activations, which the CPU does not use.
pub(crate) fn vae_dtype(config: &VaeConfig, dtype: DType, device: &Device) -> DType {
    if config.force_upcast && dtype == DType::F16 && !device.is_cpu() {
        DType::F32
    } else {
        dtype
    }
}

/// Counts the bytes of the weights that are asked for, and hands out zeros that take none.
struct Counter(Arc<AtomicU64>);

impl SimpleBackend for Counter {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let bytes = elements(shape.dims()).saturating_mul(dtype.size_in_bytes() as u64);
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: the shape is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
