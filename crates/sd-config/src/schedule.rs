//! The noise schedule: `scheduler/scheduler_config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::json::File;
use crate::{Result, files};

/// How the noise grows over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Betas evenly spaced.
    Linear,
    /// Square roots of the betas evenly spaced.
    ScaledLinear,
    /// The cosine schedule (Nichol and Dhariwal 2021, eq. 17).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `alpha * noise - sigma * x0` (Salimans and Ho 2022).
    VPrediction,
    /// The denoised latents.
    Sample,
}

/// How the timesteps of a run are chosen among the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of a whole stride, from `steps_offset` up.
    Leading,
    /// Equal strides down from the last timestep.
    Trailing,
    /// Evenly from the first to the last timestep.
    Linspace,
}

/// A scheduler's file as it is written: a missing key (or a null) is None, so that the defaults of
/// whichever class takes the file apply. The keys are those of the constructors of diffusers'
/// schedulers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerFile {
    /// The class, without the prefix `Flax`; empty when the file does not say.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Length of the training schedule.
    pub num_train_timesteps: Option<usize>,
    /// First beta.
    pub beta_start: Option<f64>,
    /// Last beta.
    pub beta_end: Option<f64>,
    /// Curve between the two.
    pub beta_schedule: Option<BetaSchedule>,
    /// All betas, in place of the three keys above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the network's output means.
    pub prediction_type: Option<PredictionType>,
    /// How timesteps are chosen.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps of the leading spacing.
    pub steps_offset: Option<usize>,
    /// Clamp the denoised latents.
    pub clip_sample: Option<bool>,
    /// To plus and minus this.
    pub clip_sample_range: Option<f64>,
    /// The level after the last step is free of noise, instead of that of timestep 0.
    pub set_alpha_to_one: Option<bool>,
    /// PNDM without its Runge-Kutta warm-up.
    pub skip_prk_steps: Option<bool>,
    /// Dynamic thresholding of the denoised latents (Saharia et al. 2022, section 2.3).
    pub thresholding: Option<bool>,
    /// The quantile of dynamic thresholding.
    pub dynamic_thresholding_ratio: Option<f64>,
    /// The ceiling of dynamic thresholding.
    pub sample_max_value: Option<f64>,
    /// Rescale the betas to end in pure noise (Lin et al. 2024, algorithm 1).
    pub rescale_betas_zero_snr: Option<bool>,
    /// Euler: how sigmas between timesteps are found.
    pub interpolation_type: Option<String>,
    /// Sigmas spaced as Karras et al. 2022, eq. 5.
    pub use_karras_sigmas: Option<bool>,
    /// Sigmas spaced evenly in their logarithm.
    pub use_exponential_sigmas: Option<bool>,
    /// Sigmas spaced by the quantiles of a beta distribution.
    pub use_beta_sigmas: Option<bool>,
    /// Order of a multistep solver.
    pub solver_order: Option<usize>,
    /// DPM-Solver: `dpmsolver++`, `sde-dpmsolver++`, ...
    pub algorithm_type: Option<String>,
    /// DPM-Solver: `midpoint` or `heun`; UniPC: `bh1` or `bh2`.
    pub solver_type: Option<String>,
    /// Lower orders at the end of a short run.
    pub lower_order_final: Option<bool>,
    /// Euler's step at the end.
    pub euler_at_final: Option<bool>,
    /// DPM-Solver: uniform steps in the logarithm of the signal-to-noise ratio.
    pub use_lu_lambdas: Option<bool>,
    /// `zero` or `sigma_min`.
    pub final_sigmas_type: Option<String>,
    /// DDPM: the variance of its noise. DPM-Solver: the network predicts a variance too.
    pub variance_type: Option<String>,
    /// LCM and TCD: steps of the solver that was distilled.
    pub original_inference_steps: Option<usize>,
    /// LCM and TCD: scale of the timestep in the boundary conditions.
    pub timestep_scaling: Option<f64>,
    /// UniPC: in terms of the denoised latents.
    pub predict_x0: Option<bool>,
    /// UniPC: steps without its corrector.
    pub disable_corrector: Option<Vec<usize>>,
    /// Lowest sigma.
    pub sigma_min: Option<f64>,
    /// Highest sigma.
    pub sigma_max: Option<f64>,
    /// Euler: `discrete` or `continuous`.
    pub timestep_type: Option<String>,
    /// Share of fresh noise in each step of DDIM and TCD, which diffusers takes from the call and
    /// not from the file.
    pub eta: Option<f64>,
    /// All other keys, but those that start with an underscore.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl SchedulerFile {
    /// Parses and checks the text of `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// Text that is no JSON object, and values of a wrong type, out of range, or not supported.
    pub fn parse(json: &str) -> Result<Self> {
        let file = File(files::SCHEDULER_CONFIG);
        let map = file.object(json)?;
        file.only(&map, &[("use_flow_sigmas", &[json!(null), json!(false)])])?;
        let mut config: Self = file.read(map)?;
        if let Some(name) = config.class_name.strip_prefix("Flax") {
            config.class_name = name.to_owned();
        }
        config.extra.retain(|key, _| !key.starts_with('_'));
        config.check()?;
        Ok(config)
    }

    /// Checks values that were not parsed.
    ///
    /// # Errors
    /// A value out of range, or at odds with another one.
    pub fn check(&self) -> Result<()> {
        let file = File(files::SCHEDULER_CONFIG);
        let timesteps = self.num_train_timesteps.unwrap_or(1000);
        for (key, value, range) in [
            ("num_train_timesteps", Some(timesteps), 1..=100_000),
            ("steps_offset", self.steps_offset, 0..=timesteps),
            (
                "original_inference_steps",
                self.original_inference_steps,
                1..=timesteps,
            ),
            ("solver_order", self.solver_order, 1..=8),
        ] {
            value.map_or(Ok(()), |value| file.range(key, value, range))?;
        }
        for (key, value) in [
            ("clip_sample_range", self.clip_sample_range),
            ("sample_max_value", self.sample_max_value),
            ("timestep_scaling", self.timestep_scaling),
            ("sigma_min", self.sigma_min),
            ("sigma_max", self.sigma_max),
        ] {
            value.map_or(Ok(()), |value| file.positive(key, value))?;
        }
        for (key, value) in [
            ("beta_start", self.beta_start),
            ("beta_end", self.beta_end),
            (
                "dynamic_thresholding_ratio",
                self.dynamic_thresholding_ratio,
            ),
        ] {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                return Err(file.invalid(key, value, "expected a number from 0 to 1"));
            }
        }
        if let Some(betas) = &self.trained_betas {
            file.length("trained_betas", betas, timesteps)?;
            if !betas.iter().all(|beta| (0.0..=1.0).contains(beta)) {
                let expected = "expected numbers from 0 to 1";
                return Err(file.invalid("trained_betas", betas, expected));
            }
        }
        match self.eta.filter(|eta| !(*eta >= 0.0 && eta.is_finite())) {
            Some(eta) => Err(file.invalid("eta", eta, "expected a number from 0")),
            None => Ok(()),
        }
    }
}
