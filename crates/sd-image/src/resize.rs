//! Resampling with the arithmetic of Pillow's `Resample.c`: 8-bit pixels, 22-bit coefficients, rounded after each axis.

use std::f64::consts::PI;
use std::ops::Range;

use image::{ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bits after the point of a coefficient: 8 of 32 are a pixel's, 2 are left for sums beyond 1 and the sign.
const PRECISION: u32 = 32 - 8 - 2;

/// Longest side a picture is resized to.
const MAX_SIDE: u32 = 65_535;

/// How pixels are interpolated, as Pillow's `Image.Resampling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The pixel at the centre.
    Nearest,
    /// A triangle of 2 pixels.
    Bilinear,
    /// A cubic spline of 4 pixels, `a = -0.5` (Keys 1981).
    Bicubic,
    /// A windowed sinc of 6 pixels.
    Lanczos,
}

/// An interpolating kernel and the distance, in pixels, from which on it is 0.
struct Kernel {
    weight: fn(f64) -> f64,
    support: f64,
}

/// Source pixels from a line that make one pixel, and their weights.
struct Window {
    pixels: Range<usize>,
    weights: Vec<i32>,
}

/// A picture of any number of independent channels, resized to `width` x `height`. Reducing filters over all pixels.
///
/// # Errors
/// [`Error::Resize`] if a side, old or new, is 0, or a new one above 65535.
pub fn resize<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    filter: Filter,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let (from_width, from_height) = picture.dimensions();
    let whole = (0, 0, from_width, from_height);
    resize_from(picture, whole, width, height, filter)
}

/// Whether a picture can have been and become this wide and high.
pub(crate) fn check(from: (u32, u32), to: (u32, u32)) -> Result<()> {
    if [from.0, from.1, to.0, to.1].contains(&0) || to.0.max(to.1) > MAX_SIDE {
        return Err(Error::Resize { from, to });
    }
    Ok(())
}

/// As [`resize`], of the box (left, top, right, bottom), which lies in the picture and may be empty.
pub(crate) fn resize_from<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    (left, top, right, bottom): (u32, u32, u32, u32),
    width: u32,
    height: u32,
    filter: Filter,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    check(picture.dimensions(), (width, height))?;
    let Some(kernel) = filter.kernel() else {
        return Ok(nearest(picture, (left, top, right, bottom), width, height));
    };
    let columns = Axis::whole(picture.width(), left..right, width);
    let rows = Axis::whole(picture.height(), top..bottom, height);
    Ok(resample(picture, &kernel, &columns, &rows))
}

/// As [`resize`] with Lanczos' filter to the size (width, height), of which only a box is made: left and top, width and
/// height. The box lies in the new picture and, like the old one, has pixels; the new picture may be of any size.
pub(crate) fn resize_part<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    (width, height): (u32, u32),
    (left, top): (u32, u32),
    (part_width, part_height): (u32, u32),
) -> ImageBuffer<P, Vec<u8>> {
    let kernel = Kernel::LANCZOS;
    let columns = Axis {
        made: left..left + part_width,
        ..Axis::whole(picture.width(), 0..picture.width(), width)
    };
    let rows = Axis {
        made: top..top + part_height,
        ..Axis::whole(picture.height(), 0..picture.height(), height)
    };
    resample(picture, &kernel, &columns, &rows)
}

/// How the pixels along one side become others.
struct Axis {
    /// Pixels there are.
    old: u32,
    /// Those of them that the new ones show.
    span: Range<u32>,
    /// Pixels to be.
    new: u32,
    /// Those of them that are made.
    made: Range<u32>,
}

impl Axis {
    fn whole(old: u32, span: Range<u32>, new: u32) -> Self {
        let made = 0..new;
        Self {
            old,
            span,
            new,
            made,
        }
    }

    fn changes_nothing(&self) -> bool {
        self.span == (0..self.old) && self.made == (0..self.old) && self.new == self.old
    }
}

fn resample<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    kernel: &Kernel,
    columns: &Axis,
    rows: &Axis,
) -> ImageBuffer<P, Vec<u8>> {
    let channels = usize::from(P::CHANNEL_COUNT);
    let across = |pixels: &[u8]| {
        let windows = kernel.windows(columns);
        match P::CHANNEL_COUNT {
            1 => resize_rows::<1>(pixels, columns.old, &windows),
            2 => resize_rows::<2>(pixels, columns.old, &windows),
            3 => resize_rows::<3>(pixels, columns.old, &windows),
            _ => resize_rows::<4>(pixels, columns.old, &windows),
        }
    };
    let down = |pixels: &[u8], width: usize, windows: &[Window]| {
        resize_columns(pixels, width * channels, windows)
    };
    let (old_width, width) = (columns.old as usize, columns.made.len());
    // The order matters, as the first pass rounds and clips to 8 bits. This is the rule of Pillow 13; older ones always
    // begin with the rows.
    let fewer_rows = rows.old.saturating_sub(rows.new);
    let fewer_columns = columns.old.saturating_sub(columns.new);
    let pixels = match (columns.changes_nothing(), rows.changes_nothing()) {
        (true, true) => picture.as_raw().clone(),
        (false, true) => across(picture),
        (true, false) => down(picture, old_width, &kernel.windows(rows)),
        (false, false) if u64::from(fewer_rows) > 2 * u64::from(fewer_columns) => {
            across(&down(picture, old_width, &kernel.windows(rows)))
        }
        (false, false) => {
            // Rows that no window looks at are not made wider.
            let mut windows = kernel.windows(rows);
            let first = windows.iter().map(|window| window.pixels.start).min();
            let first = first.unwrap_or(0);
            let end = windows.iter().map(|window| window.pixels.end).max();
            let seen = first..end.unwrap_or(0);
            for window in &mut windows {
                window.pixels = window.pixels.start - first..window.pixels.end - first;
            }
            let stride = old_width * channels;
            let seen = &picture.as_raw()[seen.start * stride..seen.end * stride];
            down(&across(seen), width, &windows)
        }
    };
    let (width, height) = (columns.made.len() as u32, rows.made.len() as u32);
    ImageBuffer::from_raw(width, height, pixels).expect("each axis has its new length")
}

impl Filter {
    /// None for the one that does not interpolate.
    fn kernel(self) -> Option<Kernel> {
        match self {
            Self::Nearest => None,
            Self::Bilinear => Some(Kernel {
                weight: triangle,
                support: 1.0,
            }),
            Self::Bicubic => Some(Kernel {
                weight: cubic,
                support: 2.0,
            }),
            Self::Lanczos => Some(Kernel::LANCZOS),
        }
    }
}

impl Kernel {
    const LANCZOS: Self = Self {
        weight: lanczos,
        support: 3.0,
    };

    /// One window for each pixel that is made.
    fn windows(&self, axis: &Axis) -> Vec<Window> {
        let Axis { span, old, .. } = axis;
        let scale = f64::from(span.end - span.start) / f64::from(axis.new);
        let spread = scale.max(1.0);
        let support = self.support * spread;
        axis.made
            .clone()
            .map(|i| {
                let centre = f64::from(span.start) + (f64::from(i) + 0.5) * scale;
                // Casts cut towards zero and saturate.
                let first = (centre - support + 0.5) as usize;
                let end = ((centre + support + 0.5) as usize).min(*old as usize);
                let inverse = 1.0 / spread;
                let weights: Vec<f64> = (first..end)
                    .map(|x| (self.weight)((x as f64 - centre + 0.5) * inverse))
                    .collect();
                let sum: f64 = weights.iter().sum();
                let sum = if sum == 0.0 { 1.0 } else { sum };
                Window {
                    pixels: first..end,
                    weights: weights.iter().map(|weight| fixed(weight / sum)).collect(),
                }
            })
            .collect()
    }
}

/// Fixed point, halves away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (scaled + 0.5_f64.copysign(weight)) as i32
}

/// A weighted sum of pixels as a pixel.
fn pixel(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Half a level, so that [`pixel`] rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Resizes each row; pixels of `C` channels.
fn resize_rows<const C: usize>(rows: &[u8], width: u32, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() / width as usize * windows.len());
    for row in rows.chunks_exact(width as usize * C) {
        let (row, _) = row.as_chunks::<C>();
        for window in windows {
            let mut sums = [HALF; C];
            for (pixel, weight) in row[window.pixels.clone()].iter().zip(&window.weights) {
                for (sum, sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*sample) * weight;
                }
            }
            out.extend(sums.map(pixel));
        }
    }
    out
}

/// Resizes each column; rows of `stride` bytes.
fn resize_columns(rows: &[u8], stride: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stride * windows.len());
    let mut sums = vec![HALF; stride];
    for window in windows {
        sums.fill(HALF);
        let rows = rows[window.pixels.start * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(&window.weights) {
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(*sample) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| pixel(*sum)));
    }
    out
}

/// Pillow's scaling transform, which adds the step up from pixel to pixel.
fn nearest<P: Pixel<Subpixel = u8>>(
    picture: &ImageBuffer<P, Vec<u8>>,
    (left, top, right, bottom): (u32, u32, u32, u32),
    width: u32,
    height: u32,
) -> ImageBuffer<P, Vec<u8>> {
    let positions = |span: Range<u32>, len: u32, new: u32| -> Vec<u32> {
        let step = f64::from(span.end - span.start) / f64::from(new);
        let mut at = f64::from(span.start) + step * 0.5;
        (0..new)
            .map(|_| {
                let position = (at as u32).min(len - 1);
                at += step;
                position
            })
            .collect()
    };
    let columns = positions(left..right, picture.width(), width);
    let rows = positions(top..bottom, picture.height(), height);
    ImageBuffer::from_fn(width, height, |x, y| {
        *picture.get_pixel(columns[x as usize], rows[y as usize])
    })
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) {
        sinc(x) * sinc(x / 3.0)
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}
