//! DDIM (Song 2020), diffusers' `scheduling_ddim.py`.

use std::num::NonZeroUsize;

use sd_config::{SchedulerFile, TimestepSpacing};

use crate::{
    NoiseLevel, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    solver::table,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "ddim";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DDIM",
    class: "DDIMScheduler",
    settings: &[],
    aliases: &[],
    order: 1,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::Fixed,
    good_steps: (20, 100),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    Ok(Box::new(Ddim {
        train: TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Exact)?,
        predictor: Predictor::limited(NAME, file, Some(true))?,
        spacing: file.timestep_spacing.unwrap_or(TimestepSpacing::Leading),
        offset: file.steps_offset.unwrap_or(0),
        alpha_to_one: file.set_alpha_to_one.unwrap_or(true),
        eta: table::eta(NAME, file, overrides, 0.0)?,
    }))
}

#[derive(Debug)]
struct Ddim {
    train: TrainSchedule,
    predictor: Predictor,
    spacing: TimestepSpacing,
    offset: usize,
    alpha_to_one: bool,
    eta: f64,
}

impl SchedulerConfig for Ddim {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let timesteps =
            table::timesteps(NAME, &self.train, self.spacing, steps.get(), self.offset)?;
        // A step always goes down by the same number of timesteps, as in the reference. With
        // linspace and trailing spacing that is not quite where the next step starts.
        let stride = self.train.len() / steps.get();
        let targets: Vec<_> = timesteps
            .iter()
            .map(|timestep| table::level_before(&self.train, *timestep, stride, self.alpha_to_one))
            .collect();
        let levels = timesteps
            .iter()
            .map(|t| self.train.level(*t))
            .chain(targets.last().copied())
            .collect();
        Run::boxed(
            NAME,
            Plan::new(levels),
            self.predictor,
            DdimSteps {
                targets,
                eta: self.eta,
            },
        )
    }
}

#[derive(Debug)]
struct DdimSteps {
    targets: Vec<NoiseLevel>,
    eta: f64,
}

impl Solver for DdimSteps {
    fn step(&self, call: &mut Call<'_>, _memory: &mut Memory) -> Result<Step> {
        let (level, target) = (*call.level(), self.targets[call.index]);
        // Song 2020, eq. 16.
        let deviation = self.eta * fresh_noise(&level, &target);
        let remaining = (target.sigma.powi(2) - deviation.powi(2)).max(0.0).sqrt();
        let noise = if self.eta > 0.0 {
            Some(call.draw()?)
        } else {
            None
        };
        call.mixed(
            target.alpha,
            remaining,
            noise.as_ref().map(|noise| (deviation, noise)),
        )
    }
}

/// Deviation of the noise that a step of DDPM adds.
fn fresh_noise(level: &NoiseLevel, target: &NoiseLevel) -> f64 {
    let variance =
        (target.sigma / level.sigma).powi(2) * (1.0 - (level.alpha / target.alpha).powi(2));
    variance.max(0.0).sqrt()
}
