//! Every scheduler of the registry through the public conformance suite.

use std::num::NonZeroUsize;

use candle_core::Tensor;
use sd_config::{PredictionType, SchedulerFile};
use sd_scheduler::{
    ALL, Error, NoiseLevel, NoiseSource, Overrides, Plan, Result, Scheduler, SchedulerConfig,
    SchedulerState, SigmaSchedule, SigmaSupport, Step, testing,
};

/// What Stable Diffusion's own file says.
fn file(prediction: &str) -> SchedulerFile {
    file_with(prediction, "")
}

/// The same with more keys.
fn file_with(prediction: &str, keys: &str) -> SchedulerFile {
    let json = format!(
        r#"{{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
            "steps_offset": 1, "skip_prk_steps": true, "set_alpha_to_one": false, "prediction_type": "{prediction}"{keys}}}"#
    );
    SchedulerFile::parse(&json).unwrap()
}

#[test]
fn all_schedulers_conform() {
    for (prediction, kind) in [
        ("epsilon", PredictionType::Epsilon),
        ("v_prediction", PredictionType::VPrediction),
    ] {
        // PNDM averages model outputs whatever they mean, and only noise stays the same along a
        // trajectory.
        let sound = |name| name != "pndm" || kind == PredictionType::Epsilon;
        for entry in ALL.iter().filter(|entry| sound(entry.name)) {
            let config =
                sd_scheduler::from_file_as(entry.name, &file(prediction), &Overrides::default())
                    .unwrap();
            assert_eq!(config.name(), entry.name);
            testing::conformance(config.as_ref(), kind)
                .unwrap_or_else(|failure| panic!("{prediction}: {failure}"));
        }
    }
}

/// Each of these remembers something else between calls than the defaults do.
#[test]
fn settings_that_are_not_the_default_conform() {
    let third = r#", "solver_order": 3"#;
    let mut eta = Overrides::default();
    eta.eta = Some(0.7);
    let plain = Overrides::default();
    for (name, keys, overrides) in [
        ("PNDMScheduler", r#", "skip_prk_steps": false"#, &plain),
        ("DPMSolverSinglestepScheduler", third, &plain),
        ("DEISMultistepScheduler", third, &plain),
        ("UniPCMultistepScheduler", third, &plain),
        ("ddim", "", &eta),
        ("tcd", "", &eta),
    ] {
        let file = file_with("epsilon", keys);
        let config = sd_scheduler::from_file_as(name, &file, overrides).unwrap();
        testing::conformance(config.as_ref(), PredictionType::Epsilon)
            .unwrap_or_else(|failure| panic!("{keys}: {failure}"));
    }
}

/// A scheduler of somebody else's: first-order steps for noise predictions, evenly spaced in the
/// signal, that can only start at the beginning.
#[derive(Debug)]
struct Straight {
    /// What is wrong with it.
    flaw: Flaw,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    None,
    /// Makes one step more than it was asked for.
    Steps,
    /// Goes where it would if the sample were clean.
    Landing,
    /// Begins again after it was restored.
    Restoring,
}

const STRAIGHT: &str = "straight";

impl SchedulerConfig for Straight {
    fn name(&self) -> &'static str {
        STRAIGHT
    }

    fn build(&self, steps: NonZeroUsize) -> Result<Box<dyn Scheduler>> {
        let steps = steps.get() + usize::from(self.flaw == Flaw::Steps);
        let levels = (0..=steps).map(|step| {
            let done = step as f64 / steps as f64;
            NoiseLevel::from_alphas_cumprod(999.0 * (1.0 - done), 0.005 + 0.995 * done)
        });
        Ok(Box::new(StraightRun {
            plan: Plan::new(levels.collect()),
            next: 0,
            flaw: self.flaw,
        }))
    }
}

#[derive(Debug)]
struct StraightRun {
    plan: Plan,
    next: usize,
    flaw: Flaw,
}

impl Scheduler for StraightRun {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn step(
        &mut self,
        call: usize,
        model_output: &Tensor,
        sample: &Tensor,
        _noise: &mut dyn NoiseSource,
    ) -> Result<Step> {
        let calls = self.plan.calls();
        if call >= calls || (self.next > 0 && call != self.next) {
            let (found, expected) = (call, self.next);
            return Err(Error::OutOfOrder {
                found,
                expected,
                calls,
            });
        }
        if call != self.next {
            return Err(Error::Start {
                scheduler: STRAIGHT,
                call,
                expected: "the first call",
            });
        }
        if model_output.dims() != sample.dims() {
            return Err(Error::Shape {
                output: model_output.dims().to_vec(),
                sample: sample.dims().to_vec(),
            });
        }
        let (level, next) = (self.plan.levels()[call], self.plan.levels()[call + 1]);
        let denoised = ((sample - (model_output * level.sigma)?)? / level.alpha)?;
        let noise = if self.flaw == Flaw::Landing {
            0.9
        } else {
            next.sigma
        };
        let sample = ((&denoised * next.alpha)? + (model_output * noise)?)?;
        self.next = call + 1;
        Ok(Step { sample, denoised })
    }

    fn state(&self) -> SchedulerState {
        SchedulerState {
            next: self.next,
            ..SchedulerState::default()
        }
    }

    fn restore(&mut self, state: SchedulerState) -> Result<()> {
        if state.next > self.plan.calls() || state.start > 0 || !state.tensors.is_empty() {
            return Err(Error::State {
                what: format!("{state:?}"),
                expected: "a call of this run and no tensors".into(),
            });
        }
        self.next = match self.flaw {
            Flaw::Restoring => 0,
            _ => state.next,
        };
        Ok(())
    }
}

#[test]
fn a_scheduler_from_elsewhere_conforms_unless_it_has_a_flaw() {
    let check = |flaw| testing::conformance(&Straight { flaw }, PredictionType::Epsilon);
    check(Flaw::None).unwrap();
    for (flaw, failure) in [
        (Flaw::Steps, "plans 2 steps"),
        (Flaw::Landing, "a perfect network ends"),
        (Flaw::Restoring, "expected the first call"),
    ] {
        let found = check(flaw).unwrap_err();
        assert!(found.contains(failure), "{flaw:?}: {found}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "shown when a test fails, or on demand")]
fn deterministic_schedulers_converge_with_their_order() {
    // Multistep solvers start with lower orders, which the last two show: their first step bounds
    // the whole run's.
    let expected = [
        ("ddim", 1),
        ("euler", 1),
        ("heun", 2),
        ("dpm2", 2),
        ("dpmpp_2m", 2),
        ("dpmpp_2s", 2),
        ("deis", 2),
        ("unipc", 3),
        ("lms", 4),
        ("dpmpp_3m", 2),
        ("pndm", 2),
    ];
    for entry in ALL.iter().filter(|entry| !entry.stochastic) {
        let (_, expected) = expected
            .iter()
            .find(|(name, _)| *name == entry.name)
            .unwrap();
        let mut overrides = Overrides::default();
        overrides.sigmas = (entry.sigmas == SigmaSupport::File).then_some(SigmaSchedule::Karras);
        let config = sd_scheduler::from_file_as(entry.name, &file("epsilon"), &overrides).unwrap();
        let steps = NonZeroUsize::new(if entry.name == "pndm" { 100 } else { 50 }).unwrap();
        let order =
            testing::convergence_order(config.as_ref(), PredictionType::Epsilon, steps).unwrap();
        println!("{}: {order:.2}", entry.name);
        assert!(
            (order - f64::from(*expected)).abs() < 0.25,
            "{}: order {order}, expected {expected}",
            entry.name
        );
    }
}
