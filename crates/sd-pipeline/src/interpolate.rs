//! Enlarging latents with the arithmetic of torch's `interpolate(..., align_corners=False)`.

use candle_core::{Device, Result, Tensor};

/// How values between two latents come about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// The nearest one before.
    Nearest,
    /// Of 2 each way.
    Bilinear,
    /// Of 4 each way, by a cubic (Keys 1981).
    Bicubic,
}

/// The free parameter of the cubic; torch's.
const A: f64 = -0.75;

/// `[n, c, h, w]` f32 brought to `height` x `width`.
pub(crate) fn interpolate(
    latents: &Tensor,
    height: usize,
    width: usize,
    mode: Mode,
) -> Result<Tensor> {
    let (images, channels, rows, columns) = latents.dims4()?;
    let values = latents.flatten_all()?.to_vec1::<f32>()?;
    let across = taps(columns, width, mode);
    let down = taps(rows, height, mode);
    let mut enlarged = Vec::with_capacity(images * channels * height * width);
    for plane in values.chunks_exact(rows * columns) {
        let wide: Vec<f64> = plane
            .chunks_exact(columns)
            .flat_map(|row| {
                across.iter().map(|taps| {
                    let weighted = taps.iter().map(|(at, weight)| weight * f64::from(row[*at]));
                    weighted.sum::<f64>()
                })
            })
            .collect();
        for taps in &down {
            enlarged.extend((0..width).map(|x| {
                let weighted = taps
                    .iter()
                    .map(|(at, weight)| weight * wide[at * width + x]);
                weighted.sum::<f64>() as f32
            }));
        }
    }
    Tensor::from_vec(enlarged, (images, channels, height, width), &Device::Cpu)?
        .to_device(latents.device())
}

/// For each of `to` values: which of `from` it is made of, and their weights.
fn taps(from: usize, to: usize, mode: Mode) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    let last = from.saturating_sub(1);
    (0..to)
        .map(|i| {
            let centre = scale * (i as f64 + 0.5) - 0.5;
            match mode {
                // In f32, as torch decides.
                Mode::Nearest => {
                    let at = (i as f32 * (from as f32 / to as f32)).floor() as usize;
                    vec![(at.min(last), 1.0)]
                }
                Mode::Bilinear => {
                    let centre = centre.max(0.0);
                    let (at, share) = (centre.floor() as usize, centre.fract());
                    vec![(at.min(last), 1.0 - share), ((at + 1).min(last), share)]
                }
                Mode::Bicubic => {
                    let share = centre - centre.floor();
                    let at = |offset: i64| {
                        (centre.floor() as i64 + offset).clamp(0, last as i64) as usize
                    };
                    [-1, 0, 1, 2]
                        .map(|offset| (at(offset), cubic((share - offset as f64).abs())))
                        .to_vec()
                }
            }
        })
        .collect()
}

/// The cubic's weight of a value this far away, up to 2.
fn cubic(distance: f64) -> f64 {
    let x = distance;
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    }
}
