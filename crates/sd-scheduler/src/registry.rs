//! Finding a scheduler by any of the names people know it by.

use std::fmt;

use sd_config::SchedulerFile;

use crate::{
    ALL, Error, Overrides, Result, SchedulerConfig, SigmaSchedule, Trajectory, sigmas::MAX_SIGMA,
};

/// One scheduler: its names and what is worth knowing before choosing it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// Short name, `euler_a`.
    pub name: &'static str,
    /// The name in AUTOMATIC1111's web UI, `Euler a`, or what it would be there.
    pub label: &'static str,
    /// The class in diffusers, `EulerAncestralDiscreteScheduler`; empty if there is none.
    pub class: &'static str,
    /// The settings of the class that make it this scheduler.
    pub settings: &'static [Setting],
    /// Further names, such as k-diffusion's and ComfyUI's.
    pub aliases: &'static [&'static str],
    /// Order of its steps. Multistep solvers start a run with lower ones.
    pub order: usize,
    /// Network calls of a step; some schedulers have fewer in the last step, or more in the first.
    pub calls_per_step: usize,
    /// Whether steps draw noise, unless told otherwise.
    pub stochastic: bool,
    /// Which sigma schedules it can follow.
    pub sigmas: SigmaSupport,
    /// Numbers of steps that give good pictures.
    pub good_steps: (usize, usize),
    pub(crate) configure: fn(&SchedulerFile, &Overrides) -> Result<Box<dyn SchedulerConfig>>,
}

/// Whether a scheduler follows a [`SigmaSchedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaSupport {
    /// Any, and the file's.
    File,
    /// Any that is asked for; the file's is ignored, as diffusers ignores it.
    Override,
    /// None: it stays on the training timesteps, which the caller may choose.
    Timesteps,
    /// None: it stays on the training timesteps, spaced by its own rule.
    Fixed,
}

/// A key of `scheduler_config.json` with the value that makes a class a certain scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setting {
    /// `algorithm_type`
    AlgorithmType(&'static str),
    /// `solver_order`
    SolverOrder(usize),
}

impl Setting {
    fn apply(self, file: &mut SchedulerFile) {
        match self {
            Self::AlgorithmType(value) => file.algorithm_type = Some(value.to_string()),
            Self::SolverOrder(value) => file.solver_order = Some(value),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlgorithmType(value) => write!(formatter, "algorithm_type={value}"),
            Self::SolverOrder(value) => write!(formatter, "solver_order={value}"),
        }
    }
}

/// The scheduler of a short name, a diffusers class (with or without `Flax` before it), a label, or
/// an alias, in upper or lower case.
///
/// # Errors
/// When there is no such scheduler.
pub fn entry(name: &str) -> Result<&'static Entry> {
    find(name).map(|named| named.entry)
}

/// One spelling of all the names that mean the same to [`from_file_as`]: the short name, with that
/// of a sigma schedule if `name` has one. The name of a class whose settings tell schedulers apart
/// stays, because a short name would replace the file's settings.
///
/// # Errors
/// When there is no such scheduler.
pub fn canonical_name(name: &str) -> Result<String> {
    let Named {
        entry,
        by_class,
        sigmas,
    } = find(name)?;
    let base = if by_class && !entry.settings.is_empty() {
        entry.class
    } else {
        entry.name
    };
    Ok(sigmas.map_or_else(|| base.to_string(), |schedule| format!("{base}_{schedule}")))
}

/// What AUTOMATIC1111's web UI calls a scheduler of any of its names, with the sigma schedule if the
/// name has one: `DPM++ 2M Karras`.
///
/// # Errors
/// When there is no such scheduler.
pub fn label(name: &str) -> Result<String> {
    let Named { entry, sigmas, .. } = find(name)?;
    Ok(sigmas.map_or_else(
        || entry.label.to_string(),
        |schedule| format!("{} {}", entry.label, schedule.label()),
    ))
}

/// The scheduler that a model's file names.
///
/// # Errors
/// When it names none that is known, or has values that the scheduler cannot run with.
pub fn from_file(file: &SchedulerFile, overrides: &Overrides) -> Result<Box<dyn SchedulerConfig>> {
    from_file_as(&file.class_name, file, overrides)
}

/// Another scheduler for a model, as diffusers' `from_config` makes it: keys that the class knows
/// carry over, missing ones take the class's defaults. Where `name` is more than the name of a
/// class, [`Entry::settings`] replace the file's. The name of a sigma schedule may follow, as in
/// `DPM++ 2M Karras` or `dpmpp_2m_karras`.
///
/// # Errors
/// When no scheduler has this name, or the file has values that it cannot run with.
pub fn from_file_as(
    name: &str,
    file: &SchedulerFile,
    overrides: &Overrides,
) -> Result<Box<dyn SchedulerConfig>> {
    let Named {
        entry,
        by_class,
        sigmas,
    } = find(name)?;
    let overrides = Overrides {
        sigmas: overrides.sigmas.or(sigmas),
        ..overrides.clone()
    };
    let schedule = overrides.sigmas.unwrap_or_default();
    let invalid = |key, value: &str, expected| Err(Error::config(entry.name, key, value, expected));
    let follows = matches!(entry.sigmas, SigmaSupport::File | SigmaSupport::Override);
    if !follows && schedule != SigmaSchedule::Default {
        let expected = "default: this scheduler stays on the timesteps of training";
        return invalid("sigmas", schedule.name(), expected);
    }
    match &overrides.trajectory {
        None => {}
        Some(_) if entry.sigmas == SigmaSupport::Fixed => {
            return invalid(
                "trajectory",
                "set",
                "none: this scheduler spaces its own timesteps",
            );
        }
        Some(Trajectory::Sigmas(_)) if !follows => {
            let expected = "timesteps: this scheduler stays on those of training";
            return invalid("trajectory", "sigmas", expected);
        }
        Some(_) if schedule != SigmaSchedule::Default => {
            return invalid(
                "trajectory",
                "set",
                "either a trajectory or a sigma schedule",
            );
        }
        Some(Trajectory::Timesteps(values) | Trajectory::Sigmas(values)) => {
            let valid = |value: &f64| (0.0..=MAX_SIGMA).contains(value);
            if let Some(value) = values.iter().find(|value| !valid(value)) {
                return invalid("trajectory", &value.to_string(), "numbers from 0 to 100000");
            }
        }
    }
    if by_class || entry.settings.is_empty() {
        return (entry.configure)(file, &overrides);
    }
    let mut file = file.clone();
    entry
        .settings
        .iter()
        .for_each(|setting| setting.apply(&mut file));
    (entry.configure)(&file, &overrides)
}

/// What a name means.
struct Named {
    entry: &'static Entry,
    by_class: bool,
    sigmas: Option<SigmaSchedule>,
}

fn find(name: &str) -> Result<Named> {
    let bare = name.strip_prefix("Flax").unwrap_or(name);
    let plain = |name: &str| {
        let matches = |known: &str| !known.is_empty() && known.eq_ignore_ascii_case(name);
        ALL.iter().find_map(|entry| {
            let by_class = matches(entry.class);
            let named = by_class || matches(entry.name) || matches(entry.label);
            let named = named || entry.aliases.iter().any(|alias| matches(alias));
            named.then_some((entry, by_class))
        })
    };
    if let Some((entry, by_class)) = plain(bare) {
        return Ok(Named {
            entry,
            by_class,
            sigmas: None,
        });
    }
    let with_schedule = SigmaSchedule::strip(bare).find_map(|(rest, schedule)| {
        let (entry, by_class) = plain(rest)?;
        Some(Named {
            entry,
            by_class,
            sigmas: Some(schedule),
        })
    });
    with_schedule.ok_or_else(|| Error::Unknown {
        name: name.to_string(),
        known: ALL.iter().map(|entry| entry.name).collect(),
    })
}
