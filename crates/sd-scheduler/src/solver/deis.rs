//! DEIS (Zhang 2023), the multistep method of exponential integrators on the predicted noise, in
//! the logarithm of sigma; diffusers' `scheduling_deis_multistep.py`.

use std::num::NonZeroUsize;

use sd_config::SchedulerFile;

use crate::{
    Error, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    solver::multistep_orders,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "deis";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "DEIS",
    class: "DEISMultistepScheduler",
    settings: &[],
    aliases: &["deis_multistep"],
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
    // The class takes the files of these others for its own.
    if let Some(other) = file.algorithm_type.as_deref()
        && !["deis", "dpmsolver", "dpmsolver++"].contains(&other)
    {
        return invalid("algorithm_type", other, "deis");
    }
    if let Some(other) = file.solver_type.as_deref()
        && !["logrho", "midpoint", "heun", "bh1", "bh2"].contains(&other)
    {
        return invalid("solver_type", other, "logrho");
    }
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Ignored)?;
    let grid = SigmaGrid::from_file(NAME, file, overrides, train)?;
    Ok(Box::new(Deis {
        order,
        lower_order_final: file.lower_order_final.unwrap_or(true),
        predictor: Predictor::limited(NAME, file, None)?,
        grid: grid.with_rounded_karras().ending_at_minimum(),
    }))
}

#[derive(Debug)]
struct Deis {
    order: usize,
    lower_order_final: bool,
    predictor: Predictor,
    grid: SigmaGrid,
}

impl SchedulerConfig for Deis {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let sigmas = self.grid.integer(steps.get())?;
        if sigmas.ends_at_zero() {
            return Err(Error::config(
                NAME,
                "trajectory",
                "0 at its end",
                "a sigma above 0 there",
            ));
        }
        let orders = multistep_orders(steps.get(), self.order, self.lower_order_final);
        Run::boxed(
            NAME,
            Plan::new(sigmas.levels()),
            self.predictor,
            DeisSteps {
                orders,
                order: self.order,
            },
        )
    }
}

#[derive(Debug)]
struct DeisSteps {
    orders: Vec<usize>,
    order: usize,
}

impl Solver for DeisSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let denoised = call.denoised()?;
        let newest = call.noise_besides(&denoised);
        memory.push(combine(&newest)?, self.order);
        let order = self.orders[call.index].min(memory.history.len());

        let log = |call_index: usize| call.level_at(call_index).karras_sigma().ln();
        let past: Vec<_> = (0..order).map(|back| log(call.index - back)).collect();
        let (level, next) = (call.level(), call.next_level());
        let mut terms = vec![(next.alpha / level.alpha, call.sample)];
        let weight = |back| next.alpha * weight(&past, back, log(call.index + 1));
        // Not the newest noise itself: for a long step, its rounding to f32 would show.
        terms.extend(newest.map(|(share, tensor)| (weight(0) * share, tensor)));
        for (back, noise) in memory.history.iter().rev().enumerate().take(order).skip(1) {
            terms.push((weight(back), noise));
        }
        Ok(Step {
            sample: combine(&terms)?,
            denoised,
        })
    }

    fn history(&self) -> usize {
        self.order
    }
}

/// The integral over sigma, from the newest of the `past` to `next`, of the polynomial in the
/// logarithm of sigma that is 1 at `past[back]` and 0 at the other `past` logarithms (Zhang
/// 2023).
fn weight(past: &[f64], back: usize, next: f64) -> f64 {
    let (mut polynomial, mut scale) = (vec![1.0], 1.0);
    for (_, node) in past.iter().enumerate().filter(|(index, _)| *index != back) {
        // Times (log - node), from the highest power down.
        polynomial.push(0.0);
        for power in (1..polynomial.len()).rev() {
            polynomial[power] -= node * polynomial[power - 1];
        }
        scale *= past[back] - node;
    }
    // The integral of p(u) exp(u) is (p - p' + p'' - ...)(u) exp(u).
    let antiderivative = |log: f64| {
        let mut sum = 0.0;
        let (mut derivative, mut sign) = (polynomial.clone(), 1.0);
        while !derivative.is_empty() {
            sum += sign
                * derivative
                    .iter()
                    .fold(0.0, |value, coefficient| value * log + coefficient);
            let degree = derivative.len() - 1;
            derivative.truncate(degree);
            derivative
                .iter_mut()
                .enumerate()
                .for_each(|(index, value)| *value *= (degree - index) as f64);
            sign = -sign;
        }
        sum * log.exp()
    };
    (antiderivative(next) - antiderivative(past[0])) / scale
}
