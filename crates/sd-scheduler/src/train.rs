//! The noise schedule that a network was trained on.

use std::sync::Arc;

use sd_config::{BetaSchedule, SchedulerFile};

use crate::{Error, NoiseLevel, Result, sigmas::MAX_SIGMA};

/// More training timesteps than any model has; a limit on what a hostile file can make us allocate.
const MAX_TIMESTEPS: usize = 1_000_000;

/// How much signal is left at each training timestep.
///
/// The tables are f32 and made operation by operation as torch makes them: they decide the last
/// digits of every level.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TrainSchedule {
    /// The fraction of the variance that is signal at each timestep, decreasing: `alpha^2` of the
    /// levels.
    alphas_cumprod: Arc<[f32]>,
    /// The Karras sigma at each timestep, increasing.
    sigmas: Arc<[f32]>,
}

/// What a scheduler class takes for beta keys that its file lacks.
pub(crate) struct BetaDefaults {
    start: f64,
    end: f64,
    schedule: BetaSchedule,
}

/// The defaults of the schedulers that go back to DDPM.
pub(crate) const DDPM_BETAS: BetaDefaults = BetaDefaults {
    start: 0.0001,
    end: 0.02,
    schedule: BetaSchedule::Linear,
};

/// The betas of Stable Diffusion.
pub(crate) const LATENT_BETAS: BetaDefaults = BetaDefaults {
    start: 0.00085,
    end: 0.012,
    schedule: BetaSchedule::ScaledLinear,
};

/// The end points of Stable Diffusion's betas, but not their curve: an oversight in the
/// second-order schedulers.
pub(crate) const LATENT_LINEAR_BETAS: BetaDefaults = BetaDefaults {
    start: 0.00085,
    end: 0.012,
    schedule: BetaSchedule::Linear,
};

/// What a scheduler class makes of `rescale_betas_zero_snr`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum ZeroSnr {
    /// The class has no such key.
    Ignored,
    /// No signal at all at the last timestep.
    Exact,
    /// So little signal that its sigma, 4096, is still finite.
    Nearly,
}

impl TrainSchedule {
    /// The schedule of `file` for the scheduler class `scheduler`.
    pub(crate) fn from_file(
        scheduler: &'static str,
        file: &SchedulerFile,
        defaults: &BetaDefaults,
        zero_snr: ZeroSnr,
    ) -> Result<Self> {
        let invalid = |key, value: String, expected| Error::config(scheduler, key, value, expected);
        let steps = file.num_train_timesteps.unwrap_or(1000);
        if !(2..=MAX_TIMESTEPS).contains(&steps) {
            return Err(invalid(
                "num_train_timesteps",
                steps.to_string(),
                "2 to 1000000",
            ));
        }
        let start = file.beta_start.unwrap_or(defaults.start);
        let end = file.beta_end.unwrap_or(defaults.end);
        for (key, beta) in [("beta_start", start), ("beta_end", end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(invalid(key, beta.to_string(), "a number between 0 and 1"));
            }
        }
        let mut betas = match (
            &file.trained_betas,
            file.beta_schedule.unwrap_or(defaults.schedule),
        ) {
            (Some(betas), _) if betas.len() != steps => {
                let value = format!("{} values", betas.len());
                return Err(invalid(
                    "trained_betas",
                    value,
                    "as many values as num_train_timesteps",
                ));
            }
            (Some(betas), _) => betas.iter().map(|beta| *beta as f32).collect(),
            (None, BetaSchedule::Linear) => linspace(start, end, steps),
            (None, BetaSchedule::ScaledLinear) => linspace(start.sqrt(), end.sqrt(), steps)
                .iter()
                .map(|root| root * root)
                .collect(),
            (None, BetaSchedule::SquaredcosCapV2) => squared_cosine(steps),
        };
        if let Some(beta) = betas.iter().find(|beta| !(**beta > 0.0 && **beta < 1.0)) {
            return Err(invalid(
                "trained_betas",
                beta.to_string(),
                "numbers between 0 and 1",
            ));
        }
        let rescale = zero_snr != ZeroSnr::Ignored && file.rescale_betas_zero_snr.unwrap_or(false);
        if rescale {
            betas = rescale_to_zero_snr(&betas);
        }
        let mut alphas_cumprod = cumulative_product(betas.iter().map(|beta| 1.0 - beta));
        let (first, last) = (alphas_cumprod[0], alphas_cumprod[steps - 1]);
        let falls = first < 1.0 && alphas_cumprod.windows(2).all(|pair| pair[1] < pair[0]);
        let noisiest = (f64::from(last).recip() - 1.0).sqrt();
        if !falls || last < 0.0 || !(rescale || noisiest <= MAX_SIGMA) {
            let value = format!("such that {first} to {last} of the variance is signal");
            return Err(invalid(
                "betas",
                value,
                "less and less of it, never all or almost none",
            ));
        }
        if let (true, ZeroSnr::Nearly, Some(last)) = (rescale, zero_snr, alphas_cumprod.last_mut())
        {
            *last = 2f32.powi(-24);
        }
        let sigmas = alphas_cumprod
            .iter()
            .map(|alpha| ((1.0 - alpha) / alpha).sqrt())
            .collect();
        Ok(Self {
            alphas_cumprod: alphas_cumprod.into(),
            sigmas,
        })
    }

    /// Number of training timesteps.
    pub(crate) fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// The Karras sigma at each timestep, increasing.
    pub(crate) fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The level of a training timestep; of the last one beyond it.
    pub(crate) fn level(&self, timestep: usize) -> NoiseLevel {
        let timestep = timestep.min(self.len() - 1);
        NoiseLevel::from_alphas_cumprod(timestep as f64, f64::from(self.alphas_cumprod[timestep]))
    }

    /// The Karras sigma at a fractional timestep, by linear interpolation; the nearest end outside
    /// of the table.
    pub(crate) fn sigma_at(&self, timestep: f64) -> f64 {
        let last = self.len() - 1;
        let low = (timestep.max(0.0) as usize).min(last);
        let sigma = f64::from(self.sigmas[low]);
        if low == last || timestep <= low as f64 {
            return sigma;
        }
        (f64::from(self.sigmas[low + 1]) - sigma) * (timestep - low as f64) + sigma
    }

    /// The logarithm of the Karras sigma at a fractional timestep, by linear interpolation of the
    /// logarithms.
    pub(crate) fn log_sigma_at(&self, timestep: f64) -> f64 {
        let low = (timestep.max(0.0) as usize).min(self.len() - 2);
        let weight = (timestep - low as f64).clamp(0.0, 1.0);
        (1.0 - weight) * self.log_sigma(low) + weight * self.log_sigma(low + 1)
    }

    /// The logarithms, rounded to f32, of the highest and the lowest Karras sigma.
    pub(crate) fn log_sigma_ends(&self) -> (f64, f64) {
        (self.log_sigma(self.len() - 1), self.log_sigma(0))
    }

    /// The fractional timestep of a Karras sigma, by linear interpolation of the logarithms.
    pub(crate) fn timestep_of(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let not_above = self
            .sigmas
            .partition_point(|entry| rounded_log(*entry) <= log_sigma);
        let low = not_above.saturating_sub(1).min(self.len() - 2);
        let width = self.log_sigma(low + 1) - self.log_sigma(low);
        let weight = if width == 0.0 {
            0.0
        } else {
            (log_sigma - self.log_sigma(low)) / width
        };
        low as f64 + weight.clamp(0.0, 1.0)
    }

    fn log_sigma(&self, timestep: usize) -> f64 {
        rounded_log(self.sigmas[timestep])
    }
}

/// The logarithm of an f32, rounded to f32.
fn rounded_log(value: f32) -> f64 {
    f64::from(f64::from(value).ln() as f32)
}

/// `torch.linspace` in f32, for at least 2 entries: from both ends to the middle, one rounding an entry.
pub(crate) fn linspace(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|i| match i < count / 2 {
            true => step.mul_add(i as f32, start),
            false => (-step).mul_add((count - 1 - i) as f32, end),
        })
        .collect()
}

/// The cosine schedule (Nichol and Dhariwal 2021, eq. 17).
fn squared_cosine(count: usize) -> Vec<f32> {
    let alpha_bar = |t: f64| {
        ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
            .cos()
            .powi(2)
    };
    let time = |i: usize| i as f64 / count as f64;
    (0..count)
        .map(|i| (1.0 - alpha_bar(time(i + 1)) / alpha_bar(time(i))).min(0.999) as f32)
        .collect()
}

/// Shifts and scales so that the last timestep has no signal (Lin 2023, algorithm 1).
fn rescale_to_zero_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = cumulative_product(betas.iter().map(|beta| 1.0 - beta))
        .iter()
        .map(|a| a.sqrt())
        .collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let alphas: Vec<f32> = roots
        .iter()
        .map(|root| ((root - last) * scale).powi(2))
        .collect();
    std::iter::once(1.0 - alphas[0])
        .chain(alphas.windows(2).map(|pair| 1.0 - pair[1] / pair[0]))
        .collect()
}

/// `torch.cumprod`: accumulated in f64, each entry rounded.
fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    factors
        .scan(1f64, |product, factor| {
            *product *= f64::from(factor);
            Some(*product as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn schedule(json: &str) -> Result<TrainSchedule> {
        TrainSchedule::from_file(
            "test",
            &serde_json::from_str(json).unwrap(),
            &DDPM_BETAS,
            ZeroSnr::Exact,
        )
    }

    #[test]
    fn tables_are_those_of_torch_bit_for_bit() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/scheduler/common.safetensors"
        );
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let latent = r#""beta_start": 0.00085, "beta_end": 0.012"#;
        let trained: Vec<_> = (0..50).map(|i| 0.01 + 0.001 * f64::from(i)).collect();
        for (name, json) in [
            ("linear", "{}".to_string()),
            ("latent_linear", format!("{{{latent}}}")),
            (
                "scaled_linear",
                format!(r#"{{{latent}, "beta_schedule": "scaled_linear"}}"#),
            ),
            (
                "cosine",
                r#"{"beta_schedule": "squaredcos_cap_v2"}"#.to_string(),
            ),
            ("short", r#"{"num_train_timesteps": 37}"#.to_string()),
            (
                "trained",
                format!(r#"{{"num_train_timesteps": 50, "trained_betas": {trained:?}}}"#),
            ),
            (
                "zero_snr",
                format!(
                    r#"{{{latent}, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": true}}"#
                ),
            ),
        ] {
            let expected: Vec<f32> = golden[&format!("alphas.{name}")].to_vec1().unwrap();
            let found = schedule(&json).unwrap().alphas_cumprod;
            assert_eq!(found.len(), expected.len());
            // torch's vectorised square root, which only this one takes, is not correctly rounded
            // on every machine.
            let tolerance = if name == "zero_snr" {
                f32::EPSILON
            } else {
                0.0
            };
            for (timestep, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{name} {timestep}: {found}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn sigmas_and_timesteps_are_inverse() {
        let schedule = schedule("{}").unwrap();
        for timestep in [0.0, 1.0, 17.0, 500.0, 998.75, 999.0] {
            let found = schedule.timestep_of(schedule.sigma_at(timestep));
            assert!(
                (found - timestep).abs() < 0.02,
                "{timestep} becomes {found}"
            );
        }
        assert_eq!(schedule.timestep_of(0.0), 0.0);
        assert_eq!(schedule.timestep_of(1e9), 999.0);
        assert_eq!(schedule.sigma_at(2000.0), schedule.sigma_at(999.0));
    }

    #[test]
    fn schedules_that_are_no_schedules_are_refused() {
        for json in [
            r#"{"beta_start": 0.0}"#,
            r#"{"beta_start": 1e-9}"#,
            r#"{"beta_start": 0.9, "beta_end": 0.99}"#,
            r#"{"num_train_timesteps": 1}"#,
            r#"{"trained_betas": [0.1, 0.2]}"#,
            r#"{"num_train_timesteps": 2, "trained_betas": [0.1, -0.2]}"#,
            r#"{"num_train_timesteps": 2, "trained_betas": [0.1, 1e-12], "rescale_betas_zero_snr": true}"#,
        ] {
            assert!(
                matches!(schedule(json), Err(Error::Config { .. })),
                "{json}"
            );
        }
    }
}
