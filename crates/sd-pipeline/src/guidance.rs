//! Classifier-free guidance: steering by the difference of two predictions.

use candle_core::{Result, Tensor};

use crate::Run;

/// The prediction `[n, c, h, w]` for a run's scheduler, from the UNet's output for the run's samples: `[2n, c, h, w]` with
/// the negative prompt's first when the run is guided, otherwise already the prediction.
pub(crate) fn guided(output: Tensor, run: &Run) -> Result<Tensor> {
    if run.conditions().negative.is_none() {
        return Ok(output);
    }
    let job = &run.job;
    let unconditional = output.narrow(0, 0, job.num_images)?;
    let conditional = output.narrow(0, job.num_images, job.num_images)?;
    let prediction = (&unconditional + ((&conditional - &unconditional)? * job.guidance_scale)?)?;
    match job.guidance_rescale {
        0.0 => Ok(prediction),
        share => rescaled(&prediction, &conditional, share),
    }
}

/// Moves the guided prediction's spread towards the conditional one's (Lin 2023, "Common Diffusion Noise Schedules and
/// Sample Steps are Flawed", eq. 15 and 16), which strong guidance inflates.
fn rescaled(prediction: &Tensor, conditional: &Tensor, share: f64) -> Result<Tensor> {
    let ratio = (standard_deviation(conditional)? / standard_deviation(prediction)?)?;
    let rescaled = prediction.broadcast_mul(&ratio)?;
    (rescaled * share)? + (prediction * (1.0 - share))?
}

/// Of each sample `[b, c, h, w]`, as `[b, 1, 1, 1]`, with the n - 1 of torch's `std`.
fn standard_deviation(samples: &Tensor) -> Result<Tensor> {
    let batch = samples.dim(0)?;
    samples
        .flatten_from(1)?
        .var(1)?
        .sqrt()?
        .reshape((batch, 1, 1, 1))
}

/// The guidance scale as an input of the UNet, `[1, size]` f32, for models distilled under guidance (LCM): the sinusoid
/// of `get_guidance_scale_embedding` in diffusers. Every product is rounded to f32 as there: the angles reach thousands
/// of radians, where a rounding shows in the fourth digit of the sine.
pub(crate) fn embedding(guidance_scale: f64, size: usize) -> Vec<f32> {
    let half = size / 2;
    let weight = (guidance_scale - 1.0) as f32 * 1000.0;
    let decay = 10_000_f32.ln() / half.saturating_sub(1) as f32;
    let angles = (0..half).map(|i| weight * (i as f32 * -decay).exp());
    let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
    let mut embedding = [sines, cosines].concat();
    embedding.resize(size, 0.0);
    embedding
}
