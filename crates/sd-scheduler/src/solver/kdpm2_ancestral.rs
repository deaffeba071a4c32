//! DPM-Solver-2 with fresh noise at each step, k-diffusion's `sample_dpm_2_ancestral`, diffusers'
//! `scheduling_k_dpm_2_ancestral_discrete.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver, check_start_of_pair},
    sigmas::SigmaGrid,
    solver::{euler_ancestral::ancestral, kdpm2::from_halfway},
    train::{LATENT_LINEAR_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "dpm2_a";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DPM2 a",
    class: "KDPM2AncestralDiscreteScheduler",
    settings: &[],
    aliases: &[
        "kdpm2_a",
        "dpm_2_ancestral",
        "sample_dpm_2_ancestral",
        "k_dpm_2_a",
    ],
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
    let grid = SigmaGrid::from_file(NAME, file, overrides, train)?.with_rounded_karras();
    Ok(Box::new(Kdpm2Ancestral { grid, predictor }))
}

#[derive(Debug)]
struct Kdpm2Ancestral {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for Kdpm2Ancestral {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let sigmas = self.grid.fractional(steps.get())?;
        let splits: Vec<_> = sigmas
            .values
            .windows(2)
            .map(|pair| ancestral(pair[0], pair[1]))
            .collect();
        let levels = self.grid.levels_between(&sigmas, |step| splits[step].0);
        let plan = sigmas.in_sigma_space(Plan::new(levels).with_two_calls_a_step());
        Run::boxed(NAME, plan, self.predictor, Kdpm2AncestralSteps { splits })
    }
}

#[derive(Debug)]
struct Kdpm2AncestralSteps {
    /// For each step, the sigma that it goes down to and the sigma of the noise that it adds.
    splits: Vec<(f64, f64)>,
}

impl Solver for Kdpm2AncestralSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let next = *call.next_level();
        if call.index.is_multiple_of(2) {
            memory.sample = (!call.is_last()).then(|| call.sample.clone());
            return call.mixed(next.alpha, next.sigma, None);
        }
        let (down, up) = self.splits[call.index / 2];
        let noise = call.draw()?;
        let sample = from_halfway(call, memory, down, &[(next.alpha * up, &noise)])?;
        Ok(Step {
            sample,
            denoised: call.denoised()?,
        })
    }

    fn check_start(&self, call: usize) -> Result<()> {
        check_start_of_pair(NAME, call)
    }
}
