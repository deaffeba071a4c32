//! Levels of the solvers that stay on the training timesteps.

use sd_config::{SchedulerFile, TimestepSpacing};

use crate::{
    Error, NoiseLevel, Overrides, Result, Trajectory,
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

/// The timesteps that the caller chose, if any: whole and falling, as the reference wants them.
pub(super) fn own_timesteps(
    scheduler: &'static str,
    overrides: &Overrides,
    train: &TrainSchedule,
) -> Result<Option<Vec<usize>>> {
    let Some(Trajectory::Timesteps(own)) = &overrides.trajectory else {
        return Ok(None);
    };
    let own: Vec<_> = own.iter().map(|timestep| *timestep as usize).collect();
    let falls = own.windows(2).all(|pair| pair[1] < pair[0]);
    match own.first() {
        Some(first) if falls && *first < train.len() => Ok(Some(own)),
        _ => Err(Error::config(
            scheduler,
            "trajectory",
            format!("{own:?}"),
            "falling timesteps below num_train_timesteps",
        )),
    }
}

/// The caller's `own` timesteps for a run of as many steps; without them, those of `spaced`.
pub(super) fn own_or(
    scheduler: &'static str,
    own: Option<&[usize]>,
    steps: usize,
    spaced: impl FnOnce() -> Result<Vec<usize>>,
) -> Result<Vec<usize>> {
    match own {
        None => spaced(),
        Some(own) if own.len() == steps => Ok(own.to_vec()),
        Some(own) => Err(Error::Steps {
            scheduler,
            steps,
            expected: format!("{}, as many as the trajectory has", own.len()),
        }),
    }
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

/// The share of fresh noise in each step: the caller's, the file's, or the class's.
pub(super) fn eta(
    scheduler: &'static str,
    file: &SchedulerFile,
    overrides: &Overrides,
    default: f64,
) -> Result<f64> {
    let eta = overrides.eta.or(file.eta).unwrap_or(default);
    match (0.0..=1.0).contains(&eta) {
        true => Ok(eta),
        false => Err(Error::config(scheduler, "eta", eta, "0 to 1")),
    }
}

/// The steps of the solver that an LCM or TCD model was distilled from.
#[derive(Debug)]
pub(super) struct DistilledSteps {
    /// Timesteps from one to the next.
    stride: usize,
    /// How many there were.
    original: usize,
    /// The lowest of them, which a run picks its own from: all, or the caller's share.
    available: usize,
}

impl DistilledSteps {
    pub(super) fn from_file(
        scheduler: &'static str,
        file: &SchedulerFile,
        overrides: &Overrides,
        train: &TrainSchedule,
    ) -> Result<Self> {
        let original = file.original_inference_steps.unwrap_or(50);
        if !(1..=train.len()).contains(&original) {
            return Err(Error::config(
                scheduler,
                "original_inference_steps",
                original,
                "1 to num_train_timesteps",
            ));
        }
        let strength = overrides.strength.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::config(scheduler, "strength", strength, "0 to 1"));
        }
        Ok(Self {
            stride: train.len() / original,
            original,
            available: (original as f64 * strength) as usize,
        })
    }

    /// The timesteps of `steps` steps, evenly picked.
    pub(super) fn timesteps(&self, scheduler: &'static str, steps: usize) -> Result<Vec<usize>> {
        let &Self {
            stride,
            original,
            available,
        } = self;
        if steps > available {
            let expected = match available == original {
                true => format!("at most the {original} original_inference_steps"),
                false => format!("at most {available}, by strength, of {original}"),
            };
            return Err(Error::Steps {
                scheduler,
                steps,
                expected,
            });
        }
        let interval = available as f64 / steps as f64;
        let picked = |step: usize| (step as f64 * interval).floor() as usize;
        Ok((0..steps)
            .map(|step| (available - picked(step)) * stride - 1)
            .collect())
    }
}
