//! UniPC (Zhao 2023, algorithms 1 and 2): a multistep predictor, and a corrector that needs no
//! network call of its own because it works with the next step's; diffusers'
//! `scheduling_unipc_multistep.py`.

use std::num::NonZeroUsize;

use candle_core::Tensor;
use sd_config::SchedulerFile;

use crate::{
    Error, NoiseLevel, Overrides, Plan, Result, Scheduler, SchedulerConfig, Step,
    prediction::Predictor,
    registry::{Entry, SigmaSupport},
    run::{Call, Memory, Run, Solver},
    sigmas::SigmaGrid,
    tensor::combine,
    train::{DDPM_BETAS, TrainSchedule, ZeroSnr},
};

const NAME: &str = "unipc";

pub(super) const ENTRY: Entry = Entry {
    name: NAME,
    label: "UniPC",
    class: "UniPCMultistepScheduler",
    settings: &[],
    aliases: &["uni_pc", "uni_pc_bh2"],
    // One more than its solver_order, thanks to the corrector.
    order: 3,
    calls_per_step: 1,
    stochastic: false,
    sigmas: SigmaSupport::File,
    good_steps: (10, 30),
    configure,
};

fn configure(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    let invalid = |key, value: &str, expected| Err(Error::config(NAME, key, value, expected));
    let order = file.solver_order.unwrap_or(2);
    if !(1..=3).contains(&order) {
        return invalid("solver_order", &order.to_string(), "1, 2 or 3");
    }
    let bh1 = match file.solver_type.as_deref() {
        // The last three are other classes' types, which this class takes for its own default.
        None | Some("bh2" | "midpoint" | "heun" | "logrho") => false,
        Some("bh1") => true,
        Some(other) => return invalid("solver_type", other, "bh1 or bh2"),
    };
    let train = TrainSchedule::from_file(NAME, file, &DDPM_BETAS, ZeroSnr::Nearly)?;
    let grid = SigmaGrid::from_file(NAME, file, overrides, train)?
        .with_final_sigma(file)?
        .with_bounds(file)?;
    let of_noise = !file.predict_x0.unwrap_or(true);
    Ok(Box::new(UniPc {
        order,
        bh1,
        of_noise,
        lower_order_final: file.lower_order_final.unwrap_or(true),
        uncorrected: file.disable_corrector.clone().unwrap_or_default(),
        predictor: if of_noise {
            Predictor::unlimited(file)
        } else {
            Predictor::limited(NAME, file, None)?
        },
        grid: grid.with_rounded_karras().ending_on_curve(),
    }))
}

#[derive(Debug, Clone)]
struct UniPc {
    order: usize,
    /// Which of the two scalings of the correction, that differ in higher orders only.
    bh1: bool,
    /// Whether it integrates the noise instead of the clean sample.
    of_noise: bool,
    lower_order_final: bool,
    /// Steps whose result is not corrected.
    uncorrected: Vec<usize>,
    predictor: Predictor,
    grid: SigmaGrid,
}

impl SchedulerConfig for UniPc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let sigmas = self.grid.integer(steps.get())?;
        let ends_at_zero = sigmas.ends_at_zero();
        if self.of_noise && ends_at_zero {
            return Err(Error::config(
                NAME,
                "predict_x0",
                "false",
                "true, or final_sigmas_type sigma_min",
            ));
        }
        let solver = UniPcSteps {
            config: self.clone(),
            steps: steps.get(),
            ends_at_zero,
        };
        Run::boxed(NAME, Plan::new(sigmas.levels()), self.predictor, solver)
    }
}

#[derive(Debug)]
struct UniPcSteps {
    config: UniPc,
    steps: usize,
    ends_at_zero: bool,
}

impl Solver for UniPcSteps {
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step> {
        let denoised = call.denoised()?;
        // A weighted sum, not rounded before it is used: for a long step, that would show.
        let model: &[_] = match self.config.of_noise {
            true => &call.noise_besides(&denoised),
            false => &[(1.0, &denoised)],
        };
        let sample = match call.index.checked_sub(1) {
            Some(before) if call.age() > 0 && !self.config.uncorrected.contains(&before) => {
                self.correct(call, memory, model)?
            }
            _ => call.sample.clone(),
        };
        let newest = match self.config.of_noise {
            true => combine(model)?,
            false => denoised.clone(),
        };
        memory.push(newest, self.config.order);
        let predicted = self.predict(call, memory, &sample, model)?;
        memory.sample = Some(sample);
        Ok(Step {
            sample: predicted,
            denoised,
        })
    }

    fn history(&self) -> usize {
        self.config.order
    }
}

impl UniPcSteps {
    /// The order of the step from the call `index`, `age` calls after the run's first.
    fn order(&self, index: usize, age: usize) -> usize {
        let left = self.steps - index;
        let lowered = self.config.lower_order_final || (left == 1 && self.ends_at_zero);
        self.config
            .order
            .min(if lowered { left } else { self.config.order })
            .min(age + 1)
    }

    /// The sample at the next level, from the newest model results.
    fn predict(
        &self,
        call: &Call<'_>,
        memory: &Memory,
        sample: &Tensor,
        model: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let order = self.order(call.index, call.age());
        let step = self.interval(call.level(), call.next_level());
        if step.width == 0.0 {
            return Ok(sample.clone());
        }
        let times = self.times(call, call.index, order, step.width);
        let weights = match order {
            1 => vec![],
            // The solution of the system for order 1 ahead, simplified as in the paper.
            2 => vec![0.5],
            _ => step.weights(&times),
        };
        step.apply(sample, model, memory, &times, &weights, None)
    }

    /// The sample of this call made again, now that `model` says what is there.
    fn correct(
        &self,
        call: &Call<'_>,
        memory: &Memory,
        model: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let order = self.order(call.index - 1, call.age() - 1);
        let step = self.interval(call.level_at(call.index - 1), call.level());
        let mut times = self.times(call, call.index - 1, order, step.width);
        times.push(1.0);
        let weights = if order == 1 {
            vec![0.5]
        } else {
            step.weights(&times)
        };
        let (last, weights) = weights
            .split_last()
            .map_or((0.5, &[][..]), |(last, rest)| (*last, rest));
        step.apply(
            memory.sample()?,
            &[(1.0, memory.past(0)?)],
            memory,
            &times[..order - 1],
            weights,
            Some((last, model)),
        )
    }

    /// When the past results were, counted from the call `from` in widths of the step.
    fn times(&self, call: &Call<'_>, from: usize, order: usize, width: f64) -> Vec<f64> {
        let start = call.level_at(from).lambda();
        (1..order)
            .map(|back| (call.level_at(from - back).lambda() - start) / width)
            .collect()
    }

    fn interval(&self, start: &NoiseLevel, end: &NoiseLevel) -> Interval {
        let width = end.lambda() - start.lambda();
        let (signed, keep, gain) = match self.config.of_noise {
            true => (width, end.alpha / start.alpha, end.sigma),
            false => (-width, end.sigma / start.sigma, end.alpha),
        };
        let scale = if self.config.bh1 {
            signed
        } else {
            signed.exp_m1()
        };
        Interval {
            width,
            signed,
            keep,
            gain,
            scale,
        }
    }
}

/// A step between two levels.
struct Interval {
    width: f64,
    /// The width, with the sign it has in exponentials.
    signed: f64,
    keep: f64,
    gain: f64,
    /// B(h) of the paper.
    scale: f64,
}

impl Interval {
    /// The weights of the differences at these `times` that make the step exact for polynomials
    /// (Zhao 2023, theorem 3.1).
    fn weights(&self, times: &[f64]) -> Vec<f64> {
        let mut phi = self.signed.exp_m1() / self.signed - 1.0;
        let mut factorial = 1.0;
        let mut rows = Vec::with_capacity(times.len());
        for power in 0..times.len() {
            let mut row: Vec<_> = times.iter().map(|time| time.powi(power as i32)).collect();
            row.push(phi * factorial / self.scale);
            rows.push(row);
            factorial *= (power + 2) as f64;
            phi = phi / self.signed - 1.0 / factorial;
        }
        solve(rows)
    }

    /// `sample` moved to the end of the step: by the `newest` result, by its differences from the
    /// older ones in `memory` with these `weights`, and from the one `ahead`.
    fn apply(
        &self,
        sample: &Tensor,
        newest: &[(f64, &Tensor)],
        memory: &Memory,
        times: &[f64],
        weights: &[f64],
        ahead: Option<(f64, &[(f64, &Tensor)])>,
    ) -> Result<Tensor> {
        let mut of_newest = -self.gain * self.signed.exp_m1();
        let mut terms = vec![(self.keep, sample)];
        for (back, (time, weight)) in times.iter().zip(weights).enumerate() {
            let weight = -self.gain * self.scale * weight / time;
            terms.push((weight, memory.past(back + 1)?));
            of_newest -= weight;
        }
        if let Some((weight, model)) = ahead {
            let weight = -self.gain * self.scale * weight;
            terms.extend(
                model
                    .iter()
                    .map(|(share, tensor)| (weight * share, *tensor)),
            );
            of_newest -= weight;
        }
        terms.extend(
            newest
                .iter()
                .map(|(share, tensor)| (of_newest * share, *tensor)),
        );
        Ok(combine(&terms)?)
    }
}

/// Solves a small system of linear equations, each row with its right side last (Gauss, with
/// pivots).
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let size = rows.len();
    for column in 0..size {
        let pivot =
            (column..size).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        let pivot = rows[column].clone();
        for row in rows
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| *index != column)
            .map(|(_, row)| row)
        {
            let factor = row[column] / pivot[column];
            row.iter_mut()
                .zip(&pivot)
                .for_each(|(value, above)| *value -= factor * above);
        }
    }
    rows.iter()
        .enumerate()
        .map(|(index, row)| row[size] / row[index])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_solved_with_pivots() {
        let found = solve(vec![
            vec![0.0, 2.0, 1.0, 7.0],
            vec![1.0, 1.0, 1.0, 6.0],
            vec![4.0, -1.0, 0.5, 3.5],
        ]);
        for (found, expected) in found.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-12);
        }
    }
}
