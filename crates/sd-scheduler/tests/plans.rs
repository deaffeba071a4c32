//! Where runs start, how many calls their steps take, and what interrupts them.

use std::num::NonZeroUsize;

use candle_core::{DType, Device, Tensor};
use sd_config::SchedulerFile;
use sd_scheduler::{
    Churn, Error, NoiseSource, Overrides, Plan, RecordedNoise, Scheduler, SchedulerState,
    SeededNoise, from_file_as,
};

fn build(name: &str, keys: &str, steps: usize) -> Result<Box<dyn Scheduler>, Error> {
    let json = format!(
        r#"{{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"{keys}}}"#
    );
    let config = from_file_as(
        name,
        &SchedulerFile::parse(&json).unwrap(),
        &Overrides::default(),
    )?;
    config.build(NonZeroUsize::new(steps).unwrap())
}

fn zeros() -> Tensor {
    Tensor::zeros((2, 4, 2, 2), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn image_to_image_starts_where_diffusers_does() {
    // get_timesteps of the pipelines: int(steps * strength) in Python.
    for (steps, strength, start) in [
        (50, 0.58, 22),
        (10, 0.3, 7),
        (20, 0.8, 4),
        (7, 0.99, 1),
        (4, 1.0, 0),
        (4, 0.2, 4),
    ] {
        let scheduler = build("euler", "", steps).unwrap();
        assert_eq!(
            scheduler.plan().start_at(strength),
            start,
            "{steps} steps at {strength}"
        );
    }
    // Schedulers of order 2 have two entries in the list for every step.
    assert_eq!(build("heun", "", 10).unwrap().plan().start_at(0.3), 14);
    assert_eq!(build("heun", "", 10).unwrap().plan().start_at(0.0), 19);
}

#[test]
#[should_panic(expected = "at least one call")]
fn a_plan_without_levels_is_a_mistake() {
    let _ = Plan::new(Vec::new());
}

#[test]
fn steps_are_counted_in_calls() {
    let done = |name: &str, keys: &str, steps| {
        let scheduler = build(name, keys, steps).unwrap();
        (0..=scheduler.plan().calls())
            .map(|calls| scheduler.plan().steps_done(calls))
            .collect::<Vec<_>>()
    };
    assert_eq!(done("euler", "", 3), [0, 1, 2, 3]);
    assert_eq!(done("heun", "", 3), [0, 0, 1, 1, 2, 3]);
    assert_eq!(
        done("pndm", r#", "skip_prk_steps": true"#, 3),
        [0, 0, 1, 2, 3]
    );
    assert_eq!(
        done("pndm", "", 5),
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5]
    );
}

#[test]
fn runs_do_not_start_inside_a_step() {
    for (name, call) in [
        ("heun", 3),
        ("dpm2", 1),
        ("dpm2_a", 1),
        ("dpmpp_2s_a", 5),
        ("dpmpp_sde", 1),
        ("pndm", 1),
    ] {
        let mut scheduler = build(name, "", 6).unwrap();
        let error = scheduler
            .step(call, &zeros(), &zeros(), &mut SeededNoise::new(0))
            .unwrap_err();
        assert!(matches!(error, Error::Start { .. }), "{name}: {error}");
    }
}

#[test]
fn more_steps_than_there_are_timesteps_are_refused() {
    for name in ["ddim", "euler", "dpmpp_2m", "pndm"] {
        assert!(
            matches!(build(name, "", 1001), Err(Error::Steps { .. })),
            "{name}"
        );
    }
    assert!(matches!(build("lcm", "", 51), Err(Error::Steps { .. })));
    assert!(
        matches!(build("pndm", "", 3), Err(Error::Steps { .. })),
        "Runge-Kutta needs 4 steps"
    );
}

#[test]
fn a_step_that_fails_changes_nothing() {
    let mut scheduler = build("dpmpp_2m_sde", "", 4).unwrap();
    let sample = Tensor::ones((2, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
    scheduler
        .step(0, &sample, &sample, &mut SeededNoise::new(0))
        .unwrap();
    let before = scheduler.state();
    assert!(matches!(
        scheduler.step(1, &sample, &sample, &mut RecordedNoise::default()),
        Err(Error::Tensor(_))
    ));
    let after = scheduler.state();
    assert_eq!(
        (before.next, before.tensors.len()),
        (after.next, after.tensors.len())
    );
    scheduler
        .step(1, &sample, &sample, &mut SeededNoise::new(0))
        .unwrap();
}

/// Churn is not for the conformance suite: it adds noise that the network has not seen.
#[test]
fn a_run_with_churn_continues_from_its_state() {
    let mut overrides = Overrides::default();
    overrides.churn = Some(Churn {
        amount: 3.0,
        ..Churn::default()
    });
    let config = from_file_as("euler", &SchedulerFile::default(), &overrides).unwrap();
    let run = |restores: bool| {
        let steps = NonZeroUsize::new(6).unwrap();
        let mut noise = SeededNoise::new(3);
        let mut scheduler = config.build(steps).unwrap();
        let mut sample = noise.noise(&zeros()).unwrap();
        for call in 0..6 {
            if restores {
                let state = scheduler.state();
                scheduler = config.build(steps).unwrap();
                scheduler.restore(state).unwrap();
            }
            let output = sample.tanh().unwrap();
            let step = scheduler.step(call, &output, &sample, &mut noise);
            sample = step.unwrap().sample;
        }
        sample.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_state_without_its_tensors_is_an_error_at_the_next_step() {
    for name in ["heun", "lms", "pndm", "dpmpp_2s", "unipc", "dpmpp_sde"] {
        let keys = r#", "skip_prk_steps": true"#;
        let mut scheduler = build(name, keys, 5).unwrap();
        let next = if name == "dpmpp_2s" { 1 } else { 3 };
        scheduler
            .restore(SchedulerState {
                start: 0,
                next,
                ..Default::default()
            })
            .unwrap();
        match scheduler.step(next, &zeros(), &zeros(), &mut SeededNoise::new(0)) {
            // Multistep solvers can go on, with lower orders.
            Ok(_) => assert!(
                ["lms", "pndm", "dpmpp_2s"].contains(&name),
                "{name} goes on without its past"
            ),
            Err(error) => assert!(matches!(error, Error::State { .. }), "{name}: {error}"),
        }
    }
}

#[test]
fn a_state_with_more_of_a_past_than_it_had_calls_is_refused() {
    for name in ["lms", "pndm", "dpmpp_3m", "dpmpp_2s", "deis", "unipc"] {
        let mut scheduler = build(name, r#", "skip_prk_steps": true"#, 6).unwrap();
        for (start, next) in [(0, 0), (3, 4), (5, 5)] {
            let tensors = [("history.0", zeros()), ("history.1", zeros())];
            let tensors = tensors
                .map(|(key, tensor)| (key.to_string(), tensor))
                .into();
            let error = scheduler
                .restore(SchedulerState {
                    start,
                    next,
                    tensors,
                })
                .unwrap_err();
            assert!(matches!(error, Error::State { .. }), "{name}: {error}");
        }
    }
    let mut scheduler = build("heun", "", 6).unwrap();
    let state = SchedulerState {
        start: 3,
        next: 4,
        ..Default::default()
    };
    assert!(matches!(scheduler.restore(state), Err(Error::Start { .. })));
}

#[test]
fn each_sample_can_have_a_generator_of_its_own() {
    let (first, second) = (zeros().narrow(0, 0, 1).unwrap(), zeros());
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let both = SeededNoise::per_sample(&[5, 6]).noise(&second).unwrap();
    for (index, seed) in [5, 6].into_iter().enumerate() {
        let alone = SeededNoise::new(seed).noise(&first).unwrap();
        assert_eq!(values(&both.narrow(0, index, 1).unwrap()), values(&alone));
    }
    assert_ne!(
        values(&SeededNoise::new(5).noise(&second).unwrap()),
        values(&both)
    );
    assert!(SeededNoise::per_sample(&[5, 6, 7]).noise(&second).is_err());
    let none = zeros().narrow(0, 0, 0).unwrap();
    assert!(SeededNoise::per_sample(&[]).noise(&none).is_err());
}

#[test]
fn a_hand_over_leaves_no_call_out() {
    // Timesteps 751, 501, 251, 1.
    let euler = build(
        "euler",
        r#", "timestep_spacing": "leading", "steps_offset": 1"#,
        4,
    )
    .unwrap();
    for (share, call) in [
        (0.01, 0),
        (0.25, 1),
        (0.4, 1),
        (0.7, 2),
        (0.99, 3),
        (0.999, 4),
    ] {
        let plan = euler.plan();
        assert_eq!(plan.stops_at(share, 1000, 0), call, "{share}");
        assert_eq!(plan.resumes_at(share, 1000), call, "{share}");
    }
    assert_eq!(euler.plan().stops_at(0.4, 1000, 3), 3);
    // Twice each but the first: 751, 501, 501, 251, 251, 1, 1.
    let heun = build(
        "heun",
        r#", "timestep_spacing": "leading", "steps_offset": 1"#,
        4,
    )
    .unwrap();
    for (share, stops, resumes) in [(0.1, 0, 0), (0.4, 1, 0), (0.7, 3, 2), (0.9, 5, 4)] {
        let plan = heun.plan();
        assert_eq!(plan.stops_at(share, 1000, 0), stops, "{share}");
        assert_eq!(plan.resumes_at(share, 1000), resumes, "{share}");
    }
}

#[test]
fn noise_is_added_as_the_reference_does() {
    let ones = Tensor::ones((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
    let none = ones.zeros_like().unwrap();
    let value = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    for name in ["euler", "ddim", "heun", "dpm2", "dpm2_a", "dpmpp_sde"] {
        let scheduler = build(name, "", 5).unwrap();
        let plan = scheduler.plan();
        for call in 0..plan.calls() {
            let level = plan.levels()[call];
            assert_eq!(
                value(plan.noised(call, &ones, &none).unwrap()),
                level.alpha as f32
            );
            let noise = value(plan.noised(call, &none, &ones).unwrap());
            // Half-way through a step of two calls: the noise at its end, at the sample's own scale.
            let halfway = name != "euler" && name != "ddim" && call % 2 == 1;
            let sigma = match halfway {
                true => level.alpha * plan.levels()[call + 1].karras_sigma(),
                false => level.sigma,
            };
            assert_eq!(noise, sigma as f32, "{name}, call {call}");
        }
    }
    let other = Tensor::ones((1, 1, 1, 3), DType::F32, &Device::Cpu).unwrap();
    let scheduler = build("euler", "", 5).unwrap();
    assert!(scheduler.plan().noised(0, &ones, &other).is_err());
}

#[test]
fn distilled_steps_are_spread_over_the_share_that_strength_leaves() {
    let timesteps = |name: &str, strength, steps| {
        let mut overrides = Overrides::default();
        overrides.strength = Some(strength);
        let config = from_file_as(name, &SchedulerFile::parse("{}").unwrap(), &overrides)?;
        let scheduler = config.build(NonZeroUsize::new(steps).unwrap())?;
        let calls = &scheduler.plan().levels()[..scheduler.plan().calls()];
        Ok(calls.iter().map(|call| call.timestep).collect::<Vec<_>>())
    };
    for name in ["lcm", "tcd"] {
        assert_eq!(
            timesteps(name, 1.0, 4).unwrap(),
            [999.0, 759.0, 499.0, 259.0]
        );
        assert_eq!(
            timesteps(name, 0.5, 4).unwrap(),
            [499.0, 379.0, 259.0, 139.0]
        );
        for (strength, steps, reason) in [
            (0.5, 26, "at most 25, by strength, of 50"),
            (0.01, 1, "at most 0, by strength, of 50"),
            (1.0, 51, "at most the 50 original_inference_steps"),
            (1.5, 4, "strength"),
            (f64::NAN, 4, "strength"),
        ] {
            let error: Error = timesteps(name, strength, steps).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
