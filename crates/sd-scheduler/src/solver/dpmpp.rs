//! Multistep DPM-Solver++ (Lu 2022b, algorithm 2, and its stochastic version), diffusers'
//! `scheduling_dpmsolver_multistep.py`.

use std::num::NonZeroUsize;

use sd_config::{BetaSchedule, SchedulerFile};

use crate::{
    Error, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    exponential::Exponential,
    prediction::Predictor,
    registry::{Entry, Setting, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    solver::multistep_orders,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const CLASS: &str = "DPMSolverMultistepScheduler";
const FLOW: Setting = Setting::AlgorithmType("dpmsolver++");
const STOCHASTIC: Setting = Setting::AlgorithmType("sde-dpmsolver++");

pub(super) const DPMPP_2M: Entry = Entry {
    name: "dpmpp_2m",
    label: "DPM++ 2M",
    class: CLASS,
    settings: &[FLOW, Setting::SolverOrder(2)],
    aliases: &["sample_dpmpp_2m", "k_dpmpp_2m"],
    order: 2,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (15, 30),
    configure,
};

pub(super) const DPMPP_3M: Entry = Entry {
    name: "dpmpp_3m",
    label: "DPM++ 3M",
    settings: &[FLOW, Setting::SolverOrder(3)],
    aliases: &[],
    order: 3,
    ..DPMPP_2M
};

pub(super) const DPMPP_2M_SDE: Entry = Entry {
    name: "dpmpp_2m_sde",
    label: "DPM++ 2M SDE",
    settings: &[STOCHASTIC, Setting::SolverOrder(2)],
    aliases: &["sample_dpmpp_2m_sde", "k_dpmpp_2m_sde"],
    stochastic: true,
    ..DPMPP_2M
};

pub(super) const DPMPP_3M_SDE: Entry = Entry {
    name: "dpmpp_3m_sde",
    label: "DPM++ 3M SDE",
    settings: &[STOCHASTIC, Setting::SolverOrder(3)],
    aliases: &["sample_dpmpp_3m_sde", "k_dpmpp_3m_sde"],
    // Third but for a slip of the reference: see `Exponential::curvature`.
    order: 1,
    stochastic: true,
    ..DPMPP_2M
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let order = file.solver_order.unwrap_or(2);
    let algorithm = file.algorithm_type.as_deref().unwrap_or("dpmsolver++");
    let (name, stochastic) = match (algorithm, order) {
        // The class takes DEIS's files for its own.
        ("dpmsolver++" | "deis", 1 | 2) => (DPMPP_2M.name, false),
        ("dpmsolver++" | "deis", 3) => (DPMPP_3M.name, false),
        ("sde-dpmsolver++", 1 | 2) => (DPMPP_2M_SDE.name, true),
        ("sde-dpmsolver++", 3) => (DPMPP_3M_SDE.name, true),
        (_, 1..=3) => {
            return Err(Error::config(
                DPMPP_2M.name,
                "algorithm_type",
                algorithm,
                "dpmsolver++ or sde-dpmsolver++",
            ));
        }
        _ => {
            return Err(Error::config(
                DPMPP_2M.name,
                "solver_order",
                order,
                "1, 2 or 3",
            ));
        }
    };
    let train = TrainSchedule::from_file(name, file, &DDPM_BETAS, ZeroSnr::Nearly)?;
    let mut grid = SigmaGrid::from_file(name, file, overrides, train)?.with_final_sigma(file)?;
    let asks = |flag: Option<bool>| flag.unwrap_or(false) && overrides.sigmas.is_none();
    if asks(file.use_lu_lambdas) && !asks(file.use_karras_sigmas) {
        grid = grid.with_lu_lambdas();
    }
    // The cosine schedule is too steep at its end for whole timesteps.
    if file.beta_schedule != Some(BetaSchedule::SquaredcosCapV2) {
        grid = grid.with_rounded_karras();
    }
    check_unsupported(name, file)?;
    Ok(Box::new(Dpmpp {
        name,
        stochastic,
        order,
        heun: is_heun(name, file)?,
        euler_at_final: file.euler_at_final.unwrap_or(false),
        lower_order_final: file.lower_order_final.unwrap_or(true),
        predictor: Predictor::limited(name, file, None)?,
        grid,
    }))
}

/// Whether `solver_type` asks for Heun's kind of second-order step instead of the midpoint's.
pub(super) fn is_heun(scheduler: &'static str, file: &SchedulerFile) -> Result<bool> {
    match file.solver_type.as_deref() {
        // The last three are other classes' types, which these classes take for their own default.
        None | Some("midpoint" | "logrho" | "bh1" | "bh2") => Ok(false),
        Some("heun") => Ok(true),
        Some(other) => Err(Error::config(
            scheduler,
            "solver_type",
            other,
            "midpoint or heun",
        )),
    }
}

/// Refuses settings of the DPM-Solver classes that are not supported: a clipped range of timesteps,
/// and variances that the network predicts.
pub(super) fn check_unsupported(scheduler: &'static str, file: &SchedulerFile) -> Result<()> {
    let invalid = |key, value: &str, expected| Err(Error::config(scheduler, key, value, expected));
    if let Some(learned @ ("learned" | "learned_range")) = file.variance_type.as_deref() {
        return invalid("variance_type", learned, "a variance that is not learned");
    }
    // Minus infinity, which does not clip, is no number in JSON.
    match file.extra.get("lambda_min_clipped") {
        Some(value) if value.is_number() => {
            invalid("lambda_min_clipped", &value.to_string(), "minus infinity")
        }
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct Dpmpp {
    name: &'static str,
    stochastic: bool,
    order: usize,
    heun: bool,
    euler_at_final: bool,
    lower_order_final: bool,
    predictor: Predictor,
    grid: SigmaGrid,
}

impl SchedulerConfig for Dpmpp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get();
        let sigmas = self.grid.integer(steps)?;
        let mut orders = multistep_orders(steps, self.order, self.lower_order_final);
        // A step to a clean sample can only be of first order: it goes to what the network takes
        // for it.
        if self.euler_at_final || sigmas.ends_at_zero() {
            orders[steps - 1] = 1;
        }
        let solver = DpmppSteps {
            orders,
            order: self.order,
            stochastic: self.stochastic,
            heun: self.heun,
        };
        Run::boxed(
            self.name,
            Plan::new(sigmas.levels()),
            self.predictor,
            solver,
        )
    }
}

#[derive(Debug)]
struct DpmppSteps {
    /// The order that each step may have, if there is enough of a past.
    orders: Vec<usize>,
    order: usize,
    stochastic: bool,
    heun: bool,
}

impl Solver for DpmppSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let (level, next) = (*call.level(), *call.next_level());
        let step = Exponential::new(self.stochastic, &level, &next);
        let denoised = call.denoised()?;
        memory.push(denoised.clone(), self.order);
        let noise = if self.stochastic {
            Some(call.draw()?)
        } else {
            None
        };

        // A step that goes nowhere, as the last one does on some sigma schedules, has no use for
        // slopes.
        let order = if step.width == 0.0 {
            1
        } else {
            self.orders[call.index].min(memory.history.len())
        };
        // Times between the past levels, in widths of this step.
        let between = |back| {
            let newer: f64 = call.level_at(call.index - back).lambda();
            (newer - call.level_at(call.index - back - 1).lambda()) / step.width
        };
        let of_past = match order {
            1 => vec![step.constant],
            2 => {
                let slope = if self.heun {
                    step.slope()
                } else {
                    step.midpoint_slope()
                } / between(0);
                vec![step.constant + slope, -slope]
            }
            _ => {
                let (r0, r1) = (between(0), between(1));
                // The slopes are (m0 - m1) / r0 now and (m1 - m2) / r1 before; Newton's divided
                // differences.
                let bend = step.slope() * r0 / (r0 + r1) + step.curvature() / (r0 + r1);
                let (now, before) = ((step.slope() + bend) / r0, -bend / r1);
                vec![step.constant + now, before - now, -before]
            }
        };
        let mut terms = vec![(step.sample, call.sample)];
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
