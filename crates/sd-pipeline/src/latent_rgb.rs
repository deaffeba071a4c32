//! Latents as colours: the linear map that explains a model's pictures best.
//!
//! A latent pixel is mostly the mean colour of the square it stands for, in the autoencoder's own coordinates. The way
//! back is fitted to each autoencoder, as no table could know them all.

use candle_core::{DType, Device, Tensor};
use sd_config::LatentRgb;
use sd_models::vae::AutoencoderKl;

use crate::{Error, Result, error::Doing};

/// Fields of the colour chart, each way.
const FIELDS: usize = 8;
/// Pixels of the colour chart, each way, where a latent stands for the usual 8.
const CHART: usize = 256;
/// Keeps the fit defined when a latent channel is constant; too small to change it otherwise.
const RIDGE: f64 = 1e-6;

/// Pictures `[b, 3, h, w]`, about -1..1, of latents `[b, c, h, w]`.
pub(crate) fn decode(colours: &LatentRgb, latents: &Tensor) -> Result<Tensor> {
    let project = || {
        let (batch, _, height, width) = latents.dims4()?;
        let placed = |values: Tensor| values.to_dtype(DType::F32)?.to_device(latents.device());
        let factors =
            placed(Tensor::from_vec(colours.factors.concat(), ((), 3), &Device::Cpu)?.t()?)?;
        let bias = placed(Tensor::new(&colours.bias, &Device::Cpu)?)?;
        factors
            .contiguous()?
            .broadcast_matmul(&latents.flatten_from(2)?)?
            .broadcast_add(&bias.reshape((3, 1))?)?
            .reshape((batch, 3, height, width))
    };
    project().doing("projecting the latents to colours")
}

/// The map that an autoencoder itself implies: fitted to the latents of a chart of all mixtures of red, green and blue.
pub(crate) fn of_autoencoder(vae: &AutoencoderKl, factor: usize) -> Result<LatentRgb> {
    // A latent for each field at least, and no more latents than usual: attention among them grows with their square.
    let latents = (CHART / factor.max(1)).clamp(FIELDS, CHART / 8);
    let chart = chart(latents * factor).doing("painting the colour chart")?;
    let placed = chart.to_device(vae.device());
    let latents = vae
        .encode(&placed.doing("placing the colour chart")?)?
        .mode()?;
    let channels = latents.dim(1).doing("reading the chart's latents")?;
    let mut fit = LatentRgbFit::new(channels);
    fit.add(&latents, &chart)?;
    Ok(fit.solve())
}

/// A picture `[1, 3, side, side]` in -1..1: the 64 mixtures of four levels of each colour, scattered so that neighbours
/// differ, and blurred into each other, since plain fields would have few colours.
fn chart(side: usize) -> candle_core::Result<Tensor> {
    let mut fields = Vec::with_capacity(3 * FIELDS * FIELDS);
    for place in [1, 4, 16] {
        fields.extend((0..FIELDS * FIELDS).map(|field| {
            // 11 and 64 have no common divisor: every mixture is there once.
            let mixture = 11 * field % 64;
            (mixture / place % 4) as f32 * 2. / 3. - 1.
        }));
    }
    Tensor::from_vec(fields, (1, 3, FIELDS, FIELDS), &Device::Cpu)?
        .upsample_bilinear2d(side, side, false)
}

/// Least squares from latents to the colours of the pictures that belong to them.
///
/// A model's `vae/config.json` may hold the result under `sd_latent_rgb`.
#[derive(Clone, Debug)]
pub struct LatentRgbFit {
    /// Of the products of every two of: the latent channels, 1, red, green, blue. All that the samples are needed for.
    sums: Vec<Vec<f64>>,
}

impl LatentRgbFit {
    /// No samples yet.
    pub fn new(latent_channels: usize) -> Self {
        let size = latent_channels.saturating_add(4);
        Self {
            sums: vec![vec![0.; size]; size],
        }
    }

    /// Adds a sample for each latent pixel of `[b, c, h, w]`: the mean of the square that it stands for in pictures
    /// `[b, 3, n h, n w]` of values in -1..1, which are clamped to it.
    ///
    /// # Errors
    /// [`Error::NotImages`] if the pictures are not those of the latents; the device fails.
    pub fn add(&mut self, latents: &Tensor, pictures: &Tensor) -> Result<()> {
        let dims = |tensor: &Tensor| <[usize; 4]>::try_from(tensor.dims().to_vec()).ok();
        let wrong = || Error::NotImages {
            found: pictures.dims().to_vec(),
        };
        let [batch, channels, height, width] = dims(latents).ok_or_else(wrong)?;
        let [_, _, side, _] = dims(pictures).ok_or_else(wrong)?;
        let factor = side.checked_div(height).unwrap_or(0);
        let fits = dims(pictures) == Some([batch, 3, factor * height, factor * width]);
        if !fits || factor == 0 || channels + 4 != self.sums.len() {
            return Err(wrong());
        }
        let rows = || {
            let pictures = pictures.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            let colours = rows(&pictures.clamp(-1f32, 1f32)?.avg_pool2d(factor)?)?;
            candle_core::Result::Ok((rows(latents)?, colours))
        };
        let (latents, colours) = rows().doing("reading latents and colours")?;
        for (latents, colours) in latents.iter().zip(&colours) {
            let sample: Vec<f64> = latents
                .iter()
                .chain([&1.])
                .chain(colours)
                .copied()
                .collect();
            for (sums, a) in self.sums.iter_mut().zip(&sample) {
                for (sum, b) in sums.iter_mut().zip(&sample) {
                    *sum += a * b;
                }
            }
        }
        Ok(())
    }

    /// The map with the least squared error over all samples. Not a number without any.
    pub fn solve(&self) -> LatentRgb {
        let unknowns = self.sums.len() - 3;
        // The normal equations, solved by elimination. They are positive definite and need no pivoting.
        let mut rows: Vec<Vec<f64>> = self.sums[..unknowns].to_vec();
        let count = self.count();
        for (i, row) in rows.iter_mut().enumerate() {
            row[i] += RIDGE * count;
        }
        for k in 0..unknowns {
            let pivot = rows[k].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != k) {
                let share = row[k] / pivot[k];
                for (value, pivot) in row.iter_mut().zip(&pivot) {
                    *value -= share * pivot;
                }
            }
        }
        let colours = rows.iter().enumerate().map(|(i, row)| {
            let colour = &row[unknowns..];
            [0, 1, 2].map(|channel| colour[channel] / row[i])
        });
        let mut factors: Vec<[f64; 3]> = colours.collect();
        let bias = factors.pop().unwrap_or_default();
        LatentRgb { factors, bias }
    }

    /// The share of the samples' variance that `colours` explain (the coefficient of determination): 1 for all of it, 0
    /// for as much as one constant colour does, less for a worse map.
    pub fn r_squared(&self, colours: &LatentRgb) -> f64 {
        let unknowns = self.sums.len() - 3;
        let (mut unexplained, mut variance) = (0., 0.);
        for channel in 0..3 {
            let map = colours.factors.iter().chain([&colours.bias]);
            let mut weights: Vec<f64> = map.map(|colour| -colour[channel]).collect();
            weights.resize(unknowns + 3, 0.);
            weights[unknowns + channel] = 1.;
            // The square of (colour - map), summed over the samples.
            for (sums, a) in self.sums.iter().zip(&weights) {
                unexplained += a * sums
                    .iter()
                    .zip(&weights)
                    .map(|(sum, b)| sum * b)
                    .sum::<f64>();
            }
            let sums = &self.sums[unknowns + channel];
            variance += sums[unknowns + channel] - sums[unknowns - 1].powi(2) / self.count();
        }
        1. - unexplained / variance
    }

    /// Samples added.
    fn count(&self) -> f64 {
        let one = self.sums.len() - 4;
        self.sums[one][one]
    }
}

/// `[b, c, h, w]` as one row of `c` values for each pixel.
fn rows(tensor: &Tensor) -> candle_core::Result<Vec<Vec<f64>>> {
    tensor
        .permute((0, 2, 3, 1))?
        .flatten_to(2)?
        .to_dtype(DType::F64)?
        .to_vec2()
}
