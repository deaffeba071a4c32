//! Euler's method on the probability flow (Karras 2022, algorithm 1), diffusers'
//! `scheduling_euler_discrete.py`.

use std::{f64::consts::SQRT_2, num::NonZeroUsize};

use sd_config::{PredictionType, SchedulerFile};

use crate::{
    Churn, Error, NoiseLevel, Overrides, Result, Scheduler, SchedulerConfig, Step, Trajectory,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "euler";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "Euler",
    class: "EulerDiscreteScheduler",
    settings: &[],
    aliases: &["sample_euler", "k_euler"],
    order: 1,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (20, 50),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let invalid = |key, value: &str, expected| Err(Error::config(NAME, key, value, expected));
    let log_linear = match file.interpolation_type.as_deref() {
        None | Some("linear") => false,
        Some("log_linear") => true,
        Some(other) => return invalid("interpolation_type", other, "linear or log_linear"),
    };
    let continuous = match file.timestep_type.as_deref() {
        None | Some("discrete") => false,
        // The reference has it for this prediction type only, and ignores it elsewhere.
        Some("continuous") => file.prediction_type == Some(PredictionType::VPrediction),
        Some(other) => return invalid("timestep_type", other, "discrete or continuous"),
    };
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Nearly)?;
    let mut grid = SigmaGrid::from_file(NAME, file, overrides, train)?
        .with_bounds(file)?
        .with_final_sigma(file)?;
    if log_linear {
        grid = grid.with_log_linear();
    }
    if continuous {
        if matches!(overrides.trajectory, Some(Trajectory::Timesteps(_))) {
            return invalid(
                "trajectory",
                "timesteps",
                "sigmas: timesteps are continuous",
            );
        }
        if log_linear && grid.is_plain() {
            // The reference then makes one step more than it was asked for.
            return invalid(
                "interpolation_type",
                "log_linear",
                "linear, or a sigma schedule",
            );
        }
        grid = grid.with_continuous_timesteps();
    }
    let churn = overrides.churn.unwrap_or_default();
    let valid = churn.amount >= 0.0 && churn.amount.is_finite() && churn.noise.is_finite();
    if !valid || churn.min.is_nan() || churn.max.is_nan() {
        let value = format!("{churn:?}");
        return Err(Error::config(NAME, "churn", value, "numbers, none below 0"));
    }
    Ok(Box::new(Euler {
        grid,
        predictor: Predictor::unlimited(file),
        churn,
    }))
}

#[derive(Debug)]
struct Euler {
    grid: SigmaGrid,
    predictor: Predictor,
    churn: Churn,
}

impl SchedulerConfig for Euler {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let plan = self.grid.fractional(steps.get())?.plan();
        let growth = (self.churn.amount / steps.get() as f64).min(SQRT_2 - 1.0);
        Run::boxed(
            NAME,
            plan,
            self.predictor,
            EulerSteps {
                churn: self.churn,
                growth,
            },
        )
    }
}

#[derive(Debug)]
struct EulerSteps {
    churn: Churn,
    /// How much of a sigma is added to it before each step.
    growth: f64,
}

impl Solver for EulerSteps {
    /// In sigma space the step is `x + (next - sigma) (x - x0) / sigma`: the same x0 and noise,
    /// mixed for the next level.
    fn step(&self, call: &mut Call<'_>, _memory: &mut Memory) -> Result<Step> {
        let (level, next) = (*call.level(), *call.next_level());
        let sigma = level.karras_sigma();
        if self.growth == 0.0 || !(self.churn.min..=self.churn.max).contains(&sigma) {
            return call.mixed(next.alpha, next.sigma, None);
        }
        let higher = NoiseLevel::from_karras_sigma(level.timestep, sigma * (1.0 + self.growth));
        let added = higher.alpha
            * self.churn.noise
            * (higher.karras_sigma().powi(2) - sigma.powi(2)).sqrt();
        let noise = call.draw()?;
        let sample = combine(&[(higher.alpha / level.alpha, call.sample), (added, &noise)])?;
        let denoised = call.denoised_after_churn(&higher, &sample)?;
        let kept = next.karras_sigma() / higher.karras_sigma();
        let terms = [
            (next.alpha * kept / higher.alpha, &sample),
            (next.alpha * (1.0 - kept), &denoised),
        ];
        Ok(Step {
            sample: combine(&terms)?,
            denoised,
        })
    }
}
