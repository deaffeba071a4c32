//! Trajectory consistency distillation (Zheng 2024), diffusers' `scheduling_tcd.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    NoiseLevel, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    solver::table::{self, DistilledSteps},
    train::{LATENT_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "tcd";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "TCD",
    class: "TCDScheduler",
    settings: &[],
    aliases: &[],
    order: 1,
    calls_per_step: 1,
    stochastic: true,
    sigmas: SigmaSupport::Timesteps,
    good_steps: (2, 8),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &LATENT_BETAS, ZeroSnr::Exact)?;
    Ok(Box::new(Tcd {
        distilled: DistilledSteps::from_file(NAME, file, overrides, &train)?,
        own: table::own_timesteps(NAME, overrides, &train)?,
        // The reference has the keys of clipping and thresholding, and does not use them.
        predictor: Predictor::unlimited(file),
        train,
        eta: table::eta(NAME, file, overrides, 0.3)?,
    }))
}

#[derive(Debug)]
struct Tcd {
    train: TrainSchedule,
    predictor: Predictor,
    distilled: DistilledSteps,
    /// The caller's timesteps.
    own: Option<Vec<usize>>,
    eta: f64,
}

impl SchedulerConfig for Tcd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get();
        let timesteps = table::own_or(NAME, self.own.as_deref(), steps, || {
            self.distilled.timesteps(NAME, steps)
        })?;
        // The last step goes to timestep 0, which is not quite clean.
        let levels: Vec<_> = timesteps
            .iter()
            .chain([&0])
            .map(|timestep| self.train.level(*timestep))
            .collect();
        let below =
            |timestep: &usize| ((1.0 - self.eta) as f32 * *timestep as f32).floor() as usize;
        let targets = timesteps
            .iter()
            .skip(1)
            .chain([&0])
            .map(|next| self.train.level(below(next)))
            .collect();
        Run::boxed(
            NAME,
            Plan::new(levels),
            self.predictor,
            TcdSteps {
                targets,
                eta: self.eta,
            },
        )
    }
}

#[derive(Debug)]
struct TcdSteps {
    /// Where each step goes before it adds noise to get to the next level.
    targets: Vec<NoiseLevel>,
    eta: f64,
}

impl Solver for TcdSteps {
    fn step(&self, call: &mut Call<'_>, _memory: &mut Memory) -> Result<Step> {
        let (target, next) = (self.targets[call.index], *call.next_level());
        if self.eta == 0.0 || call.is_last() {
            return call.mixed(target.alpha, target.sigma, None);
        }
        let noise = call.draw()?;
        let kept = next.alpha / target.alpha;
        let fresh = (1.0 - kept.powi(2)).max(0.0).sqrt();
        call.mixed(next.alpha, kept * target.sigma, Some((fresh, &noise)))
    }
}
