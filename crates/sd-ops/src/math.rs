//! Functions of one number without branches and calls, so that a compiler runs them on many at once.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// Adding it to a small number rounds that to an integer, which the sum's lowest bits are.
const ROUND: f32 = 12_582_912.;
/// ln 2 in two parts; the product of the first with an integer of two digits is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `c[0] + c[1] x + c[2] x^2 ..`
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let (mut sum, mut rest) = (0., coefficients.as_slice());
    if let Some((last, before)) = rest.split_last() {
        (sum, rest) = (*last, before);
    }
    rest.iter()
        .rev()
        .fold(sum, |sum, coefficient| sum * x + coefficient)
}

/// `e^x` to 1.5e-7 of itself, for `x <= 0`. Below -80 it stays what it is there, 2e-35: products with smaller numbers than normal
/// ones take a hundred times as long.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -80. { -80. } else { x };
    // e^x = 2^n e^r with |r| <= ln 2 / 2, where the polynomial of the smallest relative error is exact to 2e-9.
    let sum = x * LOG2_E + ROUND;
    let n = sum - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = polynomial(
        r,
        [
            1.,
            1.,
            0.499_999_9,
            0.166_664_2,
            0.041_668_225,
            0.008_374_824,
            0.001_383_683_5,
        ],
    );
    series * f32::from_bits((sum.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// `x sigmoid(x)` to 3e-7 of itself.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    // 1 / (1 + e^-x) for x >= 0, and e^x / (1 + e^x) otherwise: no exponential of a positive number.
    let e = exp(-x.abs());
    x * (if x < 0. { e } else { 1. }) / (1. + e)
}

/// The complement of the error function, `1 - erf(x)`, to 3e-7, for `x >= 0` (Numerical Recipes, 2nd edition, `erfcc`).
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let t = 1. / (1. + 0.5 * x);
    let series = polynomial(
        t,
        [
            -1.265_512_2,
            1.000_023_7,
            0.374_091_96,
            0.096_784_18,
            -0.186_288_06,
            0.278_868_07,
            -1.135_204,
            1.488_515_9,
            -0.822_152_23,
            0.170_872_77,
        ],
    );
    t * exp(series - x * x)
}

/// The exact GELU `x Phi(x)`, by the error function (Hendrycks 2016, section 2), to 3e-7 of `|x|`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let tail = 0.5 * erfc(x.abs() * FRAC_1_SQRT_2);
    x * (if x < 0. { tail } else { 1. - tail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::assert_same_bits;
    use candle_core::cpu::erf::erf_f64;

    /// The largest of `error(x, f(x), reference(x))` for numbers of `range` that are `step` apart.
    fn largest(
        range: std::ops::Range<f64>,
        step: f64,
        f: impl Fn(f32) -> f32,
        reference: impl Fn(f64) -> f64,
        error: impl Fn(f64, f64) -> f64,
    ) -> f64 {
        let count = ((range.end - range.start) / step) as usize;
        (0..=count)
            .map(|i| {
                let x = (range.start + i as f64 * step) as f32;
                let expected = reference(f64::from(x));
                error((f64::from(f(x)) - expected).abs(), expected.abs())
            })
            .fold(0., f64::max)
    }

    #[test]
    fn exp_is_the_exponential_of_all_it_is_for() {
        let error = largest(-80.0..0., 1e-5, exp, f64::exp, |error, of| error / of);
        assert!(error < 1.5e-7, "off by {error:e}");
        assert_eq!(exp(0.), 1.);
        assert_eq!(exp(f32::NEG_INFINITY), exp(-80.));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn silu_is_x_times_its_sigmoid() {
        let reference = |x: f64| x / (1. + (-x).exp());
        let error = largest(-80.0..80., 1e-4, silu, reference, |error, of| {
            error / of.max(1e-30)
        });
        assert!(error < 4e-7, "off by {error:e}");
        assert_eq!(silu(f32::INFINITY), f32::INFINITY);
        assert_eq!((silu(0.), silu(3e38)), (0., 3e38));
        assert!(silu(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_the_exact_one() {
        let reference = |x: f64| 0.5 * x * (1. + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2));
        let error = largest(-8.0..8., 1e-5, gelu, reference, |error, _| error);
        // Of the largest result, 8: torch's own is off by 1e-7 of it.
        assert!(error < 8. * 3e-7, "off by {error:e}");
        let error = largest(-1.0..1., 1e-6, gelu, reference, |error, _| error);
        assert!(error < 3e-7, "off by {error:e}");
        assert_eq!((gelu(0.), gelu(1e30)), (0., 1e30));
        assert!(gelu(f32::NAN).is_nan());
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.) * 0.037).collect();
        assert_same_bits(
            #[inline(always)]
            || x.iter().map(|v| silu(*v)).collect(),
        );
        assert_same_bits(
            #[inline(always)]
            || x.iter().map(|v| gelu(*v)).collect(),
        );
        assert_same_bits(
            #[inline(always)]
            || x.iter().map(|v| exp(-v.abs())).collect(),
        );
    }
}
