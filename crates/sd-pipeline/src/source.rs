//! The picture that a job changes, and the part of it that may change.

use std::borrow::Cow;

use candle_core::{Device, Tensor};
use image::{GrayImage, RgbImage};
use sd_image::{
    Filter, Limits, Picture, Region, ResizeMode, binarize, check_fit, crop_region, fit,
    gaussian_blur, invert, luma, overlay, resize,
};

use crate::{Error, Job, MaskPolarity, Result, error::Doing, job::wrong};

/// A job's pictures, decoded.
#[derive(Debug)]
pub(crate) struct Source {
    original: RgbImage,
    mask: Option<Mask>,
    /// The size the model works at.
    size: (u32, u32),
    resize_mode: ResizeMode,
}

/// What of the original to paint anew.
#[derive(Debug)]
struct Mask {
    /// White where the picture is painted anew, black where it is kept, at the size of the mask given.
    pixels: GrayImage,
    /// The part of original and mask to work on; None: all of them.
    region: Option<Region>,
}

impl Source {
    /// None for a job without a picture.
    ///
    /// # Errors
    /// [`Error::Picture`] if one cannot be read; [`Error::Field`] if the mask marks nothing or does not fit the picture.
    pub(crate) fn new(job: &Job) -> Result<Option<Self>> {
        let Some(picture) = &job.init_image else {
            return Ok(None);
        };
        let original = decode("init_image", picture)?.rgb;
        let mask = job
            .mask_image
            .as_ref()
            .map(|mask| Mask::new(job, mask, &original))
            .transpose()?;
        let source = Self {
            original,
            mask,
            size: (side(job.width), side(job.height)),
            resize_mode: job.resize_mode.unwrap_or_default(),
        };
        source.check_sizes()?;
        Ok(Some(source))
    }

    /// Whether picture and mask can be brought to the model's size.
    fn check_sizes(&self) -> Result<()> {
        let check =
            |field, part| check_fit(part, self.size, self.resize_mode).map_err(unusable(field));
        let Some(mask) = &self.mask else {
            return check("init_image", self.original.dimensions());
        };
        match mask.region {
            Some(region) => check("init_image", (region.width(), region.height())),
            None => check("init_image", self.original.dimensions())
                .and_then(|()| check("mask_image", mask.pixels.dimensions())),
        }
    }

    /// The picture as the autoencoder takes it, `[1, 3, height, width]` in -1..1.
    pub(crate) fn image(&self, device: &Device) -> Result<Tensor> {
        let image = match self.mask.as_ref().and_then(|mask| mask.region) {
            Some(region) => Cow::Owned(region.crop(&self.original)),
            None => Cow::Borrowed(&self.original),
        };
        let (width, height) = self.size;
        let image = fit(&image, width, height, self.resize_mode).map_err(unusable("init_image"))?;
        to_tensor(&image, device)
    }

    /// The mask, `[1, 1, height, width]`: 1 where the picture is painted anew, otherwise 0.
    pub(crate) fn mask(&self, device: &Device) -> Result<Option<Tensor>> {
        let Some(mask) = &self.mask else {
            return Ok(None);
        };
        let pixels = match mask.region {
            Some(region) => Cow::Owned(region.crop(&mask.pixels)),
            None => Cow::Borrowed(&mask.pixels),
        };
        let (width, height) = self.size;
        let mut pixels =
            fit(&pixels, width, height, self.resize_mode).map_err(unusable("mask_image"))?;
        binarize(&mut pixels);
        let values: Vec<f32> = pixels
            .iter()
            .map(|value| f32::from(u8::from(*value > 0)))
            .collect();
        let shape = (1, 1, height as usize, width as usize);
        Tensor::from_vec(values, shape, device)
            .doing("placing the mask")
            .map(Some)
    }

    /// What was made, laid over the original at the original's size.
    pub(crate) fn overlay(&self, made: &RgbImage) -> Result<RgbImage> {
        let Some(mask) = &self.mask else {
            return Ok(made.clone());
        };
        let (width, height) = self.original.dimensions();
        let made = match mask.region {
            None if made.dimensions() != (width, height) => Cow::Owned(
                resize(made, width, height, Filter::Lanczos).map_err(unusable("init_image"))?,
            ),
            _ => Cow::Borrowed(made),
        };
        overlay(&self.original, &mask.pixels, &made, mask.region).map_err(unusable("mask_image"))
    }
}

impl Mask {
    fn new(job: &Job, picture: &Picture, original: &RgbImage) -> Result<Self> {
        let decoded = decode("mask_image", picture)?;
        let polarity = job.mask_polarity.unwrap_or_default();
        let mut pixels = match polarity {
            MaskPolarity::TransparentRepaints => decoded
                .alpha
                .ok_or_else(|| wrong("mask_image", "an opaque picture", "one with transparency"))?,
            // diffusers makes a coloured mask grey after its resizing; the roundings differ, and no more.
            MaskPolarity::WhiteRepaints | MaskPolarity::BlackRepaints => luma(&decoded.rgb),
        };
        if polarity != MaskPolarity::WhiteRepaints {
            invert(&mut pixels);
        }
        if pixels.iter().all(|value| *value == 0) {
            let expected = "a mask that marks what to paint anew";
            return Err(wrong("mask_image", "one that marks nothing", expected));
        }
        let together = job.overlay == Some(true) || job.padding_mask_crop.is_some();
        if together && pixels.dimensions() != original.dimensions() {
            let pixels_of = |(width, height)| format!("{width}x{height} pixels");
            return Err(wrong(
                "mask_image",
                pixels_of(pixels.dimensions()),
                format!("{}, as init_image has", pixels_of(original.dimensions())),
            ));
        }
        let pixels = gaussian_blur(&pixels, job.mask_blur.unwrap_or_default())
            .map_err(unusable("mask_image"))?;
        let region = job
            .padding_mask_crop
            .map(|padding| crop_region(&pixels, side(job.width), side(job.height), side(padding)))
            .transpose()
            .map_err(unusable("mask_image"))?;
        Ok(Self { pixels, region })
    }
}

/// 8-bit pixels as `[1, 3, height, width]` in -1..1, with the roundings of `VaeImageProcessor.preprocess`.
pub(crate) fn to_tensor(image: &RgbImage, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = image
        .iter()
        .map(|value| 2.0 * (f32::from(*value) / 255.0) - 1.0)
        .collect();
    let shape = (1, image.height() as usize, image.width() as usize, 3);
    Tensor::from_vec(values, shape, &Device::Cpu)
        .and_then(|image| image.permute((0, 3, 1, 2))?.contiguous()?.to_device(device))
        .doing("placing the picture")
}

/// Width and height of a picture as it is shown.
pub(crate) fn dimensions(field: &'static str, picture: &Picture) -> Result<(usize, usize)> {
    let (width, height) = picture.size(&Limits::default()).map_err(unusable(field))?;
    Ok((width as usize, height as usize))
}

fn decode(field: &'static str, picture: &Picture) -> Result<sd_image::Decoded> {
    picture.decode(&Limits::default()).map_err(unusable(field))
}

fn unusable(field: &'static str) -> impl Fn(sd_image::Error) -> Error {
    move |source| Error::Picture { field, source }
}

/// Sides of a job are far below the limit.
fn side(pixels: usize) -> u32 {
    u32::try_from(pixels).unwrap_or(u32::MAX)
}
