//! The autoencoder between pictures and latents (diffusers' `AutoencoderKL`).
//!
//! Latents outside this module are *scaled*: nobody else knows the scaling factor.

mod blocks;
mod decoder;
mod encoder;
mod posterior;
mod tiling;
mod tiny;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use sd_config::VaeConfig;

use self::decoder::Decoder;
use self::encoder::Encoder;
pub use self::posterior::Posterior;
use self::posterior::Scaling;
use self::tiling::Tiling;
pub(crate) use self::tiny::FIRST_TENSOR;
pub use self::tiny::TinyDecoder;
use crate::nn::{AttentionSlice, Conv2d, ConvConfig, Ledger, activation_dtype};
use crate::{Component, Error, Result};

/// The autoencoder. Pictures of a batch are processed one by one, as after diffusers' `enable_vae_slicing`: at full size
/// each takes gigabytes.
#[derive(Debug, Clone)]
pub struct AutoencoderKl {
    device: Device,
    dtype: DType,
    in_channels: usize,
    latent_channels: usize,
    factor: usize,
    tile: Option<usize>,
    scaling: Scaling,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
}

impl AutoencoderKl {
    /// Reads the weights, named as current diffusers names them, in the builder's dtype.
    ///
    /// Where `config.force_upcast` is set, an f16 builder must not be used on a GPU: the activations overflow.
    ///
    /// # Errors
    /// A tensor is missing or of another shape, or `config` contradicts itself.
    pub fn new(vb: VarBuilder, config: &VaeConfig) -> Result<Self> {
        Self::build(vb, config).map_err(Error::candle(Component::Vae))
    }

    fn build(vb: VarBuilder, config: &VaeConfig) -> candle_core::Result<Self> {
        let latents = config.latent_channels;
        let point = |present: bool, channels, name| {
            present
                .then(|| Conv2d::new(channels, channels, ConvConfig::POINT, vb.pp(name)))
                .transpose()
        };
        Ok(Self {
            device: vb.device().clone(),
            dtype: activation_dtype(vb.device(), vb.dtype()),
            in_channels: config.in_channels,
            latent_channels: latents,
            factor: config.factor(),
            tile: config.tile(),
            scaling: Scaling::new(config),
            encoder: Encoder::new(config, vb.pp("encoder"))?,
            quant_conv: point(config.use_quant_conv, 2 * latents, "quant_conv")?,
            post_quant_conv: point(config.use_post_quant_conv, latents, "post_quant_conv")?,
            decoder: Decoder::new(config, vb.pp("decoder"))?,
        })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sets how many pixels attend at a time.
    pub fn set_attention_slice(&mut self, slice: AttentionSlice) {
        self.encoder.mid_block.set_attention_slice(slice);
        self.decoder.mid_block.set_attention_slice(slice);
    }

    /// The distribution of the latents of pictures `[batch, 3, height, width]` in -1..1.
    ///
    /// # Errors
    /// [`Error::Input`] if a picture has another number of channels, or fewer pixels than one latent stands
    /// for; [`Error::Candle`] if the device fails.
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        self.encode_in(images, None)
    }

    /// [`encode`](Self::encode) in tiles as large as the model's training pictures, for the memory of one such tile
    /// (diffusers' `enable_vae_tiling`). The result differs slightly, unless the pictures are no larger than a tile.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::Input`] if the autoencoder has no tiles, see
    /// [`VaeConfig::tile`].
    pub fn encode_tiled(&self, images: &Tensor) -> Result<Posterior> {
        let tile = self.tile(images)?;
        self.encode_in(images, Some(Tiling::encoding(tile, self.factor)))
    }

    fn encode_in(&self, images: &Tensor, tiling: Option<Tiling>) -> Result<Posterior> {
        let least = self.factor;
        match *images.dims() {
            [batch, channels, height, width]
                if batch > 0
                    && channels == self.in_channels
                    && height >= least
                    && width >= least => {}
            ref dims => {
                let expected = format!(
                    "[batch, {}, at least {least}, at least {least}]",
                    self.in_channels
                );
                return Err(wrong("images", dims, expected));
            }
        }
        let _span = tracing::debug_span!("vae_encode").entered();
        let moments = self.each(images, tiling, |image| {
            let moments = self.encoder.forward(image)?;
            match &self.quant_conv {
                Some(conv) => conv.forward(&moments),
                None => Ok(moments),
            }
        });
        moments
            .and_then(|moments| Posterior::new(&moments, self.scaling.clone()))
            .map_err(Error::candle(Component::Vae))
    }

    /// Pictures `[batch, 3, height, width]`, f32, about -1..1, of scaled latents
    /// `[batch, latent_channels, height / 8, width / 8]`.
    ///
    /// # Errors
    /// [`Error::Input`] if `latents` has another shape; [`Error::Candle`] if the device fails.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_in(latents, None)
    }

    /// [`decode`](Self::decode) in tiles, as [`encode_tiled`](Self::encode_tiled).
    ///
    /// # Errors
    /// As [`decode`](Self::decode); [`Error::Input`] if the autoencoder has no tiles, see [`VaeConfig::tile`].
    pub fn decode_tiled(&self, latents: &Tensor) -> Result<Tensor> {
        let tile = self.tile(latents)?;
        self.decode_in(latents, Some(Tiling::decoding(tile, self.factor)))
    }

    fn decode_in(&self, latents: &Tensor, tiling: Option<Tiling>) -> Result<Tensor> {
        check_latents(Component::Vae, latents, self.latent_channels)?;
        let _span = tracing::debug_span!("vae_decode").entered();
        let images = self.scaling.undo(latents).and_then(|latents| {
            self.each(&latents, tiling, |latents| match &self.post_quant_conv {
                Some(conv) => self.decoder.forward(&conv.forward(latents)?),
                None => self.decoder.forward(latents),
            })
        });
        images.map_err(Error::candle(Component::Vae))
    }

    /// The memory of encoding one picture of `[height, width]` pixels, the moments included.
    pub(crate) fn replay_encode(
        &self,
        memory: &mut Ledger,
        [height, width]: [usize; 2],
        tiled: bool,
    ) {
        let image = |[height, width]: [usize; 2]| [1, self.in_channels, height, width];
        let encode = |memory: &mut Ledger, size| {
            let moments = self.encoder.replay(memory, image(size));
            if let Some(conv) = &self.quant_conv {
                conv.replay(memory, moments);
                memory.release(&moments);
            }
            moments
        };
        let tiling = self
            .tile
            .filter(|_| tiled)
            .map(|tile| Tiling::encoding(tile, self.factor));
        let size = [height, width];
        match tiling.filter(|tiling| tiling.cuts(size)) {
            Some(tiling) => {
                let [height, width] = size.map(|side| side / self.factor);
                let moments = [1, 2 * self.latent_channels, height, width];
                tiling.replay(memory, size, moments, encode);
            }
            None => drop(encode(memory, size)),
        }
    }

    /// The memory of decoding one picture of `[height, width]` latents, the picture included.
    pub(crate) fn replay_decode(
        &self,
        memory: &mut Ledger,
        [height, width]: [usize; 2],
        tiled: bool,
    ) {
        let latents = |[height, width]: [usize; 2]| [1, self.latent_channels, height, width];
        let decode = |memory: &mut Ledger, size| {
            let latents = latents(size);
            if let Some(conv) = &self.post_quant_conv {
                conv.replay(memory, latents);
                memory.release(&latents);
            }
            self.decoder.replay(memory, latents)
        };
        let tiling = self
            .tile
            .filter(|_| tiled)
            .map(|tile| Tiling::decoding(tile, self.factor));
        let size = [height, width];
        match tiling.filter(|tiling| tiling.cuts(size)) {
            Some(tiling) => {
                let [height, width] = size.map(|side| side.saturating_mul(self.factor));
                tiling.replay(memory, size, [1, 3, height, width], decode);
            }
            None => drop(decode(memory, size)),
        }
    }

    /// Latents of a tile, each way; `x` is what was to be cut.
    fn tile(&self, x: &Tensor) -> Result<usize> {
        self.tile.ok_or_else(|| {
            let expected =
                "no tiling: the sample_size of this autoencoder is no multiple of four latents";
            wrong("a tiled picture", x.dims(), expected.into())
        })
    }

    /// `f` of every picture by itself, or of its tiles, in the network's dtype; the results joined, in f32.
    fn each(
        &self,
        batch: &Tensor,
        tiling: Option<Tiling>,
        f: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let (count, _, height, width) = batch.dims4()?;
        let tiling = tiling.filter(|tiling| tiling.cuts([height, width]));
        let one = |i| {
            let x = batch.narrow(0, i, 1)?.to_dtype(self.dtype)?;
            match &tiling {
                Some(tiling) => tiling.map(&x, &f),
                None => f(&x),
            }?
            .to_dtype(DType::F32)
        };
        let all = (0..count)
            .map(one)
            .collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&all, 0)
    }
}

/// Latents of a decoder have so many channels, and there are some.
fn check_latents(component: Component, latents: &Tensor, latent_channels: usize) -> Result<()> {
    match *latents.dims() {
        [batch, channels, height, width]
            if channels == latent_channels && batch.min(height).min(width) > 0 =>
        {
            Ok(())
        }
        ref dims => Err(Error::Input {
            component,
            what: "latents",
            found: format!("{dims:?}"),
            expected: format!("[batch, {latent_channels}, height, width], none of them 0"),
        }),
    }
}

fn wrong(what: &'static str, found: &[usize], expected: String) -> Error {
    Error::Input {
        component: Component::Vae,
        what,
        found: format!("{found:?}"),
        expected,
    }
}
