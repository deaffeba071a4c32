//! Singlestep DPM-Solver++ for the stochastic equation, k-diffusion's `sample_dpmpp_sde`,
//! diffusers' `scheduling_dpmsolver_sde.py`.
//!
//! Both take their noise from a Brownian tree (package torchsde), whose seeds give other noise than
//! these. What they share is the path: the noise of half a step is part of the noise of the whole.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver, check_start_of_pair},
    sigmas::SigmaGrid,
    solver::{dpmpp_2s_ancestral::whole_step, euler_ancestral::ancestral},
    tensor::combine,
    train::{LATENT_LINEAR_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "dpmpp_sde";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DPM++ SDE",
    class: "DPMSolverSDEScheduler",
    settings: &[],
    aliases: &["sample_dpmpp_sde", "k_dpmpp_sde"],
    order: 2,
    calls_per_step: 2,
    stochastic: true,
    sigmas: SigmaSupport::File,
    good_steps: (10, 30),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &LATENT_LINEAR_BETAS, ZeroSnr::Ignored)?;
    let predictor = Predictor::unlimited(file).without_sample(NAME)?;
    Ok(Box::new(DpmppSde {
        grid: SigmaGrid::from_file(NAME, file, overrides, train)?,
        predictor,
    }))
}

#[derive(Debug)]
struct DpmppSde {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for DpmppSde {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let sigmas = self.grid.fractional(steps.get())?;
        let levels = self
            .grid
            .levels_between(&sigmas, |step| sigmas.values[step + 1]);
        let plan = sigmas.in_sigma_space(Plan::new(levels).with_two_calls_a_step());
        Run::boxed(NAME, plan, self.predictor, DpmppSdeSteps)
    }
}

#[derive(Debug)]
struct DpmppSdeSteps;

impl Solver for DpmppSdeSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let (level, next) = (*call.level(), *call.next_level());
        if call.is_last() {
            return call.mixed(next.alpha, next.sigma, None);
        }
        if call.index.is_multiple_of(2) {
            let (down, up) = ancestral(level.karras_sigma(), next.karras_sigma());
            let noise = call.draw()?;
            let step = call.mixed(
                next.alpha,
                next.alpha * down,
                Some((next.alpha * up, &noise)),
            )?;
            *memory = Memory {
                history: vec![noise],
                sample: Some(call.sample.clone()),
            };
            return Ok(step);
        }
        let from = call.level_at(call.index - 1).karras_sigma();
        let (middle, to) = (level.karras_sigma(), next.karras_sigma());
        // The path's increment over the whole step, by those over its halves, each in units of its
        // deviation.
        let first = ((from - middle) / (from - to)).sqrt();
        let second = ((middle - to) / (from - to)).sqrt();
        let noise = combine(&[(first, memory.past(0)?), (second, &call.draw()?)])?;
        whole_step(call, memory, ancestral(from, to), &noise)
    }

    fn history(&self) -> usize {
        1
    }

    fn check_start(&self, call: usize) -> Result<()> {
        check_start_of_pair(NAME, call)
    }
}
