//! Exponential integrators of the clean sample: what the steps of the DPM-Solver++ family have in
//! common.

use crate::NoiseLevel;

/// A step from one level to another, along a clean sample that is a polynomial in the step's own
/// time: the half logarithm of the signal-to-noise ratio (Lu 2022b, eq. 8).
#[derive(Debug)]
pub(crate) struct Exponential {
    /// Weight of the sample at the start.
    pub(crate) sample: f64,
    /// Weight of fresh noise; 0 for the probability flow.
    pub(crate) noise: f64,
    /// Weight of the clean sample at the start.
    pub(crate) constant: f64,
    /// Width of the step in its own time. Infinite for a step to a clean sample.
    pub(crate) width: f64,
    /// Width of the exponential: twice the step's for the stochastic equation.
    decay: f64,
    alpha: f64,
    stochastic: bool,
}

impl Exponential {
    /// The step from `start` to `end`, along the stochastic equation or the probability flow.
    pub(crate) fn new(stochastic: bool, start: &NoiseLevel, end: &NoiseLevel) -> Self {
        if stochastic {
            Self::stochastic(start, end)
        } else {
            Self::flow(start, end)
        }
    }

    /// The step from `start` to `end` along the probability flow.
    fn flow(start: &NoiseLevel, end: &NoiseLevel) -> Self {
        let width = end.lambda() - start.lambda();
        Self {
            sample: end.sigma / start.sigma,
            noise: 0.0,
            constant: -end.alpha * (-width).exp_m1(),
            width,
            decay: width,
            alpha: end.alpha,
            stochastic: false,
        }
    }

    /// The step from `start` to `end` along the stochastic equation that has the same
    /// distributions.
    fn stochastic(start: &NoiseLevel, end: &NoiseLevel) -> Self {
        let width = end.lambda() - start.lambda();
        let decay = 2.0 * width;
        let lost = -(-decay).exp_m1();
        Self {
            sample: end.sigma / start.sigma * (-width).exp(),
            noise: end.sigma * lost.sqrt(),
            constant: end.alpha * lost,
            width,
            decay,
            alpha: end.alpha,
            stochastic: true,
        }
    }

    /// Weight of the clean sample's change over a step of this width, if it changes evenly.
    pub(crate) fn slope(&self) -> f64 {
        self.alpha * ((-self.decay).exp_m1() / self.decay + 1.0)
    }

    /// The same, approximated by the change at half of the step.
    pub(crate) fn midpoint_slope(&self) -> f64 {
        0.5 * self.constant
    }

    /// Weight of the change of the change.
    ///
    /// For the stochastic equation the reference has the wrong sign of one half. It makes the step
    /// first order, but it is what people see, and what this returns.
    pub(crate) fn curvature(&self) -> f64 {
        let (h, half) = (self.decay, if self.stochastic { -0.5 } else { 0.5 });
        self.alpha * ((-(-h).exp_m1() - h) / (h * h) + half)
    }
}
