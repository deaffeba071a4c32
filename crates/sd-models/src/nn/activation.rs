//! Activation functions that differ between libraries under the same name.

use candle_core::{D, Result, Tensor};

use super::on_cpu;

/// The exact GELU `x * Phi(x)`, by the error function (Hendrycks 2016, section 2), not its tanh approximation.
///
/// # Errors
/// The device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) {
        return sd_ops::gelu(x);
    }
    x.gelu_erf()
}

/// `x * sigmoid(1.702 x)`, the approximation of GELU in OpenAI's CLIP.
///
/// # Errors
/// The device fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) {
        return sd_ops::quick_gelu(x);
    }
    x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
}

/// `[.., 2 n]`, seen as hidden and gate side by side, to `hidden * gelu(gate)`: `[.., n]` (Shazeer 2020, eq. 6).
///
/// # Errors
/// The last dimension is odd.
pub(super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 {
        candle_core::bail!("geglu of {:?}, expected an even last dimension", x.shape());
    }
    let hidden = x.narrow(D::Minus1, 0, width / 2)?;
    hidden * gelu(&x.narrow(D::Minus1, width / 2, width / 2)?.contiguous()?)?
}
