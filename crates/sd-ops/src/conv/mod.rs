//! Two-dimensional convolution.

mod direct;
mod weight;
mod winograd;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::{buffer::unwritten, values};

pub use weight::ConvWeight;

/// How a kernel moves over the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Step of the kernel, in pixels.
    pub stride: usize,
    /// Zeros added on each side, in pixels.
    pub padding: usize,
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// How often each pixel of the input is repeated in both directions, the last ones perhaps less often.
    pub(crate) repeat: usize,
    /// Height and width after that, as are the two below.
    pub(crate) image: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) result: [usize; 2],
    pub(crate) window: Window,
}

impl Shape {
    /// Of `x [batch, inputs, height, width]` and `weight [outputs, inputs, kernel height, kernel width]`.
    pub(crate) fn new(x: [usize; 4], weight: [usize; 4], window: Window) -> Result<Self> {
        let [batch, inputs, height, width] = x;
        let [outputs, weight_inputs, kernel_height, kernel_width] = weight;
        if inputs != weight_inputs {
            bail!("convolution of {inputs} channels by a kernel of {weight_inputs}");
        }
        let side = |image: usize, kernel: usize| {
            let padded = window.padding.checked_mul(2)?.checked_add(image)?;
            (kernel > 0).then_some(())?;
            Some(padded.checked_sub(kernel)?.checked_div(window.stride)? + 1)
        };
        let (Some(result_height), Some(result_width)) =
            (side(height, kernel_height), side(width, kernel_width))
        else {
            bail!(
                "a {kernel_height}x{kernel_width} convolution with {window:?} does not fit into {height}x{width}"
            );
        };
        Ok(Self {
            batch,
            inputs,
            outputs,
            repeat: 1,
            image: [height, width],
            kernel: [kernel_height, kernel_width],
            result: [result_height, result_width],
            window,
        })
    }

    /// As [`new`](Self::new) with stride 1, of `x` whose pixels are repeated up to a height and a width of `size`.
    pub(crate) fn doubled(
        x: [usize; 4],
        size: [usize; 2],
        weight: [usize; 4],
        padding: usize,
    ) -> Result<Self> {
        let [batch, inputs, height, width] = x;
        if size.map(|side| side.div_ceil(2)) != [height, width] {
            bail!("{height}x{width} doubled to {size:?}, expected twice as much, or one less");
        }
        let window = Window { stride: 1, padding };
        let shape = Self::new([batch, inputs, size[0], size[1]], weight, window)?;
        Ok(Self { repeat: 2, ..shape })
    }

    /// Elements of one channel of an input.
    pub(crate) fn plane(&self) -> usize {
        let sides = self.image.iter().map(|side| side.div_ceil(self.repeat));
        sides.product()
    }

    /// The part of a line of a `plane` from pixel `x` of the image's line `y` on.
    #[inline(always)]
    pub(crate) fn read_line(&self, plane: &[f32], [y, x]: [usize; 2], line: &mut [f32]) {
        let width = self.image[1].div_ceil(self.repeat);
        let source = &plane[y / self.repeat * width..][..width];
        if self.repeat == 1 {
            copy(&source[x..x + line.len()], line);
        } else if self.repeat == 2 {
            // The second half of a pixel, whole ones, and the first half of one.
            let (second, line) = line.split_at_mut((x % 2).min(line.len()));
            second.fill(source[x / 2]);
            let source = &source[x.div_ceil(2)..];
            let (whole, first) = line.as_chunks_mut::<2>();
            for (pixel, v) in whole.iter_mut().zip(source) {
                *pixel = [*v; 2];
            }
            if let Some(v) = source.get(whole.len()) {
                first.fill(*v);
            }
        } else {
            for (x, v) in (x..).zip(line) {
                *v = source[x / self.repeat];
            }
        }
    }

    /// Elements of one channel of a result.
    pub(crate) fn result_pixels(&self) -> usize {
        self.result[0].saturating_mul(self.result[1])
    }

    /// Weights of one pair of an input and an output channel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Elements of all results.
    ///
    /// # Errors
    /// There cannot be so many.
    pub(crate) fn result_len(&self) -> Result<usize> {
        let [height, width] = self.result;
        let len = [self.outputs, height, width]
            .iter()
            .try_fold(self.batch, |len, &n| len.checked_mul(n))
            .filter(|len| *len <= isize::MAX as usize / size_of::<f32>());
        match len {
            Some(len) => Ok(len),
            None => bail!("the result of {self:?} is too large"),
        }
    }

    /// The bias to add, of all samples or of each one, which may be none.
    pub(crate) fn bias(&self, bias: Option<&Tensor>) -> Result<Tensor> {
        let Self { batch, outputs, .. } = *self;
        match bias {
            Some(bias) if [&[outputs][..], &[batch, outputs]].contains(&bias.dims()) => {
                bias.contiguous()
            }
            Some(bias) => bail!(
                "bias {:?}, expected [{outputs}] or [{batch}, {outputs}]",
                bias.shape()
            ),
            None => Tensor::zeros(outputs, DType::F32, &Device::Cpu),
        }
    }
}

/// `to.copy_from_slice(from)` for short slices, without a call.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    const LANES: usize = 16;
    match (from.last_chunk::<LANES>(), to.last_chunk_mut::<LANES>()) {
        (Some(last), Some(to)) => *to = *last,
        _ => return to.copy_from_slice(from),
    }
    let (from, to) = (from.as_chunks::<LANES>().0, to.as_chunks_mut::<LANES>().0);
    for (from, to) in from.iter().zip(to) {
        *to = *from;
    }
}

/// Convolves `x [batch, inputs, height, width]` with `weight [outputs, inputs, kernel height, kernel width]`, adds
/// `bias [outputs]`, or `[batch, outputs]` of each sample's own: `[batch, outputs, height', width']`. `x` and the bias are f32 on
/// the CPU. No gradient is recorded.
///
/// Errors are some 5e-7 of the largest result; 4e-6 for 3x3 kernels of stride 1 and padding 1 with at least 32
/// channels on both sides and 16 pixels in both directions.
///
/// # Errors
/// A tensor is of another shape, dtype or device; the stride is 0; the kernel is larger than the padded input.
pub fn conv2d(
    x: &Tensor,
    weight: &ConvWeight,
    bias: Option<&Tensor>,
    window: Window,
) -> Result<Tensor> {
    let shape = Shape::new(x.dims4()?.into(), weight.shape(), window)?;
    run(shape, x, weight, bias)
}

/// [`conv2d`] with stride 1 of `x` in which every pixel is repeated in both directions, without making that: nearest-neighbour
/// upsampling, then convolution. `size` is the height and width after the upsampling, each one twice that of `x` or one less,
/// for which the last pixels are not repeated.
///
/// # Errors
/// As [`conv2d`], or the size is another.
pub fn conv2d_doubled(
    x: &Tensor,
    size: [usize; 2],
    weight: &ConvWeight,
    bias: Option<&Tensor>,
    padding: usize,
) -> Result<Tensor> {
    let shape = Shape::doubled(x.dims4()?.into(), size, weight.shape(), padding)?;
    run(shape, x, weight, bias)
}

fn run(shape: Shape, x: &Tensor, weight: &ConvWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let bias = shape.bias(bias)?;
    let mut out = unwritten(shape.result_len()?);
    let x = x.contiguous()?;
    {
        let [x, bias] = [&x, &bias].map(Tensor::storage_and_layout);
        let conv = if winograd::pays(&shape) {
            winograd::conv
        } else {
            direct::conv
        };
        conv(
            &shape,
            values(&x.0, x.1)?,
            weight,
            values(&bias.0, bias.1)?,
            &mut out,
        );
    }
    let [height, width] = shape.result;
    Tensor::from_vec(
        out,
        (shape.batch, shape.outputs, height, width),
        &Device::Cpu,
    )
}

/// Bytes that [`conv2d`] holds at most during the call beside its arguments and its result, for an `x` and a `weight` of these
/// sizes and of `dtype`; [`conv2d_doubled`] holds as much as [`conv2d`] of an `x` of its size.
///
/// # Errors
/// The sizes do not fit together.
pub fn conv2d_scratch(
    x: [usize; 4],
    weight: [usize; 4],
    dtype: DType,
    window: Window,
) -> Result<u64> {
    let shape = Shape::new(x, weight, window)?;
    let elements = if winograd::pays(&shape) {
        winograd::scratch(&shape)
    } else {
        let widened = match dtype {
            DType::F32 => 0,
            _ => weight
                .iter()
                .fold(1, |len: usize, n| len.saturating_mul(*n)),
        };
        direct::scratch(&shape).saturating_add(widened as u64)
    };
    Ok(elements.saturating_mul(size_of::<f32>() as u64))
}
