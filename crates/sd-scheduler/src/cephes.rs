//! Logarithm, sine and cosine as torch's vectorised normal distribution takes them, to the last
//! bit: the single precision polynomials of Moshier's Cephes library, each product fused with the
//! sum that follows it.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_PI_4};

/// ln(1 + x) = x - x^2/2 + x^3 p(x), for 1 + x from sqrt(1/2) to sqrt(2).
#[expect(clippy::excessive_precision, reason = "as published")]
const LN: [f32; 9] = [
    7.037_683_629_2e-2,
    -1.151_461_031_0e-1,
    1.167_699_874_0e-1,
    -1.242_014_084_6e-1,
    1.424_932_278_7e-1,
    -1.666_805_766_5e-1,
    2.000_071_476_5e-1,
    -2.499_999_399_3e-1,
    3.333_333_117_4e-1,
];
/// ln 2 in two parts, of which the first has few bits.
#[expect(clippy::excessive_precision, reason = "as published")]
const LN_2: [f32; 2] = [0.693_359_375, -2.121_944_40e-4];

/// cos(x) = 1 - x^2/2 + x^4 p(x^2), for x up to pi/4.
#[expect(clippy::excessive_precision, reason = "as published")]
const COS: [f32; 3] = [
    2.443_315_711_809_948e-5,
    -1.388_731_625_493_765e-3,
    4.166_664_568_298_827e-2,
];
/// sin(x) = x + x^3 p(x^2), for x up to pi/4.
#[expect(clippy::excessive_precision, reason = "as published")]
const SIN: [f32; 3] = [-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1];
/// -pi/4 in three parts, of which the first two have few bits.
#[expect(clippy::excessive_precision, reason = "as published")]
const MINUS_PI_4: [f32; 3] = [
    -0.785_156_25,
    -2.418_756_484_985_351_562_5e-4,
    -3.774_894_977_445_941_08e-8,
];

/// Horner's scheme.
fn polynomial(coefficients: &[f32], x: f32) -> f32 {
    coefficients
        .iter()
        .copied()
        .reduce(|sum, coefficient| sum.mul_add(x, coefficient))
        .unwrap_or(0.0)
}

/// The natural logarithm of a positive, normal number.
pub(crate) fn ln(value: f32) -> f32 {
    let bits = value.max(f32::MIN_POSITIVE).to_bits();
    // value = mantissa * 2^exponent, with the mantissa around 1.
    let mut mantissa = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    let mut exponent = ((bits >> 23) as i32 - 126) as f32;
    if mantissa < FRAC_1_SQRT_2 {
        mantissa *= 2.0;
        exponent -= 1.0;
    }
    let x = mantissa - 1.0;
    let square = x * x;
    let cubic = polynomial(&LN, x) * x;
    let tail = cubic.mul_add(square, exponent * LN_2[1]);
    exponent.mul_add(LN_2[0], x + (-square).mul_add(0.5, tail))
}

/// Sine and cosine of an angle that is not negative and not large.
pub(crate) fn sin_cos(angle: f32) -> (f32, f32) {
    // The angle is octants * pi/4 + x, with an even number of octants and x up to pi/4 either way.
    let octants = ((angle * (1.0 / FRAC_PI_4)) as i32 + 1) & !1;
    let x = MINUS_PI_4
        .iter()
        .fold(angle, |x, part| (octants as f32).mul_add(*part, x));
    let square = x * x;
    let quartic = polynomial(&COS, square) * square;
    let cos = quartic.mul_add(square, -(square * 0.5)) + 1.0;
    let sin = (polynomial(&SIN, square) * square).mul_add(x, x);
    match octants & 7 {
        0 => (sin, cos),
        2 => (cos, -sin),
        4 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_what_they_should_be() {
        for i in 1..=4096_u16 {
            let value = f32::from(i) / 4096.0;
            let exact = f64::from(value).ln();
            assert!(
                (f64::from(ln(value)) - exact).abs() <= 2e-7 * exact.abs(),
                "ln {value}"
            );
            let angle = std::f32::consts::TAU * value;
            let (sin, cos) = sin_cos(angle);
            let (exact_sin, exact_cos) = f64::from(angle).sin_cos();
            let error = (f64::from(sin) - exact_sin).hypot(f64::from(cos) - exact_cos);
            assert!(error < 2e-7, "{angle}");
        }
    }
}
