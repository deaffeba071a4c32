//! The names of the curves that sigmas may follow.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// How the sigmas between the first and the last are spaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SigmaSchedule {
    /// As the timesteps are.
    #[default]
    Default,
    /// More of them at low noise (Karras 2022, eq. 5, with rho 7).
    Karras,
    /// Evenly in their logarithm; k-diffusion's polyexponential schedule with rho 1 is the same.
    Exponential,
    /// By the quantiles of a beta distribution: more of them at both ends (Lee 2024).
    Beta,
    /// Of evenly spaced timesteps that stop one short of the last, as Stability's `sgm` does.
    SgmUniform,
    /// Evenly picked from the training table, ComfyUI's default.
    Simple,
    /// Optimised for Stable Diffusion 1.5 (Sabour 2024).
    AlignYourSteps,
    /// Optimised for Stable Diffusion XL (Sabour 2024).
    AlignYourStepsXl,
}

impl SigmaSchedule {
    /// All schedules.
    pub const ALL: [Self; 8] = [
        Self::Default,
        Self::Karras,
        Self::Exponential,
        Self::Beta,
        Self::SgmUniform,
        Self::Simple,
        Self::AlignYourSteps,
        Self::AlignYourStepsXl,
    ];

    /// Short name, as in `dpmpp_2m_karras`.
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The name in AUTOMATIC1111's web UI, or what it would be there.
    pub fn label(self) -> &'static str {
        match self {
            Self::Default => "Automatic",
            Self::Karras => "Karras",
            Self::Exponential => "Exponential",
            Self::Beta => "Beta",
            Self::SgmUniform => "SGM Uniform",
            Self::Simple => "Simple",
            Self::AlignYourSteps => "Align Your Steps",
            Self::AlignYourStepsXl => "Align Your Steps XL",
        }
    }

    /// The short name, and the others that people use.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["default", "automatic", "normal", "uniform"],
            Self::Karras => &["karras"],
            Self::Exponential => &["exponential", "polyexponential"],
            Self::Beta => &["beta"],
            Self::SgmUniform => &["sgm_uniform", "SGM Uniform"],
            Self::Simple => &["simple"],
            Self::AlignYourSteps => &["ays", "align_your_steps", "Align Your Steps"],
            Self::AlignYourStepsXl => &["ays_xl", "align_your_steps_xl", "Align Your Steps XL"],
        }
    }

    /// Takes the name of a schedule off the end of a scheduler's name: `DPM++ 2M Karras`,
    /// `dpmpp_2m_karras`. There may be several ways to do so.
    pub(crate) fn strip(name: &str) -> impl Iterator<Item = (&str, Self)> {
        let names = Self::ALL
            .into_iter()
            .flat_map(|schedule| schedule.names().iter().map(move |name| (*name, schedule)));
        names.filter_map(|(suffix, schedule)| {
            let at = name.len().checked_sub(suffix.len())?;
            let (rest, end) = name.split_at_checked(at)?;
            let rest = rest.strip_suffix(['_', ' '])?;
            end.eq_ignore_ascii_case(suffix).then_some((rest, schedule))
        })
    }
}

impl fmt::Display for SigmaSchedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for SigmaSchedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let named = |schedule: &Self| {
            schedule
                .names()
                .iter()
                .any(|known| known.eq_ignore_ascii_case(name))
        };
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| Error::UnknownSigmas {
                name: name.to_string(),
                known: Self::ALL.iter().map(|schedule| schedule.name()).collect(),
            })
    }
}
