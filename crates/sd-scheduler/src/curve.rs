//! The curves that sigmas may follow.

use crate::{SigmaSchedule, train::TrainSchedule};

/// Curvature of the Karras schedule, as in the paper.
const KARRAS_RHO: f64 = 7.0;

/// Both parameters of the beta distribution, as in the paper.
const BETA: f64 = 0.6;

/// The sigmas of ten steps that were optimised for Stable Diffusion 1.5, and their end.
const ALIGNED_SD: [f64; 11] = [
    14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029,
];

/// The same for Stable Diffusion XL.
const ALIGNED_XL: [f64; 11] = [
    14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029,
];

/// The sigmas at the start of each of `steps` steps, between `max` and `min`; `None` for those that
/// the timesteps have.
pub(crate) fn curve(
    schedule: SigmaSchedule,
    train: &TrainSchedule,
    max: f64,
    min: f64,
    steps: usize,
) -> Option<Vec<f64>> {
    let last = steps.saturating_sub(1).max(1) as f64;
    let ramp = (0..steps).map(|i| i as f64 / last);
    Some(match schedule {
        SigmaSchedule::Default => return None,
        SigmaSchedule::Karras => {
            let (max, min) = (max.powf(1.0 / KARRAS_RHO), min.powf(1.0 / KARRAS_RHO));
            ramp.map(|r| (max + r * (min - max)).powf(KARRAS_RHO))
                .collect()
        }
        SigmaSchedule::Exponential => ramp
            .map(|r| (max.ln() + r * (min.ln() - max.ln())).exp())
            .collect(),
        SigmaSchedule::Beta => ramp
            .map(|r| min + beta_quantile(1.0 - r) * (max - min))
            .collect(),
        SigmaSchedule::SgmUniform => {
            let top = (train.len() - 1) as f64;
            (0..steps)
                .map(|i| {
                    train
                        .log_sigma_at(top * (1.0 - i as f64 / steps as f64))
                        .exp()
                })
                .collect()
        }
        SigmaSchedule::Simple => {
            let sigmas = train.sigmas();
            let stride = sigmas.len() as f64 / steps as f64;
            (0..steps)
                .map(|i| f64::from(sigmas[sigmas.len() - 1 - (i as f64 * stride) as usize]))
                .collect()
        }
        SigmaSchedule::AlignYourSteps => aligned(&ALIGNED_SD, steps),
        SigmaSchedule::AlignYourStepsXl => aligned(&ALIGNED_XL, steps),
    })
}

/// The table's sigmas, or sigmas between them for another number of steps (Sabour 2024:
/// interpolated in their logarithm).
fn aligned(table: &[f64], steps: usize) -> Vec<f64> {
    let ends = table.len() - 1;
    (0..steps)
        .map(|step| {
            let place = (step * ends) as f64 / steps as f64;
            let low = (place as usize).min(ends - 1);
            let (above, below) = (table[low].ln(), table[low + 1].ln());
            (above + (place - low as f64) * (below - above)).exp()
        })
        .collect()
}

/// The value that a beta-distributed number stays below with probability `p`, both parameters being
/// [`BETA`].
fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    if p == 0.0 {
        return 0.0;
    }
    // The median of the symmetric distribution is at one half, which also normalises it.
    let target = p * 2.0 * incomplete_beta(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    let mut x = (target * BETA).powf(1.0 / BETA).min(0.5);
    for _ in 0..100 {
        let excess = incomplete_beta(x) - target;
        if excess > 0.0 {
            high = x
        } else {
            low = x
        }
        let newton = x - excess / (x.powf(BETA - 1.0) * (1.0 - x).powf(BETA - 1.0));
        let next = if newton > low && newton < high {
            newton
        } else {
            0.5 * (low + high)
        };
        if (next - x).abs() <= f64::EPSILON * next {
            return next;
        }
        x = next;
    }
    x
}

/// The integral of `(t (1 - t))^(BETA - 1)` from 0 to `x`, for `x` up to one half, by its power
/// series (DLMF 8.17.7).
fn incomplete_beta(x: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 1.0 / BETA);
    for n in 1..200 {
        term *= (n as f64 - BETA) / n as f64 * x;
        sum += term / (BETA + n as f64);
        if term < f64::EPSILON * sum {
            break;
        }
    }
    x.powf(BETA) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beta_quantiles_are_those_of_scipy() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        for (p, expected) in SCIPY {
            let found = beta_quantile(p);
            assert!(
                (found - expected).abs() <= 1e-13 * expected,
                "{p}: {found}, expected {expected}"
            );
        }
    }

    const SCIPY: [(f64, f64); 9] = [
        (0.0, 0.0),
        (0.001, 1.855873851745199e-05),
        (0.02, 0.002732982024577027),
        (0.25, 0.17568037865269498),
        (0.5, 0.5),
        (0.6, 0.6372990092467856),
        (0.75, 0.824319621347305),
        (0.99, 0.9991387611784571),
        (1.0, 1.0),
    ];
}
