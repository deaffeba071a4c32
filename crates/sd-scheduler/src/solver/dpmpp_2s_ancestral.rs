//! Singlestep DPM-Solver++ with fresh noise at each step, k-diffusion's
//! `sample_dpmpp_2s_ancestral`. diffusers has no such class.

use std::num::NonZeroUsize;

use candle_core::Tensor;
use sd_config::SchedulerFile;

use crate::{
    Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver, check_start_of_pair},
    sigmas::SigmaGrid,
    solver::euler_ancestral::ancestral,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "dpmpp_2s_a";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DPM++ 2S a",
    class: "",
    settings: &[],
    aliases: &[
        "dpmpp_2s_ancestral",
        "sample_dpmpp_2s_ancestral",
        "k_dpmpp_2s_a",
    ],
    order: 2,
    calls_per_step: 2,
    stochastic: true,
    sigmas: SigmaSupport::File,
    good_steps: (10, 30),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Nearly)?;
    let predictor = Predictor::unlimited(file);
    Ok(Box::new(Dpmpp2sAncestral {
        grid: SigmaGrid::from_file(NAME, file, overrides, train)?,
        predictor,
    }))
}

#[derive(Debug)]
struct Dpmpp2sAncestral {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for Dpmpp2sAncestral {
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
        Run::boxed(NAME, plan, self.predictor, Dpmpp2sAncestralSteps { splits })
    }
}

#[derive(Debug)]
struct Dpmpp2sAncestralSteps {
    /// For each step, the sigma that it goes down to and the sigma of the noise that it adds.
    splits: Vec<(f64, f64)>,
}

impl Solver for Dpmpp2sAncestralSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        if call.index.is_multiple_of(2) {
            memory.sample = (!call.is_last()).then(|| call.sample.clone());
            let next = call.next_level();
            return call.mixed(next.alpha, next.sigma, None);
        }
        let noise = call.draw()?;
        whole_step(call, memory, self.splits[call.index / 2], &noise)
    }

    fn check_start(&self, call: usize) -> Result<()> {
        check_start_of_pair(NAME, call)
    }
}

/// The step from the remembered sample down to a sigma, with the clean sample predicted halfway,
/// and up by `noise`.
pub(super) fn whole_step(
    call: &Call<'_>,
    memory: &mut Memory,
    (down, up): (f64, f64),
    noise: &Tensor,
) -> Result<Step> {
    let (start, alpha) = (call.level_at(call.index - 1), call.next_level().alpha);
    let kept = down / start.karras_sigma();
    let denoised = call.denoised()?;
    let terms = [
        (alpha * kept / start.alpha, memory.sample()?),
        (alpha * (1.0 - kept), &denoised),
        (alpha * up, noise),
    ];
    let sample = combine(&terms)?;
    *memory = Memory::default();
    Ok(Step { sample, denoised })
}
