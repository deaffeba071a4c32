//! Levels of the solvers that think in Karras sigmas: a timestep spacing, or a curve between two
//! sigmas.

use sd_config::{SchedulerFile, TimestepSpacing};

use crate::{
    Error, NoiseLevel, Overrides, Plan, Result, SigmaSchedule, Trajectory,
    curve::curve,
    spacing::{Grid, timesteps},
    train::{TrainSchedule, linspace},
};

/// A limit on what files and callers may ask for, far above any model's noise.
pub(crate) const MAX_SIGMA: f64 = 1e5;

/// How a scheduler chooses its sigmas.
#[derive(Debug, Clone)]
pub(crate) struct SigmaGrid {
    scheduler: &'static str,
    train: TrainSchedule,
    spacing: TimestepSpacing,
    offset: usize,
    schedule: SigmaSchedule,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    end: End,
    rounds_karras: bool,
    lu_lambdas: bool,
    log_linear: bool,
    continuous: bool,
    trajectory: Option<Trajectory>,
}

/// Where the sigmas end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// Without noise.
    Zero,
    /// At the lowest sigma of training.
    TableMin,
    /// At the lowest sigma of training or, where sigmas follow a curve, of the curve: its last step
    /// goes nowhere.
    CurveMin,
}

/// The sigmas of a run.
#[derive(Debug)]
pub(crate) struct Sigmas {
    /// What the network is told at each of the steps.
    pub(crate) timesteps: Vec<f64>,
    /// The sigma at the start of each step, and the end. The reference keeps them as f32, so they
    /// are rounded.
    pub(crate) values: Vec<f64>,
    /// Deviation of the initial noise in sigma space.
    init_noise_sigma: f64,
}

impl SigmaGrid {
    /// The grid of a class that has the keys of sigma schedules.
    pub(crate) fn from_file(
        scheduler: &'static str,
        file: &SchedulerFile,
        overrides: &Overrides,
        train: TrainSchedule,
    ) -> Result<Self> {
        let flags = [
            (file.use_karras_sigmas, SigmaSchedule::Karras),
            (file.use_exponential_sigmas, SigmaSchedule::Exponential),
            (file.use_beta_sigmas, SigmaSchedule::Beta),
        ];
        let mut chosen = flags
            .iter()
            .filter(|(flag, _)| flag.unwrap_or(false))
            .map(|(_, schedule)| *schedule);
        let from_file = chosen.next().unwrap_or(SigmaSchedule::Default);
        if let (None, Some(second)) = (overrides.sigmas, chosen.next()) {
            let value = format!("{from_file} and {second}");
            return Err(Error::config(
                scheduler,
                "sigmas",
                value,
                "one sigma schedule",
            ));
        }
        let plain = Self::plain(scheduler, file, overrides, train);
        Ok(Self {
            schedule: overrides.sigmas.unwrap_or(from_file),
            ..plain
        })
    }

    /// The grid of a class whose sigmas follow its timesteps, unless overridden.
    pub(crate) fn plain(
        scheduler: &'static str,
        file: &SchedulerFile,
        overrides: &Overrides,
        train: TrainSchedule,
    ) -> Self {
        Self {
            scheduler,
            train,
            spacing: file.timestep_spacing.unwrap_or(TimestepSpacing::Linspace),
            offset: file.steps_offset.unwrap_or(0),
            schedule: overrides.sigmas.unwrap_or_default(),
            sigma_min: None,
            sigma_max: None,
            end: End::Zero,
            rounds_karras: false,
            lu_lambdas: false,
            log_linear: false,
            continuous: false,
            trajectory: overrides.trajectory.clone(),
        }
    }

    /// Takes the bounds of the curves, `sigma_min` and `sigma_max`, from the file.
    pub(crate) fn with_bounds(self, file: &SchedulerFile) -> Result<Self> {
        for (key, bound) in [("sigma_min", file.sigma_min), ("sigma_max", file.sigma_max)] {
            if let Some(bound) =
                bound.filter(|bound| !(1.0 / MAX_SIGMA..=MAX_SIGMA).contains(bound))
            {
                return Err(Error::config(
                    self.scheduler,
                    key,
                    bound,
                    "0.00001 to 100000",
                ));
            }
        }
        Ok(Self {
            sigma_min: file.sigma_min,
            sigma_max: file.sigma_max,
            ..self
        })
    }

    /// Takes `final_sigmas_type` from the file.
    pub(crate) fn with_final_sigma(self, file: &SchedulerFile) -> Result<Self> {
        let end = match file.final_sigmas_type.as_deref() {
            None | Some("zero") => End::Zero,
            Some("sigma_min") => End::TableMin,
            Some(other) => {
                let (key, expected) = ("final_sigmas_type", "zero or sigma_min");
                return Err(Error::config(self.scheduler, key, other, expected));
            }
        };
        Ok(Self { end, ..self })
    }

    /// Where it would end at the lowest sigma of training, ends where the curve does.
    pub(crate) fn ending_on_curve(self) -> Self {
        if self.end == End::TableMin {
            self.ending_at_minimum()
        } else {
            self
        }
    }

    /// Never ends without noise, and on a curve ends where the curve does.
    pub(crate) fn ending_at_minimum(self) -> Self {
        Self {
            end: End::CurveMin,
            ..self
        }
    }

    /// Tells the network the nearest whole timesteps on a Karras curve, and with `use_lu_lambdas`.
    pub(crate) fn with_rounded_karras(self) -> Self {
        Self {
            rounds_karras: true,
            ..self
        }
    }

    /// Spaces steps evenly in lambda (Lu 2022), which is the exponential curve, but for the last
    /// digits: it has its ends from f32 logarithms.
    pub(crate) fn with_lu_lambdas(self) -> Self {
        Self {
            schedule: SigmaSchedule::Exponential,
            lu_lambdas: true,
            ..self
        }
    }

    /// Whether sigmas are neither the caller's nor on a curve.
    pub(crate) fn is_plain(&self) -> bool {
        self.schedule == SigmaSchedule::Default && self.trajectory.is_none()
    }

    /// Spaces sigmas evenly in their logarithm from the highest to the lowest of training, which is
    /// then the end; curves go between these two. The timesteps are as before.
    pub(crate) fn with_log_linear(self) -> Self {
        Self {
            log_linear: true,
            ..self
        }
    }

    /// Tells the network a quarter of the logarithm of each sigma in place of a timestep (Karras
    /// 2022, table 1).
    pub(crate) fn with_continuous_timesteps(self) -> Self {
        Self {
            continuous: true,
            ..self
        }
    }

    /// Spaces timesteps evenly from the first to the last, whatever the file says.
    pub(crate) fn with_linspace(self) -> Self {
        Self {
            spacing: TimestepSpacing::Linspace,
            offset: 0,
            ..self
        }
    }

    /// Fractional timesteps, and curves between the first and the last sigma of the spacing.
    pub(crate) fn fractional(&self, steps: usize) -> Result<Sigmas> {
        self.sigmas(steps, Grid::Fractional)
    }

    /// Whole timesteps, and curves between the highest and the lowest sigma of training.
    pub(crate) fn integer(&self, steps: usize) -> Result<Sigmas> {
        self.sigmas(steps, Grid::OneMore)
    }

    /// The levels of `sigmas`, and between the start of each step but the last and the sigma `low`
    /// that the step goes down to, the level halfway in the logarithm.
    pub(crate) fn levels_between(
        &self,
        sigmas: &Sigmas,
        low: impl Fn(usize) -> f64,
    ) -> Vec<NoiseLevel> {
        let mut levels = sigmas.levels();
        for step in (0..sigmas.timesteps.len() - 1).rev() {
            let middle = (sigmas.values[step] * low(step)).sqrt();
            levels.insert(
                step + 1,
                NoiseLevel::from_karras_sigma(self.train.timestep_of(middle), middle),
            );
        }
        levels
    }

    fn sigmas(&self, steps: usize, grid: Grid) -> Result<Sigmas> {
        let refuse = |expected: String| {
            Err(Error::Steps {
                scheduler: self.scheduler,
                steps,
                expected,
            })
        };
        if steps > self.train.len() {
            return refuse(format!(
                "at most the {} timesteps of training",
                self.train.len()
            ));
        }
        let represent = |timestep: f64| match grid {
            Grid::Fractional => f64::from(timestep as f32),
            Grid::Integer | Grid::OneMore => timestep.trunc(),
        };
        let table_min = f64::from(self.train.sigmas()[0]);
        let end = if self.end == End::Zero {
            0.0
        } else {
            table_min
        };
        let spaced = |timesteps: &[f64]| match self.log_linear {
            true => self.log_linear_sigmas(steps),
            false => self.sigmas_at(timesteps).chain([end]).collect(),
        };
        let (mut timesteps, sigmas) = match &self.trajectory {
            Some(Trajectory::Timesteps(timesteps)) => {
                let timesteps: Vec<_> = timesteps.iter().copied().map(represent).collect();
                let sigmas = spaced(&timesteps);
                (timesteps, sigmas)
            }
            Some(Trajectory::Sigmas(sigmas)) => {
                let starts = sigmas.iter().take(sigmas.len().saturating_sub(1));
                (
                    starts
                        .map(|sigma| represent(self.train.timestep_of(*sigma)))
                        .collect(),
                    sigmas.clone(),
                )
            }
            None => {
                let timesteps = timesteps(self.spacing, grid, steps, self.train.len(), self.offset);
                let sigmas = spaced(&timesteps);
                let (max, min) = match grid {
                    Grid::Fractional if self.log_linear => (sigmas[0], sigmas[steps]),
                    Grid::Fractional => (sigmas[0], sigmas[steps - 1]),
                    _ if self.lu_lambdas => {
                        let (max, min) = self.train.log_sigma_ends();
                        (max.exp(), min.exp())
                    }
                    Grid::Integer | Grid::OneMore => (
                        f64::from(self.train.sigmas()[self.train.len() - 1]),
                        table_min,
                    ),
                };
                let (max, min) = (self.sigma_max.unwrap_or(max), self.sigma_min.unwrap_or(min));
                match curve(self.schedule, &self.train, max, min, steps) {
                    None => (timesteps, sigmas),
                    Some(curve) => {
                        let rounds = self.rounds_karras
                            && (self.lu_lambdas || self.schedule == SigmaSchedule::Karras);
                        let timesteps =
                            curve
                                .iter()
                                .map(|sigma| match self.train.timestep_of(*sigma) {
                                    timestep if rounds => timestep.round_ties_even(),
                                    timestep => represent(timestep),
                                });
                        let end = if self.end == End::CurveMin {
                            curve[steps - 1]
                        } else {
                            end
                        };
                        (
                            timesteps.collect(),
                            curve.iter().copied().chain([end]).collect(),
                        )
                    }
                }
            }
        };
        if timesteps.len() != steps {
            return refuse(format!(
                "{}, as many as the trajectory has",
                timesteps.len()
            ));
        }
        let values: Vec<_> = sigmas
            .iter()
            .map(|sigma| f64::from(*sigma as f32))
            .collect();
        if self.continuous {
            timesteps = values[..steps].iter().map(|s| 0.25 * s.ln()).collect();
        }
        // Solvers divide by the width of their steps. Only the last may be nothing.
        let stalls = values[..steps].windows(2).any(|pair| pair[1] >= pair[0]);
        let lowest = values[steps - 1];
        if stalls || values[steps] > lowest || lowest < 1.0 / MAX_SIGMA {
            return refuse("fewer, so that each step goes down from some noise".to_string());
        }
        let init_noise_sigma = match self.spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => values[0],
            TimestepSpacing::Leading => values[0].hypot(1.0),
        };
        Ok(Sigmas {
            timesteps,
            values,
            init_noise_sigma,
        })
    }

    /// One sigma more than `steps`, the end.
    fn log_linear_sigmas(&self, steps: usize) -> Vec<f64> {
        let (max, min) = self.train.log_sigma_ends();
        let logs = linspace(max, min, steps + 1);
        logs.iter().map(|log| f64::from(*log).exp()).collect()
    }

    fn sigmas_at(&self, timesteps: &[f64]) -> impl Iterator<Item = f64> {
        timesteps
            .iter()
            .map(|timestep| self.train.sigma_at(*timestep))
    }
}

impl Sigmas {
    /// Whether the run ends without noise.
    pub(crate) fn ends_at_zero(&self) -> bool {
        self.values.last() == Some(&0.0)
    }

    /// The levels of the steps, and the end.
    pub(crate) fn levels(&self) -> Vec<NoiseLevel> {
        let timesteps = self.timesteps.iter().copied().chain([0.0]);
        timesteps
            .zip(&self.values)
            .map(|(timestep, sigma)| NoiseLevel::from_karras_sigma(timestep, *sigma))
            .collect()
    }

    /// The same, with each level between the first and the end twice.
    pub(crate) fn levels_twice(&self) -> Vec<NoiseLevel> {
        let levels = self.levels();
        let last = levels.len() - 1;
        let times = |index| if index == 0 || index == last { 1 } else { 2 };
        levels
            .iter()
            .enumerate()
            .flat_map(|(index, level)| std::iter::repeat_n(*level, times(index)))
            .collect()
    }

    /// A plan of one call a step that the reference runs in sigma space.
    pub(crate) fn plan(&self) -> Plan {
        self.in_sigma_space(Plan::new(self.levels()))
    }

    /// Declares that the reference runs `plan` in sigma space, from noise as strong as these sigmas
    /// ask for.
    pub(crate) fn in_sigma_space(&self, plan: Plan) -> Plan {
        plan.in_sigma_space(self.init_noise_sigma)
    }
}
