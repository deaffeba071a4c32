//! How noisy a sample is.

use candle_core::Tensor;

use crate::{Result, tensor::combine};

/// One point of a trajectory: a sample there is `alpha * x0 + sigma * noise`, with `alpha^2 +
/// sigma^2 = 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// What the network is told: 0 to 999 for a model trained on 1000 timesteps, fractional for
    /// some schedules; a quarter of the logarithm of the Karras sigma for continuous timesteps.
    pub timestep: f64,
    /// Weight of the clean sample, 0 to 1.
    pub alpha: f64,
    /// Weight of the noise, 0 to 1.
    pub sigma: f64,
}

impl NoiseLevel {
    /// The end of a trajectory: a clean sample.
    pub const CLEAN: Self = Self {
        timestep: 0.0,
        alpha: 1.0,
        sigma: 0.0,
    };

    /// The level where a fraction `alphas_cumprod` of the variance is signal (Ho 2020, eq. 4).
    pub fn from_alphas_cumprod(timestep: f64, alphas_cumprod: f64) -> Self {
        Self {
            timestep,
            alpha: alphas_cumprod.sqrt(),
            sigma: (1.0 - alphas_cumprod).sqrt(),
        }
    }

    /// The level of noise-to-signal ratio `sigma` in the notation of Karras 2022.
    pub fn from_karras_sigma(timestep: f64, sigma: f64) -> Self {
        let alpha = 1.0 / sigma.hypot(1.0);
        Self {
            timestep,
            alpha,
            sigma: sigma * alpha,
        }
    }

    /// Noise-to-signal ratio `sigma / alpha`, the sigma of Karras 2022. Infinite for pure noise.
    pub fn karras_sigma(&self) -> f64 {
        self.sigma / self.alpha
    }

    /// Half the logarithm of the signal-to-noise ratio, the lambda of Lu 2022. Infinite for a clean
    /// sample.
    pub(crate) fn lambda(&self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// The clean samples `x0` brought to this level with `noise`; any shape, both the same.
    ///
    /// # Errors
    /// When the shapes or devices differ.
    pub fn noised(&self, x0: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok(combine(&[(self.alpha, x0), (self.sigma, noise)])?)
    }
}
