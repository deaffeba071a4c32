//! Sampling of latent consistency models (Luo 2023, algorithm 3), diffusers' `scheduling_lcm.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Error, NoiseLevel, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    solver::table::{self, DistilledSteps},
    tensor::combine,
    train::{LATENT_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "lcm";

/// Deviation of the training data that the boundary conditions assume.
const SIGMA_DATA: f64 = 0.5;

/// A limit on what files may ask for: scaled timesteps must stay finite.
const MAX_SCALING: f64 = 1e6;

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "LCM",
    class: "LCMScheduler",
    settings: &[],
    aliases: &["sample_lcm"],
    order: 1,
    calls_per_step: 1,
    stochastic: true,
    sigmas: SigmaSupport::Timesteps,
    good_steps: (2, 8),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &LATENT_BETAS, ZeroSnr::Exact)?;
    let scaling = file.timestep_scaling.unwrap_or(10.0);
    if !(0.0..=MAX_SCALING).contains(&scaling) {
        return Err(Error::config(
            NAME,
            "timestep_scaling",
            scaling,
            "0 to 1000000",
        ));
    }
    Ok(Box::new(Lcm {
        distilled: DistilledSteps::from_file(NAME, file, overrides, &train)?,
        own: table::own_timesteps(NAME, overrides, &train)?,
        predictor: Predictor::limited(NAME, file, Some(false))?,
        train,
        scaling,
    }))
}

#[derive(Debug)]
struct Lcm {
    train: TrainSchedule,
    predictor: Predictor,
    distilled: DistilledSteps,
    /// The caller's timesteps.
    own: Option<Vec<usize>>,
    scaling: f64,
}

impl SchedulerConfig for Lcm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get();
        let timesteps = table::own_or(NAME, self.own.as_deref(), steps, || {
            self.distilled.timesteps(NAME, steps)
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
            LcmSteps {
                scaling: self.scaling,
            },
        )
    }
}

#[derive(Debug)]
struct LcmSteps {
    scaling: f64,
}

impl Solver for LcmSteps {
    fn step(&self, call: &mut Call<'_>, _memory: &mut Memory) -> Result<Step> {
        // The boundary conditions make the consistency function the identity at timestep 0.
        let scaled = call.level().timestep * self.scaling;
        let norm = scaled.hypot(SIGMA_DATA);
        let (of_sample, of_denoised) = ((SIGMA_DATA / norm).powi(2), scaled / norm);
        let denoised = combine(&[(of_sample, call.sample), (of_denoised, &call.denoised()?)])?;
        if call.is_last() {
            return Ok(Step {
                sample: denoised.clone(),
                denoised,
            });
        }
        let next = *call.next_level();
        let noise = call.draw()?;
        Ok(Step {
            sample: combine(&[(next.alpha, &denoised), (next.sigma, &noise)])?,
            denoised,
        })
    }
}
