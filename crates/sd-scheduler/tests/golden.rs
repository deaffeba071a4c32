//! Every scheduler against diffusers: timesteps, sigmas, and trajectories from
//! tests/golden/scheduler, made by tools/golden/schedulers.py.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    path::PathBuf,
};

use candle_core::{Device, Tensor};
use sd_config::SchedulerFile;
use sd_scheduler::{
    Churn, NoiseSource, Overrides, Plan, RecordedNoise, SchedulerConfig, Trajectory,
};
use serde::Deserialize;
use serde_json::Value;

type Tensors = HashMap<String, Tensor>;

/// Relative error of one step.
const STEP: f64 = 1e-6;
/// Relative error of a loop of up to 50 steps.
const LOOP: f64 = 1e-5;

#[derive(Deserialize)]
struct Group {
    /// scheduler_config.json
    file: Value,
    /// The class to convert it to.
    #[serde(rename = "as")]
    class: Option<String>,
    arguments: Arguments,
    runs: Vec<Case>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Arguments {
    eta: Option<f64>,
    s_churn: Option<f64>,
    s_tmin: f64,
    s_tmax: Option<f64>,
    s_noise: Option<f64>,
    timesteps: Option<Vec<f64>>,
    sigmas: Option<Vec<f64>>,
}

impl Arguments {
    fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        overrides.eta = self.eta;
        overrides.churn = self.s_churn.map(|amount| Churn {
            amount,
            min: self.s_tmin,
            max: self.s_tmax.unwrap_or(f64::INFINITY),
            noise: self.s_noise.unwrap_or(1.0),
        });
        let timesteps = self.timesteps.clone().map(Trajectory::Timesteps);
        overrides.trajectory = timesteps.or_else(|| self.sigmas.clone().map(Trajectory::Sigmas));
        overrides
    }
}

#[derive(Deserialize)]
struct Case {
    steps: NonZeroUsize,
    #[serde(default)]
    begin: usize,
    /// Calls of the run after which the latents are stored.
    #[serde(default)]
    calls: Vec<usize>,
    #[serde(default)]
    draws: usize,
    refused: Option<String>,
}

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/scheduler")
        .join(path)
}

fn load(path: &str) -> Tensors {
    candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap()
}

fn max(tensor: &Tensor) -> f64 {
    let max = tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    f64::from(max.to_scalar::<f32>().unwrap())
}

/// The largest difference over the largest value of `expected`.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    max(&(found - expected).unwrap()) / max(expected)
}

/// The fixed function that stands in for a network.
fn network(sample: &Tensor, timestep: f64) -> Tensor {
    let shift = 0.1 * (timestep / 100.0).sin();
    let values: Vec<f32> = sample.flatten_all().unwrap().to_vec1().unwrap();
    let outputs = values
        .iter()
        .map(|x| ((0.7 * f64::from(*x)).tanh() + shift) as f32)
        .collect();
    Tensor::from_vec(outputs, sample.shape(), &Device::Cpu).unwrap()
}

/// A run: its plan, the latents before each call and at the end, in the reference's convention, and
/// the draws of noise.
struct Recording {
    plan: Plan,
    latents: Vec<Tensor>,
    draws: usize,
}

/// What all runs start from.
struct Inputs {
    clean: Tensor,
    noise: Vec<Tensor>,
}

impl Inputs {
    fn load() -> Self {
        let common = load("common.safetensors");
        let noise = &common["noise"];
        let noise = (0..noise.dim(0).unwrap())
            .map(|i| noise.get(i).unwrap())
            .collect();
        Self {
            clean: common["clean"].clone(),
            noise,
        }
    }

    fn run(&self, config: &dyn SchedulerConfig, case: &Case) -> Result<Recording, String> {
        let mut scheduler = config
            .build(case.steps)
            .map_err(|error| error.to_string())?;
        let plan = scheduler.plan().clone();
        let mut noise = RecordedNoise::new(self.noise.iter().cloned());
        let mut sample = if case.begin == 0 {
            (&self.clean * plan.init_noise_std()).unwrap()
        } else {
            let fresh = noise.noise(&self.clean).unwrap();
            plan.levels()[case.begin]
                .noised(&self.clean, &fresh)
                .unwrap()
        };
        let mut latents = vec![(&sample * plan.reference_scale(case.begin)).unwrap()];
        for call in case.begin..plan.calls() {
            let output = network(&sample, plan.levels()[call].timestep);
            let step = scheduler.step(call, &output, &sample, &mut noise);
            sample = step.map_err(|error| error.to_string())?.sample;
            latents.push((&sample * plan.reference_scale(call + 1)).unwrap());
        }
        Ok(Recording {
            plan,
            latents,
            draws: self.noise.len() - noise.remaining(),
        })
    }
}

/// Timesteps and sigmas of the calls.
fn compare_plans(plan: &Plan, case: &Case, tensors: &Tensors, key: &str) -> Result<(), String> {
    let expected: Vec<f32> = tensors[&format!("{key}.timesteps")].to_vec1().unwrap();
    if (plan.steps(), plan.calls()) != (case.steps.get(), expected.len()) {
        return Err(format!(
            "{} steps in {} calls, expected {}",
            plan.steps(),
            plan.calls(),
            expected.len()
        ));
    }
    for (call, (level, expected)) in plan.levels().iter().zip(&expected).enumerate() {
        // Fractional timesteps come from the logarithm of an f32 table, where diffusers takes it in
        // f32.
        if (level.timestep - f64::from(*expected)).abs() > 1e-3 {
            return Err(format!(
                "timestep {} of call {call}, expected {expected}",
                level.timestep
            ));
        }
    }
    if let Some(sigmas) = tensors.get(&format!("{key}.sigmas")) {
        for (call, (level, expected)) in plan
            .levels()
            .iter()
            .zip(sigmas.to_vec1::<f32>().unwrap())
            .enumerate()
        {
            // torch's table of sigmas is up to 2 units in the last place off.
            if (level.karras_sigma() - f64::from(expected)).abs() > 3e-7 * f64::from(expected) {
                return Err(format!(
                    "sigma {} of call {call}, expected {expected}",
                    level.karras_sigma()
                ));
            }
        }
    }
    Ok(())
}

/// The largest errors after one call and after more.
fn compare(
    found: &Recording,
    case: &Case,
    tensors: &Tensors,
    key: &str,
) -> Result<(f64, f64), String> {
    compare_plans(&found.plan, case, tensors, key)?;
    if found.draws != case.draws {
        return Err(format!(
            "{} draws of noise, expected {}",
            found.draws, case.draws
        ));
    }
    if case.calls.last() != Some(&(found.latents.len() - 1)) {
        return Err(format!(
            "{} calls, expected {:?}",
            found.latents.len() - 1,
            case.calls.last()
        ));
    }
    let expected = &tensors[&format!("{key}.x")];
    let (mut one, mut all) = (0f64, 0f64);
    for (row, calls) in case.calls.iter().enumerate() {
        let error = error(&found.latents[*calls], &expected.get(row).unwrap());
        let worst = if *calls <= 1 { &mut one } else { &mut all };
        *worst = worst.max(error);
    }
    if one <= STEP && all <= LOOP {
        Ok((one, all))
    } else {
        Err(format!("error {one:.1e} after a step, {all:.1e} later"))
    }
}

/// A run that diffusers refuses is refused; one that is NaN there is refused or finite.
fn check_refused(run: Result<Recording, String>, reason: &str) -> Result<(), String> {
    match run {
        Err(_) => Ok(()),
        Ok(run)
            if reason.contains("not finite")
                && max(&run.latents[run.latents.len() - 1]).is_finite() =>
        {
            Ok(())
        }
        Ok(_) => Err(format!("not refused, but diffusers says {reason}")),
    }
}

fn configure(group: &Group) -> Result<Box<dyn SchedulerConfig>, String> {
    let file = SchedulerFile::parse(&group.file.to_string()).map_err(|error| error.to_string())?;
    let overrides = group.arguments.overrides();
    let config = match &group.class {
        Some(class) => sd_scheduler::from_file_as(class, &file, &overrides),
        None => sd_scheduler::from_file(&file, &overrides),
    };
    config.map_err(|error| error.to_string())
}

#[test]
#[expect(clippy::print_stdout, reason = "shown when a test fails, or on demand")]
fn trajectories_are_those_of_diffusers() {
    let text = std::fs::read_to_string(golden("cases.json")).unwrap();
    let cases: BTreeMap<String, Vec<Group>> = serde_json::from_str(&text).unwrap();
    let inputs = Inputs::load();
    let mut failures = Vec::new();
    for (name, groups) in cases {
        let tensors = load(&format!("{name}.safetensors"));
        let (mut compared, mut refused, mut worst) = (0, 0, (0f64, 0f64));
        for (index, group) in groups.iter().enumerate() {
            let config = configure(group);
            for (number, case) in group.runs.iter().enumerate() {
                let run = config
                    .as_deref()
                    .map_err(Clone::clone)
                    .and_then(|config| inputs.run(config, case));
                let verdict = match &case.refused {
                    Some(reason) => check_refused(run, reason).map(|()| refused += 1),
                    None => run
                        .and_then(|run| compare(&run, case, &tensors, &format!("{index}.{number}")))
                        .map(|(one, all)| {
                            compared += 1;
                            worst = (worst.0.max(one), worst.1.max(all));
                        }),
                };
                if let Err(failure) = verdict {
                    let (steps, begin, class) = (case.steps, case.begin, &group.class);
                    failures.push(format!(
                        "{name} {} as {class:?}, {steps} steps from {begin}: {failure}",
                        group.file
                    ));
                }
            }
        }
        let (one, all) = worst;
        println!(
            "{name}: {compared} runs, at most {one:.1e} off after a step, {all:.1e} later; {refused} refused"
        );
        if compared < 50 {
            failures.push(format!("{name}: hardly any runs to compare"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
