//! The exponential function, without branches and calls, so that a compiler runs it on many values at once.

use std::f32::consts::LOG2_E;

/// Adding it to a small number rounds that to an integer, which the sum's lowest bits are.
const ROUND: f32 = 12_582_912.;
/// ln 2 in two parts; the product of the first with an integer of two digits is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` to 1.5e-7 of itself, for `x <= 0`. Below -87 it stays what it is there, 1.6e-38.
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -87. { -87. } else { x };
    // e^x = 2^n e^r with |r| <= ln 2 / 2, where eight terms of the series are exact to 1e-8.
    let sum = x * LOG2_E + ROUND;
    let n = sum - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = [1. / 720., 1. / 120., 1. / 24., 1. / 6., 0.5, 1., 1.]
        .iter()
        .fold(1. / 5040., |series, term| series * r + term);
    series * f32::from_bits((sum.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_exponential_of_all_it_is_for() {
        for i in 0..=8_700_000 {
            let x = -1e-5 * i as f32;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            let error = (found - expected).abs() / expected;
            assert!(error < 1.5e-7, "exp({x}) is {found}, off by {error:e}");
        }
        assert_eq!(exp(0.), 1.);
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.));
        assert!(exp(f32::NAN).is_nan());
    }
}
