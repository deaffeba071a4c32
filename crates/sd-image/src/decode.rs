//! Encoded bytes to 8-bit pixels, within limits.

use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{
    DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, Luma, Pixel, Rgb,
    RgbImage,
};

use crate::{Error, Result, jpeg, webp};

/// How large a picture may be. A larger one is refused by its header, before its pixels are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest side in pixels.
    pub max_side: u32,
    /// Most pixels.
    pub max_pixels: u64,
    /// Most bytes of the decoded pixels, in the picture's own depth and channels.
    pub max_alloc: u64,
}

impl Default for Limits {
    /// 8192 pixels a side, 32 Mi pixels and 256 MiB.
    fn default() -> Self {
        Self {
            max_side: 8192,
            max_pixels: 1 << 25,
            max_alloc: 1 << 28,
        }
    }
}

impl Limits {
    /// The bytes to allocate for a picture of this width and height.
    pub(crate) fn check(&self, (width, height): (u32, u32), num_bytes: u64) -> Result<usize> {
        let allowed = width.max(height) <= self.max_side
            && u64::from(width) * u64::from(height) <= self.max_pixels
            && num_bytes <= self.max_alloc;
        match usize::try_from(num_bytes) {
            Ok(num_bytes) if allowed => Ok(num_bytes),
            _ => Err(Error::TooLarge {
                width,
                height,
                num_bytes,
                limits: *self,
            }),
        }
    }

    /// What a decoder under these limits failed of.
    fn failed(&self, format: &'static str, source: ImageError) -> Error {
        match source {
            ImageError::Limits(_) => Error::Memory {
                format,
                max_alloc: self.max_alloc,
            },
            source => Error::Decode { format, source },
        }
    }
}

/// A decoded picture, turned as its EXIF orientation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The colours. As Pillow's `convert("RGB")`, transparency is dropped, not blended.
    pub rgb: RgbImage,
    /// The opacity (255 is opaque) of a picture that has any, of the same size.
    pub alpha: Option<GrayImage>,
}

/// Width and height as shown.
pub(crate) fn size(bytes: &[u8], limits: &Limits) -> Result<(u32, u32)> {
    let header = Header::read(bytes, limits)?;
    let (width, height) = header.decoder.dimensions();
    Ok(match header.orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    })
}

/// The picture's pixels.
pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded> {
    let Header {
        format,
        decoder,
        orientation,
        num_bytes,
    } = Header::read(bytes, limits)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let channels = usize::from(color.channel_count());
    if format == "JPEG" && !jpeg::is_whole(bytes) {
        return Err(Error::Truncated { format });
    }
    let mut samples = vec![0; num_bytes];
    decoder
        .read_image_boxed(&mut samples)
        .map_err(|source| limits.failed(format, source))?;
    if usize::from(color.bytes_per_pixel()) == 2 * channels {
        samples = samples.chunks_exact(2).map(high_byte).collect();
    }

    let pixels = samples.chunks_exact(channels);
    let alpha = color
        .has_alpha()
        .then(|| pixels.clone().map(|pixel| pixel[channels - 1]).collect());
    let rgb = match channels {
        3 => samples,
        4 => pixels
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect(),
        _ => pixels.flat_map(|pixel| [pixel[0]; 3]).collect(),
    };
    Ok(Decoded {
        rgb: turned(from_samples::<Rgb<u8>>(width, height, rgb), orientation).into_rgb8(),
        alpha: alpha.map(|alpha| {
            turned(from_samples::<Luma<u8>>(width, height, alpha), orientation).into_luma8()
        }),
    })
}

/// What is known before the pixels are allocated: they are allowed.
struct Header<'a> {
    format: &'static str,
    decoder: Box<dyn ImageDecoder + 'a>,
    orientation: Orientation,
    num_bytes: usize,
}

impl<'a> Header<'a> {
    fn read(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        let format = match image::guess_format(bytes) {
            Ok(ImageFormat::Png) => "PNG",
            Ok(ImageFormat::Jpeg) => "JPEG",
            Ok(ImageFormat::WebP) => "WebP",
            _ => return Err(Error::Format),
        };
        if format == "WebP" {
            for (width, height) in webp::frames(bytes) {
                limits.check((width, height), u64::from(width) * u64::from(height) * 4)?;
            }
        }
        let failed = |source| limits.failed(format, source);
        let mut decoder = decoder(format, bytes, limits).map_err(failed)?;
        Ok(Self {
            num_bytes: limits.check(decoder.dimensions(), decoder.total_bytes())?,
            orientation: decoder.orientation().map_err(failed)?,
            format,
            decoder,
        })
    }
}

fn decoder<'a>(
    format: &str,
    bytes: &'a [u8],
    limits: &Limits,
) -> Result<Box<dyn ImageDecoder + 'a>, ImageError> {
    let bytes = Cursor::new(bytes);
    Ok(match format {
        "PNG" => {
            let mut own = image::Limits::no_limits();
            own.max_alloc = Some(limits.max_alloc);
            Box::new(PngDecoder::with_limits(bytes, own)?)
        }
        "JPEG" => Box::new(JpegDecoder::new(bytes)?),
        _ => Box::new(WebPDecoder::new(bytes)?),
    })
}

/// The byte that is kept of a 16-bit sample, in native order. As Pillow for colours; 16-bit grey, which Pillow clips to
/// white, is treated alike.
fn high_byte(sample: &[u8]) -> u8 {
    sample[if cfg!(target_endian = "big") { 0 } else { 1 }]
}

/// A picture of `channels * width * height` samples.
fn from_samples<P: Pixel<Subpixel = u8>>(
    width: u32,
    height: u32,
    samples: Vec<u8>,
) -> ImageBuffer<P, Vec<u8>> {
    ImageBuffer::from_raw(width, height, samples).expect("the decoder filled every sample")
}

fn turned(pixels: impl Into<DynamicImage>, orientation: Orientation) -> DynamicImage {
    let mut pixels = pixels.into();
    pixels.apply_orientation(orientation);
    pixels
}
