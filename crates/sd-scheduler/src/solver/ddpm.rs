//! Ancestral sampling of diffusion models (Ho 2020, algorithm 2), diffusers' `scheduling_ddpm.py`.

use std::num::NonZeroUsize;

use sd_config::{SchedulerFile, TimestepSpacing};

use crate::{
    Error, NoiseLevel, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    solver::table,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "ddpm";

/// The least variance of the fresh noise.
const MIN_VARIANCE: f64 = 1e-20;

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DDPM",
    class: "DDPMScheduler",
    settings: &[],
    aliases: &["sample_ddpm"],
    order: 1,
    calls_per_step: 1,
    stochastic: true,
    sigmas: SigmaSupport::Timesteps,
    good_steps: (50, 1000),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let variance = match file.variance_type.as_deref() {
        // The reference's log variant ends in the same numbers.
        None | Some("fixed_small" | "fixed_small_log") => Variance::Small,
        Some("fixed_large") => Variance::Large,
        Some(other) => {
            // The reference has fixed_large_log too, as the square root of a negative number.
            return Err(Error::config(
                NAME,
                "variance_type",
                other,
                "fixed_small, fixed_small_log or fixed_large",
            ));
        }
    };
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Exact)?;
    Ok(Box::new(Ddpm {
        own: table::own_timesteps(NAME, overrides, &train)?,
        train,
        predictor: Predictor::limited(NAME, file, Some(true))?,
        spacing: file.timestep_spacing.unwrap_or(TimestepSpacing::Leading),
        offset: file.steps_offset.unwrap_or(0),
        variance,
    }))
}

#[derive(Debug)]
struct Ddpm {
    train: TrainSchedule,
    /// The caller's timesteps.
    own: Option<Vec<usize>>,
    predictor: Predictor,
    spacing: TimestepSpacing,
    offset: usize,
    variance: Variance,
}

/// The variance of the fresh noise (Ho 2020, section 3.2).
#[derive(Debug, Clone, Copy)]
enum Variance {
    /// That of the reverse process for data without variance.
    Small,
    /// That of the reverse process for normal data.
    Large,
}

impl SchedulerConfig for Ddpm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get();
        let timesteps = table::own_or(NAME, self.own.as_deref(), steps, || {
            table::timesteps(NAME, &self.train, self.spacing, steps, self.offset)
        })?;
        let levels = timesteps
            .iter()
            .map(|t| self.train.level(*t))
            .chain([NoiseLevel::CLEAN])
            .collect();
        Run::boxed(
            NAME,
            Plan::new(levels),
            self.predictor,
            DdpmSteps {
                variance: self.variance,
            },
        )
    }
}

#[derive(Debug)]
struct DdpmSteps {
    variance: Variance,
}

impl Solver for DdpmSteps {
    fn step(&self, call: &mut Call<'_>, _memory: &mut Memory) -> Result<Step> {
        let (level, next) = (*call.level(), *call.next_level());
        let beta = 1.0 - (level.alpha / next.alpha).powi(2);
        let remaining = (next.sigma / level.sigma).powi(2);
        let denoised = call.denoised()?;
        // Ho 2020, eq. 7.
        let of_denoised = next.alpha * beta / level.sigma.powi(2);
        let of_sample = level.alpha / next.alpha * remaining;
        let mut terms = vec![(of_denoised, &denoised), (of_sample, call.sample)];
        let deviation = match self.variance {
            Variance::Small => (remaining * beta).max(MIN_VARIANCE).sqrt(),
            Variance::Large => beta.sqrt(),
        };
        let noise;
        if level.timestep > 0.0 {
            noise = call.draw()?;
            terms.push((deviation, &noise));
        }
        Ok(Step {
            sample: combine(&terms)?,
            denoised,
        })
    }
}
