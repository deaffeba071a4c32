//! What the weights of a prompt's tokens do to the encoded text.

use candle_core::{Result, Tensor};

/// A convention for weights, and for the windows of long prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// Of AUTOMATIC1111's web UI: weights multiply the tokens' rows, and the mean of the window is restored. A window ends
    /// after a comma among its last 20 tokens.
    A1111,
    /// Of ComfyUI: weights move the tokens' rows on the line from the empty prompt's rows. A window ends between words.
    ComfyUi,
}

impl Weighting {
    /// Weighs the rows of a window, `[1, n, c]` f32, of which `empty` is the one of the empty prompt; `weights` has `n`
    /// numbers.
    pub(super) fn apply(self, rows: &Tensor, weights: &[f64], empty: &Tensor) -> Result<Tensor> {
        match self {
            Self::A1111 => keep_mean(rows, weights),
            Self::ComfyUi => interpolate(rows, weights, empty),
        }
    }
}

/// `w_i z_i mean(z) / mean(w z)` for row `z_i`, both means of the whole window (modules/sd_emphasis.py, "Original").
fn keep_mean(rows: &Tensor, weights: &[f64]) -> Result<Tensor> {
    let sums: Vec<f64> = rows
        .squeeze(0)?
        .to_vec2::<f32>()?
        .iter()
        .map(|row| row.iter().copied().map(f64::from).sum())
        .collect();
    let weighted: f64 = sums
        .iter()
        .zip(weights)
        .map(|(sum, weight)| sum * weight)
        .sum();
    let ratio = sums.iter().sum::<f64>() / weighted;
    // Nothing restores a mean of 0.
    let ratio = if ratio.is_finite() { ratio } else { 1.0 };
    rows.broadcast_mul(&column(weights.iter().map(|weight| weight * ratio), rows)?)
}

/// `e_i + w_i (z_i - e_i)` for row `z_i` and the empty prompt's row `e_i` (comfy/sd1_clip.py, `encode_token_weights`),
/// written such that a weight of 1 leaves the row as it is.
fn interpolate(rows: &Tensor, weights: &[f64], empty: &Tensor) -> Result<Tensor> {
    let more = column(weights.iter().map(|weight| weight - 1.0), rows)?;
    rows + (rows - empty)?.broadcast_mul(&more)?
}

/// Numbers as `[1, n, 1]` f32, beside `rows`.
fn column(numbers: impl Iterator<Item = f64>, rows: &Tensor) -> Result<Tensor> {
    let numbers: Vec<f32> = numbers.map(|number| number as f32).collect();
    let length = numbers.len();
    Tensor::from_vec(numbers, (1, length, 1), rows.device())
}
