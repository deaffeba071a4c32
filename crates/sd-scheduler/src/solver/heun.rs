//! Heun's method on the probability flow (Karras 2022, algorithm 1), diffusers'
//! `scheduling_heun_discrete.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver, check_start_of_pair},
    sigmas::SigmaGrid,
    tensor::combine,
    train::{LATENT_LINEAR_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "heun";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "Heun",
    class: "HeunDiscreteScheduler",
    settings: &[],
    aliases: &["sample_heun", "k_heun"],
    order: 2,
    calls_per_step: 2,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (10, 30),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &LATENT_LINEAR_BETAS, ZeroSnr::Ignored)?;
    let predictor = Predictor::clipped(NAME, file)?;
    Ok(Box::new(Heun {
        grid: SigmaGrid::from_file(NAME, file, overrides, train)?,
        predictor,
    }))
}

#[derive(Debug)]
struct Heun {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for Heun {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let sigmas = self.grid.fractional(steps.get())?;
        let plan = sigmas.in_sigma_space(Plan::new(sigmas.levels_twice()).with_two_calls_a_step());
        Run::boxed(NAME, plan, self.predictor, HeunSteps)
    }
}

#[derive(Debug)]
struct HeunSteps;

impl Solver for HeunSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let denoised = call.denoised()?;
        let noise = call.noise_besides(&denoised);
        let next = *call.next_level();
        if call.index.is_multiple_of(2) {
            // Euler's step, to look ahead. The last step goes no further.
            let noise = combine(&noise)?;
            let sample = combine(&[(next.alpha, &denoised), (next.sigma, &noise)])?;
            *memory = match call.is_last() {
                true => Memory::default(),
                false => Memory {
                    history: vec![noise],
                    sample: Some(call.sample.clone()),
                },
            };
            return Ok(Step { sample, denoised });
        }
        let start = call.level_at(call.index - 1);
        let half = next.alpha * (next.karras_sigma() - start.karras_sigma()) / 2.0;
        let mut terms = vec![
            (next.alpha / start.alpha, memory.sample()?),
            (half, memory.past(0)?),
        ];
        terms.extend(noise.map(|(share, tensor)| (half * share, tensor)));
        let sample = combine(&terms)?;
        *memory = Memory::default();
        Ok(Step { sample, denoised })
    }

    fn history(&self) -> usize {
        1
    }

    fn check_start(&self, call: usize) -> Result<()> {
        check_start_of_pair(NAME, call)
    }
}
