//! Linear multistep (Adams-Bashforth) over the sigmas, k-diffusion's `sample_lms`, diffusers'
//! `scheduling_lms_discrete.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    NoiseLevel, Overrides, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "lms";

/// Past derivatives used.
const ORDER: usize = 4;

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "LMS",
    class: "LMSDiscreteScheduler",
    settings: &[],
    aliases: &["sample_lms", "k_lms"],
    order: ORDER,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (20, 50),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Ignored)?;
    let predictor = Predictor::unlimited(file);
    Ok(Box::new(Lms {
        grid: SigmaGrid::from_file(NAME, file, overrides, train)?,
        predictor,
    }))
}

#[derive(Debug)]
struct Lms {
    grid: SigmaGrid,
    predictor: Predictor,
}

impl SchedulerConfig for Lms {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let plan = self.grid.fractional(steps.get())?.plan();
        Run::boxed(NAME, plan, self.predictor, LmsSteps)
    }
}

#[derive(Debug)]
struct LmsSteps;

impl Solver for LmsSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let (level, next) = (*call.level(), *call.next_level());
        let denoised = call.denoised()?;
        let newest = call.noise_besides(&denoised);
        memory.push(combine(&newest)?, ORDER);

        // A run that starts in the middle takes the coefficients of the full order from its first
        // step, without having the past they are made for: so does the reference.
        let order = ORDER.min(call.index + 1);
        let past: Vec<_> = (0..order)
            .map(|back| call.level_at(call.index - back).karras_sigma())
            .collect();
        let mut terms = vec![(next.alpha / level.alpha, call.sample)];
        let weight = |back| next.alpha * weight(&past, back, &next);
        // Not the newest derivative itself: for a long step, its rounding to f32 would show.
        terms.extend(newest.map(|(share, tensor)| (weight(0) * share, tensor)));
        for (back, derivative) in memory.history.iter().rev().enumerate().take(order).skip(1) {
            terms.push((weight(back), derivative));
        }
        let sample = combine(&terms)?;
        Ok(Step { sample, denoised })
    }

    fn history(&self) -> usize {
        ORDER
    }
}

/// The integral from the newest of the `past` sigmas to that of `next` of the polynomial that is 1
/// at `past[back]` and 0 at the other `past` sigmas (Lagrange). Gauss-Legendre quadrature of two
/// points is exact up to degree 3.
fn weight(past: &[f64], back: usize, next: &NoiseLevel) -> f64 {
    let (from, to) = (past[0], next.karras_sigma());
    let others = past.iter().enumerate().filter(|(index, _)| *index != back);
    let basis = |sigma: f64| {
        others
            .clone()
            .map(|(_, other)| (sigma - other) / (past[back] - other))
            .product::<f64>()
    };
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (basis(middle - offset) + basis(middle + offset))
}
