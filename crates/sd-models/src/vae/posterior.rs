//! What the encoder finds out about a picture's latents, and the scale that the UNet sees them in.

use candle_core::{DType, Result, Tensor};
use sd_config::VaeConfig;

use crate::{Component, Error};

/// The way between the autoencoder's own latents and those that the UNet was trained on.
///
/// `shift_factor` has no part in it: the pipelines of Stable Diffusion ignore it.
#[derive(Debug, Clone)]
pub(super) struct Scaling {
    factor: f64,
    /// Of each channel, where the model's authors measured them.
    mean_std: Option<(Vec<f64>, Vec<f64>)>,
}

impl Scaling {
    pub(super) fn new(config: &VaeConfig) -> Self {
        Self {
            factor: config.scaling_factor,
            mean_std: config.latents_mean.clone().zip(config.latents_std.clone()),
        }
    }

    /// `x * factor`, or `(x - mean) * factor / std`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let Some((mean, std)) = &self.mean_std else {
            return x * self.factor;
        };
        (x.broadcast_sub(&channels(mean, x)?)? * self.factor)?.broadcast_div(&channels(std, x)?)
    }

    /// The inverse of [`apply`](Self::apply).
    pub(super) fn undo(&self, x: &Tensor) -> Result<Tensor> {
        let Some((mean, std)) = &self.mean_std else {
            return x / self.factor;
        };
        (x.broadcast_mul(&channels(std, x)?)? / self.factor)?.broadcast_add(&channels(mean, x)?)
    }
}

/// One value a channel, broadcast over `[batch, channels, height, width]`.
fn channels(values: &[f64], like: &Tensor) -> Result<Tensor> {
    Tensor::new(values, like.device())?
        .to_dtype(like.dtype())?
        .reshape((1, (), 1, 1))
}

/// A normal distribution of latents for each picture, `[batch, latent_channels, height / 8, width / 8]`.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean, not scaled.
    pub mean: Tensor,
    /// Logarithm of the variance, not scaled; [`sample`](Self::sample) clamps it to -30..20.
    pub logvar: Tensor,
    scaling: Scaling,
}

impl Posterior {
    /// `moments` are mean and log variance, one after the other along the channels.
    pub(super) fn new(moments: &Tensor, scaling: Scaling) -> Result<Self> {
        let latents = moments.dim(1)? / 2;
        Ok(Self {
            mean: moments.narrow(1, 0, latents)?.contiguous()?,
            logvar: moments.narrow(1, latents, latents)?.contiguous()?,
            scaling,
        })
    }

    /// The most likely latents, scaled.
    ///
    /// # Errors
    /// The device fails.
    pub fn mode(&self) -> crate::Result<Tensor> {
        self.scaling
            .apply(&self.mean)
            .map_err(Error::candle(Component::Vae))
    }

    /// The distributions of the batch, `count` times in a row.
    ///
    /// # Errors
    /// The device fails.
    pub fn repeat(&self, count: usize) -> crate::Result<Self> {
        let repeat = |tensor: &Tensor| {
            tensor
                .repeat((count, 1, 1, 1))
                .map_err(Error::candle(Component::Vae))
        };
        Ok(Self {
            mean: repeat(&self.mean)?,
            logvar: repeat(&self.logvar)?,
            scaling: self.scaling.clone(),
        })
    }

    /// The latents that standard normal `noise` picks, scaled: `mean + exp(logvar / 2) * noise`.
    ///
    /// # Errors
    /// [`Error::Input`] if `noise` has another shape than the mean; [`Error::Candle`] if the device fails.
    pub fn sample(&self, noise: &Tensor) -> crate::Result<Tensor> {
        if noise.dims() != self.mean.dims() {
            return Err(super::wrong(
                "noise",
                noise.dims(),
                format!("{:?}", self.mean.dims()),
            ));
        }
        let sample = || {
            let std = (self.logvar.clamp(-30f32, 20f32)? * 0.5)?.exp()?;
            self.scaling
                .apply(&(&self.mean + (std * noise.to_dtype(DType::F32)?)?)?)
        };
        sample().map_err(Error::candle(Component::Vae))
    }
}
