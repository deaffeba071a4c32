//! PNDM (Liu 2022), diffusers' `scheduling_pndm.py`: a linear multistep method on the predicted
//! noise, started by Runge-Kutta steps or, for Stable Diffusion (`skip_prk_steps`), by one step
//! that is made twice.

use std::num::NonZeroUsize;

use candle_core::Tensor;
use sd_config::{PredictionType, SchedulerFile, TimestepSpacing};

use crate::{
    Error, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    solver::table,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "pndm";

/// Steps taken by Runge-Kutta, and the calls each of them takes.
const RUNGE_KUTTA_STEPS: usize = 3;
const RUNGE_KUTTA_CALLS: usize = 4;

/// Weights of the newest, second newest, ... model output (Adams-Bashforth; Liu 2022, and the lower
/// orders that start it).
const ADAMS_BASHFORTH: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "PNDM",
    class: "PNDMScheduler",
    settings: &[],
    aliases: &["plms"],
    order: 4,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::Fixed,
    good_steps: (20, 50),
    configure,
};

fn configure(file: &SchedulerFile, _overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    Ok(Box::new(Pndm {
        train: TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Ignored)?,
        predictor: Predictor::unlimited(file).without_sample(NAME)?,
        predicts_v: file.prediction_type == Some(PredictionType::VPrediction),
        spacing: file.timestep_spacing.unwrap_or(TimestepSpacing::Leading),
        offset: file.steps_offset.unwrap_or(0),
        alpha_to_one: file.set_alpha_to_one.unwrap_or(false),
        runge_kutta: !file.skip_prk_steps.unwrap_or(false),
    }))
}

#[derive(Debug, Clone)]
struct Pndm {
    train: TrainSchedule,
    predictor: Predictor,
    predicts_v: bool,
    spacing: TimestepSpacing,
    offset: usize,
    alpha_to_one: bool,
    runge_kutta: bool,
}

impl SchedulerConfig for Pndm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get();
        let stride = self.train.len() / steps;
        let timesteps = table::timesteps(NAME, &self.train, self.spacing, steps, self.offset)?;
        let (timesteps, steps_done) = match self.runge_kutta {
            true if steps <= RUNGE_KUTTA_STEPS => {
                let expected = "at least 4, or skip_prk_steps".to_string();
                return Err(Error::Steps {
                    scheduler: NAME,
                    steps,
                    expected,
                });
            }
            true => runge_kutta_first(&timesteps, stride / 2),
            false => second_twice(&timesteps),
        };
        let last = timesteps[timesteps.len() - 1];
        let end = table::level_before(&self.train, last, stride, self.alpha_to_one);
        let levels = timesteps
            .iter()
            .map(|t| self.train.level(*t))
            .chain([end])
            .collect();
        let plan = Plan::new(levels).with_steps(steps_done, 1);
        Run::boxed(
            NAME,
            plan,
            self.predictor,
            PndmSteps {
                config: self.clone(),
                timesteps,
                stride,
            },
        )
    }
}

/// The timestep of each call, and the steps done after each number of calls, when the first step is
/// made twice: the second time with what the network says at its end.
fn second_twice(timesteps: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut calls = timesteps.to_vec();
    let mut steps_done: Vec<_> = (0..=timesteps.len()).collect();
    if let Some(second) = timesteps.get(1) {
        calls.insert(1, *second);
        steps_done.insert(1, 0);
    }
    (calls, steps_done)
}

/// The same when the first steps are made by Runge-Kutta: at the start of the step, twice `half` a
/// stride above its end, and at its end.
fn runge_kutta_first(timesteps: &[usize], half: usize) -> (Vec<usize>, Vec<usize>) {
    let (first, rest) = (
        &timesteps[..=RUNGE_KUTTA_STEPS],
        &timesteps[RUNGE_KUTTA_STEPS..],
    );
    let mut calls: Vec<_> = first
        .windows(2)
        .flat_map(|step| [step[0], step[1] + half, step[1] + half, step[1]])
        .collect();
    calls.extend(rest);
    let whole = RUNGE_KUTTA_STEPS * RUNGE_KUTTA_CALLS;
    let steps_done = (0..=calls.len()).map(|call| match call.checked_sub(whole) {
        Some(after) => RUNGE_KUTTA_STEPS + after,
        None => call / RUNGE_KUTTA_CALLS,
    });
    let steps_done = steps_done.collect();
    (calls, steps_done)
}

#[derive(Debug)]
struct PndmSteps {
    config: Pndm,
    timesteps: Vec<usize>,
    stride: usize,
}

impl Solver for PndmSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let runge_kutta = RUNGE_KUTTA_STEPS * RUNGE_KUTTA_CALLS;
        let sample = if self.config.runge_kutta && call.index < runge_kutta {
            self.runge_kutta(call, memory)?
        } else {
            self.multistep(call, memory)?
        };
        Ok(Step {
            sample,
            denoised: call.denoised()?,
        })
    }

    fn history(&self) -> usize {
        if self.config.runge_kutta {
            RUNGE_KUTTA_STEPS + 2
        } else {
            ADAMS_BASHFORTH.len()
        }
    }

    fn check_start(&self, call: usize) -> Result<()> {
        match (self.config.runge_kutta, call) {
            (true, 1..) => Err(Error::Start {
                scheduler: NAME,
                call,
                expected: "call 0, or skip_prk_steps",
            }),
            _ => Ok(()),
        }
    }
}

impl PndmSteps {
    fn runge_kutta(&self, call: &Call<'_>, memory: &mut Memory) -> Result<Tensor> {
        let stage = call.index % RUNGE_KUTTA_CALLS;
        let from = self.timesteps[call.index - stage];
        let to = self.timesteps[call.index];
        let half = self.stride / 2;
        match stage {
            0 => {
                memory.push(call.output.clone(), self.history());
                memory.sample = Some(call.sample.clone());
                self.transfer(from, to, half, call.sample, &[(1.0, call.output)])
            }
            1 | 2 => {
                memory.push(call.output.clone(), self.history());
                let down = if stage == 1 { 0 } else { half };
                self.transfer(from, to, down, memory.sample()?, &[(1.0, call.output)])
            }
            _ => {
                let outputs = [
                    (1.0 / 6.0, memory.past(2)?),
                    (1.0 / 3.0, memory.past(1)?),
                    (1.0 / 3.0, memory.past(0)?),
                    (1.0 / 6.0, call.output),
                ];
                let sample = self.transfer(from, to, 0, memory.sample()?, &outputs)?;
                // Of this step's outputs, the multistep method uses the first.
                memory.history.truncate(memory.history.len() - 2);
                Ok(sample)
            }
        }
    }

    fn multistep(&self, call: &Call<'_>, memory: &mut Memory) -> Result<Tensor> {
        let timestep = self.timesteps[call.index];
        // The second call of a run makes its first step again, also in a run that starts in the
        // middle of the plan, where no timestep is repeated.
        if call.age() == 1 {
            let outputs = [(0.5, call.output), (0.5, memory.past(0)?)];
            let sample = self.transfer(
                timestep + self.stride,
                timestep,
                0,
                memory.sample()?,
                &outputs,
            )?;
            memory.sample = None;
            return Ok(sample);
        }
        if call.age() == 0 {
            memory.sample = Some(call.sample.clone());
        }
        memory.push(call.output.clone(), ADAMS_BASHFORTH.len());
        let weights = ADAMS_BASHFORTH[memory.history.len() - 1];
        let outputs: Vec<_> = weights
            .iter()
            .copied()
            .zip(memory.history.iter().rev())
            .collect();
        self.transfer(timestep, timestep, self.stride, call.sample, &outputs)
    }

    /// Moves `sample` from the timestep `from` to `down` below `to` along the weighted sum of model
    /// outputs (Liu 2022, eq. 9, which is DDIM's step).
    fn transfer(
        &self,
        from: usize,
        to: usize,
        down: usize,
        sample: &Tensor,
        outputs: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let from = self.config.train.level(from);
        let to = table::level_before(&self.config.train, to, down, self.config.alpha_to_one);
        let of_sample = to.alpha / from.alpha;
        let of_noise = to.sigma - of_sample * from.sigma;
        // The noise, as weights of the sample and of the outputs; these are summed before they are
        // translated.
        let (noise_sample, noise_output) = if self.config.predicts_v {
            (from.sigma, from.alpha)
        } else {
            (0.0, 1.0)
        };
        let mut terms = vec![(of_sample + of_noise * noise_sample, sample)];
        terms.extend(
            outputs
                .iter()
                .map(|(weight, output)| (of_noise * noise_output * weight, *output)),
        );
        Ok(combine(&terms)?)
    }
}
