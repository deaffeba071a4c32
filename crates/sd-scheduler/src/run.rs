//! What all solvers share: the order of calls, the memory, its saving and restoring.

use std::{collections::BTreeMap, fmt::Debug};

use candle_core::{DType, Tensor};

use crate::{
    Error, NoiseLevel, NoiseSource, Plan, Result, Scheduler, SchedulerState, Step,
    prediction::{Linear, Predictor},
    tensor::combine,
};

/// One algorithm. It holds its coefficients, which never change during a run; what does is in
/// [`Memory`].
pub(crate) trait Solver: Debug + Send {
    /// Moves the sample of `call` to the next level.
    fn step(&self, call: &mut Call<'_>, memory: &mut Memory) -> Result<Step>;

    /// Most tensors in [`Memory::history`] after a step.
    fn history(&self) -> usize {
        0
    }

    /// Refuses a first call where this solver cannot start. By default it can start anywhere.
    fn check_start(&self, _call: usize) -> Result<()> {
        Ok(())
    }
}

/// What a solver remembers between calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// Results of past calls, the newest last.
    pub(crate) history: Vec<Tensor>,
    /// The sample that a step of several calls started from.
    pub(crate) sample: Option<Tensor>,
}

impl Memory {
    /// Appends to the history and forgets all but the newest `keep`.
    pub(crate) fn push(&mut self, tensor: Tensor, keep: usize) {
        self.history.push(tensor);
        self.history
            .drain(..self.history.len().saturating_sub(keep));
    }

    /// The `back`-th newest entry of the history, 0 being the newest.
    ///
    /// # Errors
    /// When it is not there, which only a restored state that was cut short can cause.
    pub(crate) fn past(&self, back: usize) -> Result<&Tensor> {
        let index = self.history.len().checked_sub(back + 1);
        index
            .and_then(|index| self.history.get(index))
            .ok_or_else(|| Error::State {
                what: format!("{} tensors of history", self.history.len()),
                expected: format!("at least {}", back + 1),
            })
    }

    /// The sample kept from an earlier call.
    ///
    /// # Errors
    /// When it is not there, which only a restored state that was cut short can cause.
    pub(crate) fn sample(&self) -> Result<&Tensor> {
        self.sample.as_ref().ok_or_else(|| Error::State {
            what: "no sample".into(),
            expected: "one".into(),
        })
    }
}

/// One network call's result, and what a solver needs to know about it.
pub(crate) struct Call<'a> {
    /// Counted from the start of the plan.
    pub(crate) index: usize,
    /// The run's first call.
    pub(crate) start: usize,
    /// The network's input, f32.
    pub(crate) sample: &'a Tensor,
    /// The network's output, f32.
    pub(crate) output: &'a Tensor,
    plan: &'a Plan,
    predictor: &'a Predictor,
    noise: &'a mut dyn NoiseSource,
}

impl Call<'_> {
    /// The level of the sample.
    pub(crate) fn level(&self) -> &NoiseLevel {
        self.level_at(self.index)
    }

    /// The level that the plan has next.
    pub(crate) fn next_level(&self) -> &NoiseLevel {
        self.level_at(self.index + 1)
    }

    /// The level of any call of the plan.
    pub(crate) fn level_at(&self, call: usize) -> &NoiseLevel {
        &self.plan.levels()[call]
    }

    /// Whether the run ends after this call.
    pub(crate) fn is_last(&self) -> bool {
        self.index + 1 == self.plan.calls()
    }

    /// Calls of this run before this one.
    pub(crate) fn age(&self) -> usize {
        self.index - self.start
    }

    /// The clean sample that the output predicts.
    pub(crate) fn denoised(&self) -> Result<Tensor> {
        self.predictor
            .denoised(self.level(), self.sample, self.output)
    }

    /// The clean sample that the output predicts, now that the sample is this one, with more noise
    /// in it.
    pub(crate) fn denoised_after_churn(
        &self,
        higher: &NoiseLevel,
        sample: &Tensor,
    ) -> Result<Tensor> {
        self.predictor
            .denoised_after_churn(self.level(), higher, sample, self.output)
    }

    /// The clean sample and the noise that the output predicts, mixed anew by these weights, with
    /// `fresh` noise of its own weight: the step of all first-order solvers.
    pub(crate) fn mixed(
        &self,
        clean: f64,
        noise: f64,
        fresh: Option<(f64, &Tensor)>,
    ) -> Result<Step> {
        let denoised = self.denoised()?;
        let Linear { sample, output } = self.predicted_noise();
        let mut terms = vec![
            (clean, &denoised),
            (noise * sample, self.sample),
            (noise * output, self.output),
        ];
        terms.extend(fresh);
        Ok(Step {
            sample: combine(&terms)?,
            denoised,
        })
    }

    /// The noise that the output predicts, as weights of the sample and the output.
    pub(crate) fn predicted_noise(&self) -> Linear {
        self.predictor.noise(self.level())
    }

    /// The noise that is left when `denoised` is taken out of the sample, as a weighted sum; the
    /// network's own, unless a limit changed `denoised`.
    pub(crate) fn noise_besides<'a>(&'a self, denoised: &'a Tensor) -> [(f64, &'a Tensor); 2] {
        if self.predictor.is_limited() {
            let NoiseLevel { alpha, sigma, .. } = *self.level();
            return [(1.0 / sigma, self.sample), (-alpha / sigma, denoised)];
        }
        let Linear { sample, output } = self.predicted_noise();
        [(sample, self.sample), (output, self.output)]
    }

    /// Fresh noise.
    pub(crate) fn draw(&mut self) -> Result<Tensor> {
        Ok(self.noise.noise(self.sample)?)
    }
}

/// Refuses to start a run in the middle of a step of two calls.
pub(crate) fn check_start_of_pair(scheduler: &'static str, call: usize) -> Result<()> {
    match call % 2 {
        0 => Ok(()),
        _ => Err(Error::Start {
            scheduler,
            call,
            expected: "an even call, the first of a step",
        }),
    }
}

/// A solver at work on one generation.
#[derive(Debug)]
pub(crate) struct Run<S> {
    plan: Plan,
    predictor: Predictor,
    solver: S,
    start: usize,
    next: usize,
    memory: Memory,
}

impl<S: Solver + 'static> Run<S> {
    /// A run of `solver` along `plan` that has not begun.
    pub(crate) fn boxed(
        scheduler: &'static str,
        plan: Plan,
        predictor: Predictor,
        solver: S,
    ) -> Result<Box<dyn Scheduler>> {
        predictor.check(scheduler, plan.levels())?;
        Ok(Box::new(Self {
            plan,
            predictor,
            solver,
            start: 0,
            next: 0,
            memory: Memory::default(),
        }))
    }
}

const SAMPLE: &str = "sample";

/// Keys of the history in a saved state, oldest first; at most ten, so that they sort.
fn history_key(index: usize) -> String {
    format!("history.{index}")
}

impl<S: Solver> Scheduler for Run<S> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn step(
        &mut self,
        call: usize,
        model_output: &Tensor,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
    ) -> Result<Step> {
        let started = self.next > self.start;
        if call >= self.plan.calls() || (started && call != self.next) {
            return Err(Error::OutOfOrder {
                found: call,
                expected: self.next,
                calls: self.plan.calls(),
            });
        }
        if model_output.shape() != sample.shape() {
            return Err(Error::Shape {
                output: model_output.dims().to_vec(),
                sample: sample.dims().to_vec(),
            });
        }
        if !started {
            self.solver.check_start(call)?;
        }
        let start = if started { self.start } else { call };
        // A step that fails must change nothing; tensors are shared, not copied.
        let mut memory = self.memory.clone();
        let step = self.solver.step(
            &mut Call {
                index: call,
                start,
                sample: &sample.to_dtype(DType::F32)?,
                output: &model_output.to_dtype(DType::F32)?,
                plan: &self.plan,
                predictor: &self.predictor,
                noise,
            },
            &mut memory,
        )?;
        (self.start, self.next, self.memory) = (start, call + 1, memory);
        Ok(step)
    }

    fn state(&self) -> SchedulerState {
        let history = self.memory.history.iter().enumerate();
        let mut tensors: BTreeMap<_, _> = history
            .map(|(index, past)| (history_key(index), past.clone()))
            .collect();
        tensors.extend(
            self.memory
                .sample
                .clone()
                .map(|sample| (SAMPLE.to_string(), sample)),
        );
        SchedulerState {
            start: self.start,
            next: self.next,
            tensors,
        }
    }

    fn restore(&mut self, state: SchedulerState) -> Result<()> {
        let SchedulerState {
            start,
            next,
            mut tensors,
        } = state;
        let invalid = |what, expected| Err(Error::State { what, expected });
        if start > next || next > self.plan.calls() {
            let what = format!("calls {start} to {next}");
            return invalid(
                what,
                format!("calls in order, at most {}", self.plan.calls()),
            );
        }
        let sample = tensors.remove(SAMPLE);
        let history: Vec<_> = (0..self.solver.history())
            .map_while(|i| tensors.remove(&history_key(i)))
            .collect();
        if let Some(key) = tensors.keys().next() {
            let expected = format!("{} tensors of history and a sample", self.solver.history());
            return invalid(format!("tensor `{key}`"), expected);
        }
        // Solvers rely on this: each call remembers at most one result.
        if history.len() > next - start || (sample.is_some() && next == start) {
            let what = format!(
                "{} tensors of history after {} calls",
                history.len(),
                next - start
            );
            return invalid(what, "at most one a call".to_string());
        }
        self.solver.check_start(start)?;
        (self.start, self.next, self.memory) = (start, next, Memory { history, sample });
        Ok(())
    }
}
