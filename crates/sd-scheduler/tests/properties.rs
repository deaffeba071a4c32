//! Any configuration and number of steps gives finite samples or a typed error, never a panic.

use std::num::NonZeroUsize;

use candle_core::{Device, Tensor};
use proptest::{prelude::*, sample::select, test_runner::RngSeed};
use sd_config::SchedulerFile;
use sd_scheduler::{ALL, Overrides, SeededNoise, SigmaSchedule, Trajectory, from_file_as};
use serde_json::{Map, Value, json};

/// An optional key of scheduler_config.json.
fn key(
    name: &'static str,
    values: Vec<Value>,
) -> impl Strategy<Value = Option<(&'static str, Value)>> {
    prop::option::of(select(values).prop_map(move |value| (name, value)))
}

fn file() -> impl Strategy<Value = SchedulerFile> {
    let numbers = || {
        vec![
            json!(1e-9),
            json!(0.00085),
            json!(0.012),
            json!(0.5),
            json!(0.999),
            json!(1e30),
        ]
    };
    let flags = || vec![json!(true), json!(false)];
    let keys = (
        (
            key("beta_start", numbers()),
            key("beta_end", numbers()),
            key(
                "beta_schedule",
                vec![
                    json!("linear"),
                    json!("scaled_linear"),
                    json!("squaredcos_cap_v2"),
                ],
            ),
            key(
                "prediction_type",
                vec![json!("epsilon"), json!("v_prediction"), json!("sample")],
            ),
            key(
                "timestep_spacing",
                vec![json!("leading"), json!("trailing"), json!("linspace")],
            ),
            key(
                "steps_offset",
                vec![json!(0), json!(1), json!(400), json!(100_000)],
            ),
            key(
                "num_train_timesteps",
                vec![json!(1), json!(2), json!(13), json!(1000)],
            ),
            key("use_lu_lambdas", flags()),
            key("final_sigmas_type", vec![json!("zero"), json!("sigma_min")]),
            key(
                "solver_order",
                vec![json!(0), json!(1), json!(2), json!(3), json!(4)],
            ),
            key(
                "solver_type",
                vec![json!("midpoint"), json!("heun"), json!("bh1"), json!("bh2")],
            ),
        ),
        (
            key(
                "algorithm_type",
                vec![
                    json!("dpmsolver++"),
                    json!("sde-dpmsolver++"),
                    json!("deis"),
                ],
            ),
            key("rescale_betas_zero_snr", flags()),
            key("set_alpha_to_one", flags()),
            key("skip_prk_steps", flags()),
            key("lower_order_final", flags()),
            key("thresholding", flags()),
            key("predict_x0", flags()),
            key(
                "original_inference_steps",
                vec![json!(1), json!(7), json!(50), json!(2000)],
            ),
            key("sigma_min", numbers()),
            key("sigma_max", numbers()),
            key(
                "interpolation_type",
                vec![json!("linear"), json!("log_linear")],
            ),
            key(
                "timestep_type",
                vec![json!("discrete"), json!("continuous")],
            ),
        ),
    );
    keys.prop_filter_map(
        "files that do not parse are not for schedulers",
        |(a, b)| {
            let keys = [
                a.0, a.1, a.2, a.3, a.4, a.5, a.6, a.7, a.8, a.9, a.10, b.0, b.1, b.2, b.3, b.4,
                b.5, b.6, b.7, b.8, b.9, b.10, b.11,
            ];
            let map: Map<_, _> = keys
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_string(), value))
                .collect();
            SchedulerFile::parse(&Value::Object(map).to_string()).ok()
        },
    )
}

/// Mostly falling numbers, as they should be.
fn trajectory() -> impl Strategy<Value = Trajectory> {
    let value = prop_oneof![
        Just(0.0),
        0.01..20.0,
        0.0..1200.0,
        Just(f64::NAN),
        Just(1e30)
    ];
    let values = prop::collection::vec(value, 0..8).prop_map(|mut values| {
        values.sort_by(|a: &f64, b| b.total_cmp(a));
        values
    });
    (values, any::<bool>()).prop_map(|(values, timesteps)| match timesteps {
        true => Trajectory::Timesteps(values),
        false => Trajectory::Sigmas(values),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn runs_are_finite_or_refused(
        file in file(),
        scheduler in 0..ALL.len(),
        sigmas in prop::option::of(select(SigmaSchedule::ALL.to_vec())),
        eta in prop::option::of(select(vec![0.0, 0.4, 1.0, -1.0, f64::NAN])),
        trajectory in prop::option::weighted(0.2, trajectory()),
        steps in prop_oneof![1..=30_usize, 1..=1000_usize],
        strength in prop::option::of(0.0..1.0),
    ) {
        let mut overrides = Overrides::default();
        (overrides.sigmas, overrides.eta) = (sigmas, eta);
        let steps = match &trajectory {
            Some(Trajectory::Timesteps(values)) => values.len().max(1),
            Some(Trajectory::Sigmas(values)) => values.len().max(2) - 1,
            None => steps,
        };
        overrides.trajectory = trajectory;
        let name = ALL[scheduler].name;
        let Ok(config) = from_file_as(name, &file, &overrides) else { return Ok(()) };
        let Ok(mut scheduler) = config.build(NonZeroUsize::new(steps).unwrap()) else { return Ok(()) };
        let plan = scheduler.plan().clone();
        prop_assert_eq!(plan.steps(), steps);
        prop_assert!(plan.init_noise_std().is_finite());
        for (call, level) in plan.levels().iter().enumerate() {
            let finite = level.timestep.is_finite() && level.alpha.is_finite() && level.sigma.is_finite();
            prop_assert!(finite, "{}: level {} is {:?}", name, call, level);
        }
        let mut noise = SeededNoise::new(0);
        let mut sample = Tensor::new(&[[1f32, -0.5], [0.25, 0.1]], &Device::Cpu).unwrap();
        for call in plan.start_at(strength.unwrap_or(1.0))..plan.calls() {
            // As a good network would, sees the sample where its level says it is.
            let clean = (&sample * plan.levels()[call].alpha).unwrap();
            let output = match file.prediction_type {
                Some(sd_config::PredictionType::Sample) => clean,
                _ => (&sample * 0.5).unwrap(),
            };
            match scheduler.step(call, &output, &sample, &mut noise) {
                Ok(step) => sample = step.sample,
                Err(sd_scheduler::Error::Start { .. }) => return Ok(()),
                Err(error) => prop_assert!(false, "{}: {}", name, error),
            }
            let largest = sample.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            prop_assert!(largest.is_finite(), "{}: {} after call {} of {:?}", name, largest, call, file);
        }
    }
}
