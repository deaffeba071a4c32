//! Singlestep DPM-Solver++ (Lu 2022b, algorithm 1, and of third order), diffusers'
//! `scheduling_dpmsolver_singlestep.py`: steps of one, two or three network calls, where each call
//! counts as a step of the run.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Error, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    exponential::Exponential,
    prediction::Predictor,
    registry::{Entry, Setting, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    solver::dpmpp::{check_unsupported, is_heun},
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "dpmpp_2s";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DPM++ 2S",
    class: "DPMSolverSinglestepScheduler",
    settings: &[
        Setting::AlgorithmType("dpmsolver++"),
        Setting::SolverOrder(2),
    ],
    aliases: &[],
    order: 2,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (15, 30),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let invalid = |key, value: &str, expected| Err(Error::config(NAME, key, value, expected));
    let order = file.solver_order.unwrap_or(2);
    if !(1..=3).contains(&order) {
        return invalid("solver_order", &order.to_string(), "1, 2 or 3");
    }
    let stochastic = match file.algorithm_type.as_deref() {
        // The class takes DEIS's files for its own.
        None | Some("dpmsolver++" | "deis") => false,
        Some("sde-dpmsolver++") => true,
        Some(other) => return invalid("algorithm_type", other, "dpmsolver++ or sde-dpmsolver++"),
    };
    check_unsupported(NAME, file)?;
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Ignored)?;
    let grid = SigmaGrid::from_file(NAME, file, overrides, train)?
        .with_final_sigma(file)?
        .with_rounded_karras()
        .with_linspace();
    Ok(Box::new(Singlestep {
        stochastic,
        order,
        heun: is_heun(NAME, file)?,
        lower_order_final: file.lower_order_final.unwrap_or(false),
        predictor: Predictor::limited(NAME, file, None)?,
        grid,
    }))
}

#[derive(Debug)]
struct Singlestep {
    stochastic: bool,
    order: usize,
    heun: bool,
    lower_order_final: bool,
    predictor: Predictor,
    grid: SigmaGrid,
}

impl SchedulerConfig for Singlestep {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get();
        let sigmas = self.grid.integer(steps)?;
        let solver = SinglestepSteps {
            orders: self.orders(steps, sigmas.ends_at_zero()),
            order: self.order,
            stochastic: self.stochastic,
            heun: self.heun,
        };
        Run::boxed(NAME, Plan::new(sigmas.levels()), self.predictor, solver)
    }
}

impl Singlestep {
    /// The order of each call: as many rounds of orders 1, 2, ... as fit, and part of one for the
    /// rest. A step to a clean sample can only be of first order.
    fn orders(&self, steps: usize, ends_at_zero: bool) -> Vec<usize> {
        let mut orders: Vec<_> = (1..=self.order).cycle().take(steps).collect();
        if ends_at_zero || (self.lower_order_final && steps.is_multiple_of(self.order)) {
            orders[steps - 1] = 1;
        }
        orders
    }
}

#[derive(Debug)]
struct SinglestepSteps {
    orders: Vec<usize>,
    order: usize,
    stochastic: bool,
    heun: bool,
}

impl Solver for SinglestepSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let denoised = call.denoised()?;
        memory.push(denoised.clone(), self.order);
        let noise = if self.stochastic {
            Some(call.draw()?)
        } else {
            None
        };
        // A run that starts in the middle of a step has too little of a past for it.
        let order = self.orders[call.index].min(memory.history.len());
        if order == 1 {
            memory.sample = Some(call.sample.clone());
        }

        let start = *call.level_at(call.index + 1 - order);
        let step = Exponential::new(self.stochastic, &start, call.next_level());
        // Times of the later calls since the start, in widths of the step.
        let since =
            |call_index: usize| (call.level_at(call_index).lambda() - start.lambda()) / step.width;
        let of_past = match order {
            1 => vec![step.constant],
            2 => {
                let slope = if self.heun {
                    step.slope()
                } else {
                    step.midpoint_slope()
                } / since(call.index);
                vec![slope, step.constant - slope]
            }
            _ => {
                let (late, early) = (since(call.index), since(call.index - 1));
                let (of_late, of_early) = if self.heun {
                    let width = late - early;
                    (
                        (2.0 * step.curvature() - early * step.slope()) / (width * late),
                        (late * step.slope() - 2.0 * step.curvature()) / (width * early),
                    )
                } else {
                    (step.slope() / late, 0.0)
                };
                vec![of_late, of_early, step.constant - of_late - of_early]
            }
        };
        let mut terms = vec![(step.sample, memory.sample()?)];
        terms.extend(of_past.into_iter().zip(memory.history.iter().rev()));
        terms.extend(noise.as_ref().map(|noise| (step.noise, noise)));
        Ok(Step {
            sample: combine(&terms)?,
            denoised,
        })
    }

    fn history(&self) -> usize {
        self.order
    }
}
