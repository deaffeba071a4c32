//! Variations of a picture: its noise, turned a little towards another one.

use candle_core::{Device, Tensor};
use sd_scheduler::NoiseSource;

use crate::{Job, Result, error::Doing, init};

/// Above this mean cosine two noises have no plane to turn in.
const PARALLEL: f64 = 0.9995;

/// The noise `[n, c, h, w]` of a job, turned towards that of its variation seed, if it has one.
pub(crate) fn bent(noise: Tensor, job: &Job) -> Result<Tensor> {
    let (Some(_), Some(strength)) = (job.variation_seed, job.variation_strength) else {
        return Ok(noise);
    };
    let mut generators = init::generators(job, |image| {
        job.image_variation_seed(image).unwrap_or_default()
    });
    let other = generators
        .noise(&noise)
        .doing("drawing the variation's noise")?;
    slerp(&noise, &other, strength).doing("turning the noise to its variation")
}

/// Spherical interpolation (Shoemake 1985) from `a` at 0 to `b` at 1, both `[n, c, h, w]`: of each column of each channel
/// for itself, as the AUTOMATIC1111 web UI does it, in proportion to sin((1 - t) angle) and sin(t angle). Where the two are
/// parallel, linear.
fn slerp(a: &Tensor, b: &Tensor, t: f64) -> candle_core::Result<Tensor> {
    let (images, channels, height, width) = a.dims4()?;
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (first, second) = (values(a)?, values(b)?);
    let mut turned = vec![0.0; first.len()];
    for image in 0..images {
        let columns = (0..channels * width).map(|column| {
            let start = (image * channels + column / width) * height * width + column % width;
            (start..).step_by(width).take(height)
        });
        let cosines: Vec<f64> = columns
            .clone()
            .map(|column| cosine(column.map(|at| (first[at], second[at]))))
            .collect();
        let parallel = cosines.iter().sum::<f64>() > PARALLEL * cosines.len() as f64;
        for (column, cosine) in columns.zip(cosines) {
            let (of_first, of_second) = if parallel {
                (1.0 - t, t)
            } else {
                weights(cosine, t)
            };
            for at in column {
                let sum = of_first * f64::from(first[at]) + of_second * f64::from(second[at]);
                turned[at] = sum as f32;
            }
        }
    }
    Tensor::from_vec(turned, a.shape(), &Device::Cpu)?.to_device(a.device())
}

/// Of two vectors, given as pairs of their elements.
fn cosine(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (dot, a, b) = pairs
        .map(|(a, b)| (f64::from(a), f64::from(b)))
        .fold((0.0, 0.0, 0.0), |(dot, aa, bb), (a, b)| {
            (dot + a * b, aa + a * a, bb + b * b)
        });
    (dot / (a * b).sqrt()).clamp(-1.0, 1.0)
}

fn weights(cosine: f64, t: f64) -> (f64, f64) {
    let angle = cosine.acos();
    let sine = angle.sin();
    // Columns of one latent are always parallel. NaN, for a column of zeros, is too.
    if sine > 1e-6 {
        (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
    } else {
        (1.0 - t, t)
    }
}
