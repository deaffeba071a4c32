//! Euler's method with fresh noise at each step, k-diffusion's `sample_euler_ancestral`, diffusers'
//! `scheduling_euler_ancestral_discrete.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Overrides, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "euler_a";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "Euler a",
    class: "EulerAncestralDiscreteScheduler",
    settings: &[],
    aliases: &["euler_ancestral", "sample_euler_ancestral", "k_euler_a"],
    order: 1,
    calls_per_step: 1,
    stochastic: true,
    sigmas: SigmaSupport::Override,
    good_steps: (20, 50),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Nearly)?;
    let predictor = Predictor::unlimited(file).without_sample(NAME)?;
    Ok(Box::new(EulerAncestral {
        grid: SigmaGrid::plain(NAME, file, overrides, train),
        predictor,
    }))
}

#[derive(Debug)]
struct EulerAncestral {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for EulerAncestral {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let plan = self.grid.fractional(steps.get())?.plan();
        Run::boxed(NAME, plan, self.predictor, EulerAncestralSteps)
    }
}

#[derive(Debug)]
struct EulerAncestralSteps;

impl Solver for EulerAncestralSteps {
    fn step(&self, call: &mut Call<'_>, _memory: &mut Memory) -> Result<Step> {
        let next = *call.next_level();
        let (down, up) = ancestral(call.level().karras_sigma(), next.karras_sigma());
        // The last step draws as well, although its noise has no weight.
        let noise = call.draw()?;
        call.mixed(
            next.alpha,
            next.alpha * down,
            Some((next.alpha * up, &noise)),
        )
    }
}

/// How an ancestral step gets from one Karras sigma to a lower one: further down, then up again by
/// fresh noise.
pub(super) fn ancestral(from: f64, to: f64) -> (f64, f64) {
    // The reference takes the first as the root of a difference of squares.
    (
        to * to / from,
        to * (1.0 - (to / from).powi(2)).max(0.0).sqrt(),
    )
}
