//! Which scheduler a run gets, and what the pipeline changes in its file.

mod common;

use common::{golden, request};
use sd_pipeline::{LoadOptions, ModelSource, Pipeline, Progress, Request};

/// The progress of a run of a model whose scheduler file says something else.
fn progress(
    family: &str,
    change: impl Fn(&mut sd_config::SchedulerFile),
    request: &Request,
) -> Vec<Progress> {
    let source = ModelSource::Dir(golden("models").join(family));
    let mut model = sd_models::load(&source, &LoadOptions::default()).unwrap();
    change(&mut model.config.scheduler);
    let pipeline = Pipeline::from_model(family, model);
    let mut run = pipeline.start(request).unwrap();
    std::iter::from_fn(|| run.advance(&pipeline).unwrap()).collect()
}

fn timesteps(progress: &[Progress]) -> Vec<f64> {
    progress.iter().map(|progress| progress.timestep).collect()
}

#[test]
fn outdated_files_are_corrected_for_sd_and_not_for_xl() {
    let ddim = Request {
        scheduler: Some("ddim".into()),
        ..request("a cat")
    };
    let sd = progress("sd15", |file| file.steps_offset = None, &ddim);
    assert_eq!(timesteps(&sd), [751.0, 501.0, 251.0, 1.0]);
    let xl = progress("sdxl", |file| file.steps_offset = None, &ddim);
    assert_eq!(timesteps(&xl), [750.0, 500.0, 250.0, 0.0]);
}

#[test]
fn another_scheduler_takes_the_file_and_the_defaults_of_its_class() {
    // PNDM's file names no spacing: Euler's default is linspace, PNDM's own is leading, with a repeated step.
    let file = |file: &mut sd_config::SchedulerFile| file.timestep_spacing = None;
    let euler = Request {
        scheduler: Some("EulerDiscreteScheduler".into()),
        ..request("a cat")
    };
    assert_eq!(
        timesteps(&progress("sd15", file, &euler)),
        [999.0, 666.0, 333.0, 0.0]
    );
    let own = progress("sd15", file, &request("a cat"));
    assert_eq!(timesteps(&own), [751.0, 501.0, 501.0, 251.0, 1.0]);
    let steps: Vec<usize> = own.iter().map(|progress| progress.step).collect();
    assert_eq!(
        (steps.last(), own[0].num_steps, own[0].num_calls),
        (Some(&4), 4, 5)
    );
    assert!(steps.is_sorted());
    assert!(own.windows(2).all(|pair| pair[1].sigma <= pair[0].sigma));
}

#[test]
fn a_model_of_an_unknown_scheduler_is_refused_with_those_to_ask_for() {
    let source = ModelSource::Dir(golden("models").join("sd15"));
    let mut model = sd_models::load(&source, &LoadOptions::default()).unwrap();
    model.config.scheduler.class_name = "FooScheduler".into();
    let pipeline = Pipeline::from_model("sd15", model);
    let error = pipeline.start(&request("a cat")).unwrap_err().to_string();
    let start = "scheduler: got FooScheduler of the model's file, expected ddim, ";
    assert!(error.starts_with(start), "{error}");
}

#[test]
fn a_name_keeps_its_sigma_schedule_and_a_class_its_settings() {
    let job = |family, change: &dyn Fn(&mut sd_config::SchedulerFile), asked: Option<&str>| {
        let source = ModelSource::Dir(golden("models").join(family));
        let mut model = sd_models::load(&source, &LoadOptions::default()).unwrap();
        change(&mut model.config.scheduler);
        let request = Request {
            scheduler: asked.map(Into::into),
            ..request("a cat")
        };
        let pipeline = Pipeline::from_model(family, model);
        pipeline.start(&request).unwrap().job().scheduler.clone()
    };
    let karras = job("sd15", &|_| (), Some("DPM++ 2M Karras"));
    assert_eq!(karras, "dpmpp_2m_karras");

    let stochastic = |file: &mut sd_config::SchedulerFile| {
        file.class_name = "DPMSolverMultistepScheduler".into();
        file.algorithm_type = Some("sde-dpmsolver++".into());
    };
    let name = job("sd15", &stochastic, None);
    // The short name `dpmpp_2m` would make it deterministic.
    assert_eq!(name, "DPMSolverMultistepScheduler");
}
