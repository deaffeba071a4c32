//! DPM-Solver-2 (Lu 2022a) in Karras' sigmas: a midpoint step in the logarithm of
//! sigma, k-diffusion's `sample_dpm_2`, diffusers' `scheduling_k_dpm_2_discrete.py`.

use std::num::NonZeroUsize;

use candle_core::Tensor;
use sd_config::SchedulerFile;

use crate::{
    Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::{Linear, Predictor},
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver, check_start_of_pair},
    sigmas::SigmaGrid,
    tensor::combine,
    train::{LATENT_LINEAR_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "dpm2";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DPM2",
    class: "KDPM2DiscreteScheduler",
    settings: &[],
    aliases: &["kdpm2", "dpm_2", "sample_dpm_2", "k_dpm_2"],
    order: 2,
    calls_per_step: 2,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (10, 30),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &LATENT_LINEAR_BETAS, ZeroSnr::Ignored)?;
    let predictor = Predictor::unlimited(file).without_sample(NAME)?;
    let grid = SigmaGrid::from_file(NAME, file, overrides, train)?.with_rounded_karras();
    Ok(Box::new(Kdpm2 { grid, predictor }))
}

#[derive(Debug)]
struct Kdpm2 {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for Kdpm2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let sigmas = self.grid.fractional(steps.get())?;
        let levels = self
            .grid
            .levels_between(&sigmas, |step| sigmas.values[step + 1]);
        let plan = sigmas.in_sigma_space(Plan::new(levels).with_two_calls_a_step());
        Run::boxed(NAME, plan, self.predictor, Kdpm2Steps)
    }
}

#[derive(Debug)]
struct Kdpm2Steps;

impl Solver for Kdpm2Steps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let next = *call.next_level();
        if call.index.is_multiple_of(2) {
            memory.sample = (!call.is_last()).then(|| call.sample.clone());
            return call.mixed(next.alpha, next.sigma, None);
        }
        let sample = from_halfway(call, memory, next.karras_sigma(), &[])?;
        Ok(Step {
            sample,
            denoised: call.denoised()?,
        })
    }

    fn check_start(&self, call: usize) -> Result<()> {
        check_start_of_pair(NAME, call)
    }
}

/// The whole step from the remembered sample to this `sigma`, along the noise predicted halfway,
/// and on to the next level by `fresh` noise.
pub(super) fn from_halfway(
    call: &Call<'_>,
    memory: &mut Memory,
    sigma: f64,
    fresh: &[(f64, &Tensor)],
) -> Result<Tensor> {
    let (start, alpha) = (call.level_at(call.index - 1), call.next_level().alpha);
    let width = alpha * (sigma - start.karras_sigma());
    let Linear { sample, output } = call.predicted_noise();
    let mut terms = vec![
        (alpha / start.alpha, memory.sample()?),
        (width * sample, call.sample),
        (width * output, call.output),
    ];
    terms.extend(fresh);
    let sum = combine(&terms)?;
    memory.sample = None;
    Ok(sum)
}
