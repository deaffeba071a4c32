//! Levels of the solvers that stay on the training timesteps.

use sd_config::{SchedulerFile, TimestepSpacing};

use crate::{
    Error, NoiseLevel, Result,
    spacing::{self, Grid},
    train::TrainSchedule,
};

/// The timesteps of `steps` steps, noisiest first.
pub(super) fn timesteps(
    scheduler: &'static str,
    train: &TrainSchedule,
    spacing: TimestepSpacing,
    steps: usize,
    offset: usize,
) -> Result<Vec<usize>> {
    if steps > train.len() {
        let expected = format!("at most the {} timesteps of training", train.len());
        return Err(Error::Steps {
            scheduler,
            steps,
            expected,
        });
    }
    let timesteps = spacing::timesteps(spacing, Grid::Integer, steps, train.len(), offset);
    let timesteps: Vec<_> = timesteps
        .iter()
        .map(|timestep| *timestep as usize)
        .collect();
    if timesteps[0] >= train.len() {
        let expected = format!(
            "a first timestep below {}, not {}: fewer steps or offset",
            train.len(),
            timesteps[0]
        );
        return Err(Error::Steps {
            scheduler,
            steps,
            expected,
        });
    }
    Ok(timesteps)
}

/// The level `stride` timesteps below `timestep`; below timestep 0, a clean sample or the level of
/// timestep 0.
pub(super) fn level_before(
    train: &TrainSchedule,
    timestep: usize,
    stride: usize,
    to_one: bool,
) -> NoiseLevel {
    match timestep.checked_sub(stride) {
        Some(before) => train.level(before),
        None if to_one => NoiseLevel::CLEAN,
        None => train.level(0),
    }
}

/// How many steps the solver took that an LCM or TCD model was distilled from.
pub(super) fn original_steps(
    scheduler: &'static str,
    file: &SchedulerFile,
    train: &TrainSchedule,
) -> Result<usize> {
    let steps = file.original_inference_steps.unwrap_or(50);
    if !(1..=train.len()).contains(&steps) {
        let (key, value) = ("original_inference_steps", steps.to_string());
        return Err(Error::Config {
            scheduler,
            key,
            value,
            expected: "1 to num_train_timesteps",
        });
    }
    Ok(steps)
}

/// The timesteps of `steps` steps, evenly picked from the `original` ones that a model was
/// distilled on.
pub(super) fn distilled_timesteps(
    scheduler: &'static str,
    train: &TrainSchedule,
    original: usize,
    steps: usize,
) -> Result<Vec<usize>> {
    if steps > original {
        let expected = format!("at most the {original} original_inference_steps");
        return Err(Error::Steps {
            scheduler,
            steps,
            expected,
        });
    }
    let stride = train.len() / original;
    let interval = original as f64 / steps as f64;
    let picked = |step: usize| (step as f64 * interval).floor() as usize;
    Ok((0..steps)
        .map(|step| (original - picked(step)) * stride - 1)
        .collect())
}
