//! Which of the training timesteps a run visits (Lin 2023, table 2).

use sd_config::TimestepSpacing;

/// What a scheduler class does to the timesteps besides spacing them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Grid {
    /// Integers.
    Integer,
    /// Linspace stays fractional, rounded to f32.
    Fractional,
    /// Integers, of which one more is spaced out (except for trailing) and the least noisy one
    /// dropped.
    OneMore,
}

/// The timesteps of `steps` steps, noisiest first, of `train` training timesteps.
///
/// Leading spacing may reach beyond the last training timestep: `(steps - 1) * (train / steps) +
/// offset`.
pub(crate) fn timesteps(
    spacing: TimestepSpacing,
    grid: Grid,
    steps: usize,
    train: usize,
    offset: usize,
) -> Vec<f64> {
    let points = if grid == Grid::OneMore {
        steps + 1
    } else {
        steps
    };
    let ascending = |at: &dyn Fn(usize) -> f64| (points - steps..points).rev().map(at).collect();
    match spacing {
        TimestepSpacing::Leading => {
            let ratio = train / points;
            ascending(&|i| (i * ratio + offset) as f64)
        }
        TimestepSpacing::Linspace => {
            let (last, end) = (points - 1, (train - 1) as f64);
            let ratio = end / last.max(1) as f64;
            ascending(&|i| {
                let timestep = if i == last && last > 0 {
                    end
                } else {
                    i as f64 * ratio
                };
                if grid == Grid::Fractional {
                    f64::from(timestep as f32)
                } else {
                    timestep.round_ties_even()
                }
            })
        }
        TimestepSpacing::Trailing => {
            // numpy's arange counts in multiples of this difference, whose rounding decides which
            // way halves go. (It also makes arange one entry too long for 62 values of `steps`
            // below 1000; here it is always `steps`.)
            let start = train as f64;
            let difference = (start - start / steps as f64) - start;
            (0..steps)
                .map(|k| (start + k as f64 * difference).round_ties_even() - 1.0)
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings_have_their_steps_and_never_go_up() {
        for steps in 1..=1000 {
            for spacing in [
                TimestepSpacing::Leading,
                TimestepSpacing::Linspace,
                TimestepSpacing::Trailing,
            ] {
                for grid in [Grid::Integer, Grid::Fractional, Grid::OneMore] {
                    let timesteps = timesteps(spacing, grid, steps, 1000, 0);
                    assert_eq!(timesteps.len(), steps);
                    assert!(
                        timesteps.windows(2).all(|pair| pair[0] >= pair[1]),
                        "{spacing:?} {grid:?} {steps}"
                    );
                    assert!(
                        timesteps.iter().all(|t| (0.0..1000.0).contains(t)),
                        "{spacing:?} {grid:?} {steps}"
                    );
                }
            }
        }
    }

    #[test]
    fn spacings_are_those_of_diffusers_for_every_number_of_steps() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/scheduler/common.safetensors"
        );
        let golden = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        for (grid, name) in [
            (Grid::Integer, "integer"),
            (Grid::Fractional, "fractional"),
            (Grid::OneMore, "one_more"),
        ] {
            for (spacing, spacing_name) in [
                (TimestepSpacing::Leading, "leading"),
                (TimestepSpacing::Linspace, "linspace"),
                (TimestepSpacing::Trailing, "trailing"),
            ] {
                // Weighted sums of the timesteps of 1, 2, ... steps.
                let expected: Vec<f64> = golden[&format!("timesteps.{name}.{spacing_name}")]
                    .to_vec1()
                    .unwrap();
                for (steps, expected) in (1..).zip(expected) {
                    let timesteps = timesteps(spacing, grid, steps, 1000, 0);
                    let sum: f64 = (1..)
                        .zip(&timesteps)
                        .map(|(k, timestep)| f64::from(k) * timestep)
                        .sum();
                    assert!(
                        (sum - expected).abs() <= 1e-9 * expected.abs(),
                        "{name} {spacing_name} {steps}: {sum} {expected}"
                    );
                }
            }
        }
    }
}
