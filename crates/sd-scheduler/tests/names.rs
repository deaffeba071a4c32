//! The names that people know schedulers by.

use sd_config::SchedulerFile;
use sd_scheduler::{
    ALL, Error, Overrides, SigmaSchedule, Trajectory, canonical_name, entry, from_file,
    from_file_as, label,
};

fn file(json: &str) -> SchedulerFile {
    SchedulerFile::parse(json).unwrap()
}

#[test]
fn every_name_finds_its_scheduler() {
    for scheduler in ALL {
        for name in [scheduler.name, scheduler.label]
            .iter()
            .chain(scheduler.aliases)
        {
            assert_eq!(entry(name).unwrap().name, scheduler.name, "{name}");
            assert_eq!(
                entry(&name.to_uppercase()).unwrap().name,
                scheduler.name,
                "{name}"
            );
        }
        if !scheduler.class.is_empty() {
            assert_eq!(entry(scheduler.class).unwrap().class, scheduler.class);
        }
    }
}

#[test]
fn no_two_schedulers_share_a_name() {
    let mut seen = std::collections::BTreeSet::new();
    for scheduler in ALL {
        let names = [scheduler.name, scheduler.label]
            .into_iter()
            .chain(scheduler.aliases.iter().copied());
        // One scheduler's own names may differ in case alone.
        let names: std::collections::BTreeSet<_> = names.map(str::to_lowercase).collect();
        for name in names {
            assert!(
                seen.insert(name.clone()),
                "{name}, of {}, is another's too",
                scheduler.name
            );
        }
    }
}

#[test]
fn the_four_families_of_names_meet() {
    for (name, expected) in [
        ("euler_a", "euler_a"),
        ("Euler a", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("FlaxDDIMScheduler", "ddim"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("DPM++ 2M Karras", "dpmpp_2m"),
        ("DPM2 a Karras", "dpm2_a"),
        ("uni_pc", "unipc"),
    ] {
        assert_eq!(entry(name).unwrap().name, expected, "{name}");
    }
    for name in ["", "nonsense", "Karras", "_karras", "euler_nonsense", "é"] {
        assert!(matches!(entry(name), Err(Error::Unknown { .. })), "{name}");
    }
}

#[test]
fn a_class_with_flags_is_the_scheduler_that_the_flags_make() {
    let json = |flags: &str| format!(r#"{{"_class_name": "DPMSolverMultistepScheduler"{flags}}}"#);
    for (flags, expected) in [
        ("", "dpmpp_2m"),
        (r#", "algorithm_type": "sde-dpmsolver++""#, "dpmpp_2m_sde"),
        (
            r#", "algorithm_type": "sde-dpmsolver++", "solver_order": 3"#,
            "dpmpp_3m_sde",
        ),
    ] {
        let file = file(&json(flags));
        assert_eq!(
            from_file(&file, &Overrides::default()).unwrap().name(),
            expected,
            "{flags}"
        );
        // A short name says what the flags are; the name of the class leaves them as they are.
        assert_eq!(
            from_file_as("dpmpp_2m", &file, &Overrides::default())
                .unwrap()
                .name(),
            "dpmpp_2m"
        );
        let class = "DPMSolverMultistepScheduler";
        assert_eq!(
            from_file_as(class, &file, &Overrides::default())
                .unwrap()
                .name(),
            expected
        );
    }
}

#[test]
fn canonical_names_mean_the_same() {
    let file = file(r#"{"algorithm_type": "sde-dpmsolver++", "solver_order": 3}"#);
    let meaning = |name: &str| format!("{:?}", from_file_as(name, &file, &Overrides::default()));
    for (name, canonical) in [
        ("PNDMScheduler", "pndm"),
        ("Euler a", "euler_a"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        (
            "FlaxDPMSolverMultistepScheduler",
            "DPMSolverMultistepScheduler",
        ),
        (
            "dpmsolvermultistepscheduler Karras",
            "DPMSolverMultistepScheduler_karras",
        ),
        ("k_dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("Euler SGM Uniform", "euler_sgm_uniform"),
    ] {
        assert_eq!(canonical_name(name).unwrap(), canonical);
        assert_eq!(meaning(name), meaning(canonical), "{name}");
        assert_eq!(canonical_name(canonical).unwrap(), canonical);
    }
    assert!(canonical_name("nonsense").is_err());
}

#[test]
fn a_sigma_schedule_in_the_name_is_that_of_the_flag() {
    let plain = r#""_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear""#;
    let flagged = file(&format!(r#"{{{plain}, "use_karras_sigmas": true}}"#));
    let plain = file(&format!("{{{plain}}}"));
    let steps = std::num::NonZeroUsize::new(8).unwrap();
    let plan = |name: &str, file, overrides: &Overrides| {
        from_file_as(name, file, overrides)
            .unwrap()
            .build(steps)
            .unwrap()
            .plan()
            .clone()
    };
    let mut karras = Overrides::default();
    karras.sigmas = Some(SigmaSchedule::Karras);
    for name in ["euler", "dpmpp_2m", "Heun", "dpmpp_2s", "unipc"] {
        let expected = plan(name, &flagged, &Overrides::default());
        assert_eq!(
            plan(&format!("{name}_karras"), &plain, &Overrides::default()),
            expected,
            "{name}"
        );
        assert_eq!(
            plan(&format!("{name} Karras"), &plain, &Overrides::default()),
            expected,
            "{name}"
        );
        assert_eq!(plan(name, &plain, &karras), expected, "{name}");
        assert_ne!(
            plan(name, &plain, &Overrides::default()),
            expected,
            "{name}"
        );
    }
    for schedule in SigmaSchedule::ALL {
        assert_eq!(schedule.name().parse::<SigmaSchedule>().unwrap(), schedule);
    }
}

#[test]
fn curves_that_diffusers_lacks_are_those_of_their_programs() {
    let file = file(
        r#"{"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}"#,
    );
    let steps = std::num::NonZeroUsize::new(10).unwrap();
    let levels = |name: &str| {
        let config = from_file_as(name, &file, &Overrides::default()).unwrap();
        config.build(steps).unwrap().plan().levels().to_vec()
    };
    let timesteps = |name: &str| {
        levels(name)[..10]
            .iter()
            .map(|level| level.timestep)
            .collect::<Vec<_>>()
    };
    // ComfyUI's simple_scheduler takes every hundredth sigma from the top.
    for (step, timestep) in timesteps("euler_simple").iter().enumerate() {
        assert!(
            (timestep - (999.0 - 100.0 * step as f64)).abs() < 0.01,
            "{step}: {timestep}"
        );
    }
    // ComfyUI's normal_scheduler with sgm: linspace(999, 0, 11) without the last.
    for (step, timestep) in timesteps("Euler SGM Uniform").iter().enumerate() {
        assert!(
            (timestep - 99.9 * (10 - step) as f64).abs() < 0.01,
            "{step}: {timestep}"
        );
    }
    // diffusers' AysSchedules.
    for (name, expected) in [
        (
            "euler_ays",
            [
                14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0,
            ],
        ),
        (
            "euler_ays_xl",
            [
                14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0,
            ],
        ),
    ] {
        for (level, expected) in levels(name).iter().zip(expected) {
            assert!(
                (level.karras_sigma() - expected).abs() < 1e-6 * 15.0,
                "{name}: {level:?}, expected {expected}"
            );
        }
    }
}

#[test]
fn what_a_scheduler_cannot_do_is_refused() {
    let file = file(r#"{"_class_name": "DDIMScheduler"}"#);
    let error = from_file_as("ddim_karras", &file, &Overrides::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ddim: `sigmas` is karras, expected default: this scheduler stays on the timesteps of training"
    );
    let mut overrides = Overrides::default();
    overrides.eta = Some(1.5);
    let error = from_file(&file, &overrides).unwrap_err();
    assert_eq!(error.to_string(), "ddim: `eta` is 1.5, expected 0 to 1");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (class, key, value) in [
        ("DDPMScheduler", "variance_type", r#""learned""#),
        ("DDPMScheduler", "variance_type", r#""fixed_large_log""#),
        (
            "DPMSolverMultistepScheduler",
            "variance_type",
            r#""learned_range""#,
        ),
        (
            "DPMSolverMultistepScheduler",
            "algorithm_type",
            r#""dpmsolver""#,
        ),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", "-5.1"),
        (
            "DPMSolverSinglestepScheduler",
            "variance_type",
            r#""learned""#,
        ),
        ("EulerDiscreteScheduler", "interpolation_type", r#""cubic""#),
        ("EulerDiscreteScheduler", "timestep_type", r#""random""#),
        ("LCMScheduler", "timestep_scaling", "1e306"),
    ] {
        let file = file(&format!(
            r#"{{"_class_name": "{class}", "{key}": {value}}}"#
        ));
        match from_file(&file, &Overrides::default()) {
            Err(Error::Config { key: found, .. }) => assert_eq!(found, key, "{class}"),
            other => panic!("{class} with {key} {value}: {other:?}"),
        }
    }
    // Which does not clip, and is how published files spell the default.
    for value in ["-Infinity", "null"] {
        let file = file(&format!(
            r#"{{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": {value}}}"#
        ));
        from_file(&file, &Overrides::default()).unwrap();
    }
}

#[test]
fn trajectories_are_refused_where_the_reference_has_none() {
    let timesteps = Trajectory::Timesteps(vec![900.0, 500.0, 100.0]);
    let sigmas = Trajectory::Sigmas(vec![9.0, 2.0, 0.0]);
    let empty = Trajectory::Timesteps(Vec::new());
    for (name, trajectory) in [
        ("ddim", &timesteps),
        ("pndm", &timesteps),
        ("ddpm", &sigmas),
        ("lcm", &sigmas),
        ("tcd", &empty),
    ] {
        let mut overrides = Overrides::default();
        overrides.trajectory = Some(trajectory.clone());
        match from_file_as(name, &SchedulerFile::default(), &overrides) {
            Err(Error::Config { key, .. }) => assert_eq!(key, "trajectory", "{name}"),
            other => panic!("{name} with {trajectory:?}: {other:?}"),
        }
    }
    // As many steps as timesteps.
    let mut overrides = Overrides::default();
    overrides.trajectory = Some(timesteps);
    let config = from_file_as("lcm", &SchedulerFile::default(), &overrides).unwrap();
    let build = |steps| config.build(std::num::NonZeroUsize::new(steps).unwrap());
    build(3).unwrap();
    assert!(matches!(build(4), Err(Error::Steps { .. })));
}

#[test]
fn continuous_timesteps_need_as_many_sigmas_as_steps() {
    let json = r#"{"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction",
        "timestep_type": "continuous", "interpolation_type": "log_linear"}"#;
    match from_file(&file(json), &Overrides::default()) {
        Err(Error::Config { key, .. }) => assert_eq!(key, "interpolation_type"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_label_finds_what_it_labels() {
    assert_eq!(label("dpmpp_2m_karras").unwrap(), "DPM++ 2M Karras");
    assert_eq!(label("EulerAncestralDiscreteScheduler").unwrap(), "Euler a");
    for scheduler in ALL {
        for schedule in SigmaSchedule::ALL {
            let name = format!("{}_{schedule}", scheduler.name);
            let label = label(&name).unwrap();
            assert_eq!(canonical_name(&label).unwrap(), name, "{label}");
        }
    }
    assert!(label("dpmpp_9m").is_err());
}
