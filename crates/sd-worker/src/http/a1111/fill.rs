//! `inpainting_fill` 0: the colours around a mask are spread under it, so that what was there does not shine through.

use std::io::Cursor;

use image::{ImageFormat, Rgb};
use sd_image::{GrayImage, Limits, RgbImage, gaussian_blur, invert, luma};
use sd_pipeline::{MaskPolarity, Picture, Request};

use crate::http::{ApiError, Result};

/// Standard deviations in pixels, and how often each is laid on: far colours first, near ones over them, as in the web
/// UI's table.
const ROUNDS: [(f64, usize); 5] = [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2)];

/// Fills what `mask_image` repaints of `init_image`. The mask is at most stretched to the picture's size.
///
/// # Errors
/// A picture cannot be read or is too large.
pub(super) fn fill(request: &mut Request, limits: &Limits) -> Result<()> {
    let (Some(picture), Some(mask)) = (&request.init_image, &request.mask_image) else {
        return Ok(());
    };
    let picture = picture
        .decode(limits)
        .map_err(|error| ApiError::invalid("init_images", format!("init_images: {error}")))?
        .rgb;
    let wrong_mask = |error: sd_image::Error| ApiError::invalid("mask", format!("mask: {error}"));
    let mut mask = luma(&mask.decode(limits).map_err(wrong_mask)?.rgb);
    if mask.dimensions() != picture.dimensions() {
        let (width, height) = picture.dimensions();
        mask = sd_image::resize(&mask, width, height, sd_image::Filter::Bilinear)
            .map_err(wrong_mask)?;
    }
    if request.mask_polarity == Some(MaskPolarity::BlackRepaints) {
        invert(&mut mask);
    }
    let filled = spread(&picture, &mask).map_err(wrong_mask)?;
    let mut file = Cursor::new(Vec::new());
    filled
        .write_to(&mut file, ImageFormat::Png)
        .map_err(|error| ApiError::internal(&error))?;
    request.init_image = Some(Picture::from_bytes(file.into_inner()));
    Ok(())
}

/// The picture where the mask is black, and blurred copies of that part, laid over each other, where it is white.
fn spread(picture: &RgbImage, mask: &GrayImage) -> sd_image::Result<RgbImage> {
    let mut known = mask.clone();
    invert(&mut known);
    // Colours times their weight: a blur of these brings no colour out of the mask.
    let weighted: [GrayImage; 3] = std::array::from_fn(|channel| {
        GrayImage::from_fn(picture.width(), picture.height(), |x, y| {
            let value = u32::from(picture.get_pixel(x, y)[channel]);
            let weight = u32::from(known.get_pixel(x, y)[0]);
            image::Luma([((value * weight + 127) / 255) as u8])
        })
    });
    let mut layers = vec![[0.0; 4]; known.len()];
    for (radius, times) in ROUNDS {
        let weight = gaussian_blur(&known, radius)?;
        let [red, green, blue] = [&weighted[0], &weighted[1], &weighted[2]]
            .map(|channel| gaussian_blur(channel, radius));
        let colours = [red?, green?, blue?];
        for _ in 0..times {
            lay_over(&mut layers, &colours, &weight);
        }
    }
    lay_over(&mut layers, &weighted, &known);
    let mut filled = picture.clone();
    for (pixel, layer) in filled.pixels_mut().zip(&layers) {
        *pixel = Rgb(std::array::from_fn(|channel| {
            let value = if layer[3] > 0.0 {
                layer[channel] / layer[3] * 255.0
            } else {
                0.0
            };
            value.round().min(255.0) as u8
        }));
    }
    Ok(filled)
}

/// Colours over others (Porter and Duff 1984). A layer is red, green and blue times their weight, and the weight, 0 to 1.
fn lay_over(layers: &mut [[f32; 4]], colours: &[GrayImage; 3], weight: &GrayImage) {
    let over = [&colours[0], &colours[1], &colours[2], weight].map(|channel| channel.as_raw());
    for (index, layer) in layers.iter_mut().enumerate() {
        let rest = 1.0 - f32::from(over[3][index]) / 255.0;
        *layer = std::array::from_fn(|channel| {
            f32::from(over[channel][index]) / 255.0 + rest * layer[channel]
        });
    }
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;

    /// Red on the left, blue on the right, and a green square in the middle that the mask covers.
    fn scene() -> (RgbImage, GrayImage) {
        let inside = |x: u32, y: u32| (12..20).contains(&x) && (12..20).contains(&y);
        let picture = RgbImage::from_fn(32, 32, |x, y| match (inside(x, y), x < 16) {
            (true, _) => Rgb([0, 255, 0]),
            (false, true) => Rgb([255, 0, 0]),
            (false, false) => Rgb([0, 0, 255]),
        });
        let mask = GrayImage::from_fn(32, 32, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]));
        (picture, mask)
    }

    #[test]
    fn the_masked_part_takes_the_colours_around_it() {
        let (picture, mask) = scene();
        let filled = spread(&picture, &mask).unwrap();
        for (x, y, pixel) in filled.enumerate_pixels() {
            if mask.get_pixel(x, y)[0] == 0 {
                assert_eq!(pixel, picture.get_pixel(x, y), "{x} {y}");
            } else {
                assert_eq!(pixel[1], 0, "green shines through at {x} {y}");
                assert!(
                    pixel[0] > 20 || pixel[2] > 20,
                    "nothing at {x} {y}: {pixel:?}"
                );
            }
        }
        let (left, right) = (filled.get_pixel(12, 16), filled.get_pixel(19, 16));
        assert!(
            left[0] > left[2] && right[2] > right[0],
            "{left:?} {right:?}"
        );
    }

    #[test]
    fn a_mask_of_everything_leaves_black() {
        let (picture, _) = scene();
        let mask = GrayImage::from_pixel(32, 32, Luma([255]));
        assert!(
            spread(&picture, &mask)
                .unwrap()
                .iter()
                .all(|&value| value == 0)
        );
    }

    #[test]
    fn a_request_gets_a_filled_picture_of_the_same_size() {
        let (picture, mask) = scene();
        let encoded = |write: &dyn Fn(&mut Cursor<Vec<u8>>)| {
            let mut file = Cursor::new(Vec::new());
            write(&mut file);
            Picture::from_bytes(file.into_inner())
        };
        let mut request = Request {
            init_image: Some(encoded(&|file| {
                picture.write_to(file, ImageFormat::Png).unwrap()
            })),
            mask_image: Some(encoded(&|file| {
                mask.write_to(file, ImageFormat::Png).unwrap()
            })),
            ..Request::new("x")
        };
        fill(&mut request, &Limits::default()).unwrap();
        let filled = request
            .init_image
            .unwrap()
            .decode(&Limits::default())
            .unwrap()
            .rgb;
        assert_eq!(filled, spread(&picture, &mask).unwrap());
    }
}
