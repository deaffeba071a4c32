//! Every scheduler of the registry through the public conformance suite.

use std::num::NonZeroUsize;

use sd_config::{PredictionType, SchedulerFile};
use sd_scheduler::{ALL, Overrides, SigmaSchedule, SigmaSupport, testing};

/// What Stable Diffusion's own file says.
fn file(prediction: &str) -> SchedulerFile {
    let json = format!(
        r#"{{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
            "steps_offset": 1, "skip_prk_steps": true, "set_alpha_to_one": false, "prediction_type": "{prediction}"}}"#
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
