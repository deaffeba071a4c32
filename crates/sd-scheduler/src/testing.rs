//! What any scheduler must do, as functions that say what one does not: for this crate's own, and
//! for yours.

use std::num::NonZeroUsize;

use candle_core::{Device, Tensor};
use sd_config::PredictionType;

use crate::{
    Error, NoiseLevel, NoiseSource, Scheduler, SchedulerConfig, SeededNoise, tensor::combine,
};

/// A property that a scheduler lacks, in words.
pub type Failure = String;

/// Numbers of steps that are tried.
const STEPS: [usize; 9] = [1, 2, 3, 4, 5, 7, 10, 20, 50];
/// Relative error that f32 may leave after a whole run.
const ROUNDING: f64 = 1e-5;

/// Checks everything that holds for any scheduler whatever its order:
///
/// - asked for N steps it plans N steps, or refuses with [`Error::Steps`];
/// - levels are finite and never get noisier, and every call moves the sample;
/// - with a network that knows the clean sample, a run ends on it;
/// - the same seed gives the same end, also when the run is saved and restored between any two
///   calls;
/// - calls out of order, outputs of another shape and states of another scheduler are refused, and
///   change nothing.
///
/// A run may refuse with [`Error::Start`] to start anywhere but at its first call.
///
/// `prediction` is what `config` takes for the meaning of model outputs. Schedulers that end before
/// the noise is gone must end where the probability flow does.
///
/// # Errors
/// What does not hold.
pub fn conformance(
    config: &dyn SchedulerConfig,
    prediction: PredictionType,
) -> Result<(), Failure> {
    let mut built = 0;
    for steps in STEPS.into_iter().filter_map(NonZeroUsize::new) {
        let scheduler = match config.build(steps) {
            Ok(scheduler) => scheduler,
            Err(Error::Steps { .. }) => continue,
            Err(error) => return Err(format!("{}, {steps} steps: {error}", config.name())),
        };
        built += 1;
        let case = Case {
            config,
            steps,
            prediction,
            restores: false,
        };
        plans(scheduler.as_ref(), steps.get())
            .and_then(|()| case.lands())
            .and_then(|()| case.repeats())
            .and_then(|()| case.refuses())
            .map_err(|failure| format!("{}, {steps} steps: {failure}", config.name()))?;
    }
    check(built > 0, || {
        format!("{}: refuses every number of steps", config.name())
    })
}

/// The order of convergence of a deterministic scheduler between `steps` and twice as many steps,
/// by [`gaussian_error`].
///
/// # Errors
/// When a run fails, or one is so exact that there is no order to see.
pub fn convergence_order(
    config: &dyn SchedulerConfig,
    prediction: PredictionType,
    steps: NonZeroUsize,
) -> Result<f64, Failure> {
    let coarse = gaussian_error(config, prediction, steps)?;
    let fine = gaussian_error(config, prediction, steps.saturating_mul(TWO))?;
    check(fine > 10.0 * f64::from(f32::EPSILON), || {
        format!("errors {coarse:.1e} and {fine:.1e} are rounding")
    })?;
    Ok((coarse / fine).log2())
}

/// How far a deterministic run ends from where it should, relative to that, when the data are
/// normal with deviation 0.5, so that the best network and the exact flow are known. The last step,
/// which many schedulers make to the clean sample with order 1, does not count.
///
/// # Errors
/// When the run fails.
pub fn gaussian_error(
    config: &dyn SchedulerConfig,
    prediction: PredictionType,
    steps: NonZeroUsize,
) -> Result<f64, Failure> {
    let variance = 0.25;
    let total = |level: &NoiseLevel| level.alpha.powi(2) * variance + level.sigma.powi(2);
    let network = |level: &NoiseLevel, sample: &Tensor| {
        combine(&[(level.alpha * variance / total(level), sample)])
    };
    let case = Case {
        config,
        steps,
        prediction,
        restores: false,
    };
    let samples = case.run(0, ramp()?, &network)?;
    let scheduler = case.build()?;
    let levels = scheduler.plan().levels();
    let last = levels.len() - 2;
    let scale = (total(&levels[last]) / total(&levels[0])).sqrt();
    distance(
        &samples[last],
        &combine(&[(scale, &samples[0])]).map_err(text)?,
    )
}

const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

fn check(holds: bool, failure: impl FnOnce() -> Failure) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(failure()) }
}

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// Two samples with every value different, between -1.5 and 1.5.
fn ramp() -> Result<Tensor, Failure> {
    let values = (0..2 * 4 * 3 * 2)
        .map(|i| (i * 29 % 48) as f32 / 16.0 - 1.5)
        .collect();
    Tensor::from_vec(values, (2, 4, 3, 2), &Device::Cpu).map_err(text)
}

/// Largest difference, over the largest value of `expected`.
fn distance(found: &Tensor, expected: &Tensor) -> Result<f64, Failure> {
    let max = |tensor: &Tensor| -> candle_core::Result<f32> {
        tensor.abs()?.flatten_all()?.max(0)?.to_scalar()
    };
    let difference = (found - expected)
        .and_then(|difference| max(&difference))
        .map_err(text)?;
    Ok(f64::from(difference) / f64::from(max(expected).map_err(text)?))
}

fn plans(scheduler: &dyn Scheduler, steps: usize) -> Result<(), Failure> {
    let plan = scheduler.plan();
    check(plan.steps() == steps, || {
        format!("plans {} steps", plan.steps())
    })?;
    let done: Vec<_> = (0..=plan.calls())
        .map(|calls| plan.steps_done(calls))
        .collect();
    check(done[0] == 0 && done[plan.calls()] == steps, || {
        format!("steps done go {done:?}")
    })?;
    check(
        done.windows(2)
            .all(|pair| pair[1] <= pair[0] + 1 && pair[0] <= pair[1]),
        || format!("steps done go {done:?}"),
    )?;
    for (call, level) in plan.levels().iter().enumerate() {
        let NoiseLevel {
            timestep,
            alpha,
            sigma,
        } = *level;
        let valid =
            timestep.is_finite() && (0.0..=1.0).contains(&alpha) && (0.0..=1.0).contains(&sigma);
        check(valid && (alpha.hypot(sigma) - 1.0).abs() < 1e-6, || {
            format!("level {call} is {level:?}")
        })?;
    }
    // Within a step, a solver may look further down than the step goes.
    let starts = done
        .windows(2)
        .zip(plan.levels())
        .filter(|(pair, _)| pair[1] > pair[0]);
    let starts = starts
        .map(|(_, level)| level.sigma)
        .chain([plan.levels()[plan.calls()].sigma]);
    check(starts.is_sorted_by(|a, b| a >= b), || {
        "a level is noisier than the one before".into()
    })?;
    check(
        plan.start_at(1.0) == 0 && plan.start_at(0.0) == plan.calls(),
        || "strengths 1 and 0 are not all and none".into(),
    )
}

/// What a network takes for the clean sample.
type Network<'a> = &'a dyn Fn(&NoiseLevel, &Tensor) -> candle_core::Result<Tensor>;

/// Noise that counts its draws.
struct Counted {
    source: SeededNoise,
    draws: usize,
}

impl NoiseSource for Counted {
    fn noise(&mut self, like: &Tensor) -> candle_core::Result<Tensor> {
        self.draws += 1;
        self.source.noise(like)
    }
}

struct Case<'a> {
    config: &'a dyn SchedulerConfig,
    steps: NonZeroUsize,
    prediction: PredictionType,
    /// Whether to continue with a new scheduler at each call, restored from the state of the one
    /// before.
    restores: bool,
}

impl Case<'_> {
    fn build(&self) -> Result<Box<dyn Scheduler>, Failure> {
        self.config.build(self.steps).map_err(text)
    }

    /// The model output that says that `clean` is the clean sample.
    fn output(
        &self,
        level: &NoiseLevel,
        sample: &Tensor,
        clean: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let NoiseLevel { alpha, sigma, .. } = *level;
        match self.prediction {
            PredictionType::Epsilon => combine(&[(1.0 / sigma, sample), (-alpha / sigma, clean)]),
            PredictionType::VPrediction => {
                combine(&[(alpha / sigma, sample), (-1.0 / sigma, clean)])
            }
            PredictionType::Sample => Ok(clean.clone()),
        }
    }

    /// The samples before each call of a run from the call `start`, and its end.
    fn run(
        &self,
        start: usize,
        sample: Tensor,
        network: Network<'_>,
    ) -> Result<Vec<Tensor>, Failure> {
        self.run_with(&mut SeededNoise::new(1), start, sample, network)
    }

    fn run_with(
        &self,
        noise: &mut dyn NoiseSource,
        start: usize,
        sample: Tensor,
        network: Network<'_>,
    ) -> Result<Vec<Tensor>, Failure> {
        let mut scheduler = self.build()?;
        let mut samples = vec![sample];
        for call in start..scheduler.plan().calls() {
            if self.restores {
                let state = scheduler.state();
                check(call == start || state.next == call, || {
                    format!("the state before call {call} says {}", state.next)
                })?;
                scheduler = self.build()?;
                scheduler.restore(state).map_err(text)?;
            }
            let (level, sample) = (scheduler.plan().levels()[call], &samples[samples.len() - 1]);
            let clean = network(&level, sample).map_err(text)?;
            let output = self.output(&level, sample, &clean).map_err(text)?;
            let step = scheduler.step(call, &output, sample, noise).map_err(text)?;
            let error = distance(&step.denoised, &clean)?;
            check(error < 1e-3, || {
                format!("call {call} reports a denoised sample {error:.1e} off")
            })?;
            samples.push(step.sample);
        }
        Ok(samples)
    }

    /// Whether a run may start at this call, or is refused with [`Error::Start`].
    fn starts_at(&self, call: usize, sample: &Tensor) -> Result<bool, Failure> {
        let step = self
            .build()?
            .step(call, sample, sample, &mut SeededNoise::new(1));
        match step {
            Ok(_) => Ok(true),
            Err(Error::Start { .. }) => Ok(false),
            Err(error) => Err(text(error)),
        }
    }

    /// With a network that knows the clean sample. Runs that start in the middle only have to end:
    /// some schedulers of the reference do so in the wrong place, and ours with them.
    fn lands(&self) -> Result<(), Failure> {
        let scheduler = self.build()?;
        let plan = scheduler.plan();
        let (clean, noise) = (ramp()?, ramp()?.flip(&[1, 2]).map_err(text)?);
        let start = |call: usize| plan.levels()[call].noised(&clean, &noise).map_err(text);
        for strength in [0.75, 0.5, 0.2] {
            let call = plan.start_at(strength);
            if call < plan.calls() && self.starts_at(call, &clean)? {
                self.run(call, start(call)?, &|_, _| Ok(clean.clone()))?;
            }
        }
        let mut fresh = Counted {
            source: SeededNoise::new(1),
            draws: 0,
        };
        let samples = self.run_with(&mut fresh, 0, start(0)?, &|_, _| Ok(clean.clone()))?;
        let end = plan.levels()[plan.calls()];
        let error = distance(&samples[plan.calls()], &start(plan.calls())?)?;
        // What fresh noise is left at the end is not known, but it is not more than that.
        let unknown = if fresh.draws > 0 {
            6.0 * end.sigma
        } else {
            0.0
        };
        check(error <= ROUNDING + unknown, || {
            format!("a perfect network ends {error:.1e} off")
        })
    }

    /// With a network that is not perfect, so that every digit of the past matters.
    fn repeats(&self) -> Result<(), Failure> {
        let network =
            |level: &NoiseLevel, sample: &Tensor| combine(&[(level.alpha, sample)])?.tanh();
        let straight = self.run(0, ramp()?, &network)?;
        for (call, pair) in straight.windows(2).enumerate() {
            let moved = distance(&pair[1], &pair[0])?;
            check(moved > 0.0 && moved.is_finite(), || {
                format!("call {call} does not move the sample")
            })?;
        }
        let again = self.run(0, ramp()?, &network)?;
        let restored = Case {
            restores: true,
            ..*self
        }
        .run(0, ramp()?, &network)?;
        for (call, straight) in straight.iter().enumerate() {
            check(distance(&again[call], straight)? == 0.0, || {
                format!("the same seed differs after {call} calls")
            })?;
            check(distance(&restored[call], straight)? == 0.0, || {
                format!("a run that is saved and restored differs after {call} calls")
            })?;
        }
        Ok(())
    }

    fn refuses(&self) -> Result<(), Failure> {
        let mut scheduler = self.build()?;
        let mut noise = SeededNoise::new(1);
        let sample = ramp()?;
        let calls = scheduler.plan().calls();
        let refused = scheduler.step(calls, &sample, &sample, &mut noise);
        check(matches!(refused, Err(Error::OutOfOrder { .. })), || {
            "a call after the last is not refused".into()
        })?;
        let narrow = sample.narrow(0, 0, 1).map_err(text)?;
        let refused = scheduler.step(0, &narrow, &sample, &mut noise);
        check(matches!(refused, Err(Error::Shape { .. })), || {
            "an output of another shape is not refused".into()
        })?;
        scheduler
            .step(0, &sample, &sample, &mut noise)
            .map_err(text)?;
        let refused = scheduler.step(0, &sample, &sample, &mut noise);
        check(matches!(refused, Err(Error::OutOfOrder { .. })), || {
            "a call twice is not refused".into()
        })?;

        let mut state = scheduler.state();
        state.next = calls + 1;
        check(self.build()?.restore(state).is_err(), || {
            "a state beyond the end is not refused".into()
        })?;
        let mut state = scheduler.state();
        state.tensors.insert("stranger".into(), sample);
        check(self.build()?.restore(state).is_err(), || {
            "a stranger's state is not refused".into()
        })
    }
}
