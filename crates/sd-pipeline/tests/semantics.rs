//! The built-in model does what it is told with pictures: numbers that match a reference would not show that a mask is used
//! upside down in both.

mod common;

use std::{io::Cursor, ops::ControlFlow, sync::LazyLock};

use image::{
    ImageFormat,
    imageops::{self, FilterType},
};
use sd_pipeline::{Hires, Picture, Pipeline, Request, RgbImage, Upscaler};

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| common::pipeline("builtin"));

fn draw(request: &Request) -> RgbImage {
    let made = PIPELINE.generate(request, |_| ControlFlow::Continue(()));
    made.unwrap().images.remove(0)
}

fn drawing(prompt: &str, seed: u64) -> Request {
    Request {
        seed: Some(seed),
        ..Request::new(format!("{prompt} on a white background"))
    }
}

fn encoded(picture: &RgbImage) -> Picture {
    let mut png = Cursor::new(vec![]);
    picture.write_to(&mut png, ImageFormat::Png).unwrap();
    Picture::from_bytes(png.into_inner())
}

/// Pixels of a kind of colour.
fn count(picture: &RgbImage, is: impl Fn([u8; 3]) -> bool) -> usize {
    picture.pixels().filter(|pixel| is(pixel.0)).count()
}

fn is_green([red, green, blue]: [u8; 3]) -> bool {
    green > red.saturating_add(40) && green > blue.saturating_add(40)
}

fn is_red([red, green, blue]: [u8; 3]) -> bool {
    red > green.saturating_add(90) && red > blue.saturating_add(90)
}

#[test]
fn inpainting_puts_a_green_star_where_the_mask_is_and_nothing_elsewhere() {
    let original = draw(&drawing("a red circle", 1));
    assert!(count(&original, is_red) > 2000 && count(&original, is_green) == 0);
    // It holds the circle.
    let masked = |x: u32, y: u32| (16..100).contains(&x) && (24..106).contains(&y);
    let mask = RgbImage::from_fn(128, 128, |x, y| {
        image::Rgb([if masked(x, y) { 255 } else { 0 }; 3])
    });
    let request = Request {
        init_image: Some(encoded(&original)),
        mask_image: Some(encoded(&mask)),
        ..drawing("a green star", 2)
    };
    let overlaid = Request {
        overlay: Some(true),
        ..request.clone()
    };
    for (request, tolerance) in [(request, 4), (overlaid, 0)] {
        let made = draw(&request);
        for (x, y, pixel) in made.enumerate_pixels() {
            let levels = pixel.0.iter().zip(original.get_pixel(x, y).0);
            let off = levels.map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(
                masked(x, y) || off <= tolerance,
                "{x}, {y}: {off} levels off"
            );
        }
        let (green, red) = (count(&made, is_green), count(&made, is_red));
        assert!(
            green > 800 && red == 0,
            "{green} green pixels, {red} red ones"
        );
    }
}

#[test]
fn little_strength_keeps_the_layout_and_much_does_not() {
    let original = draw(&drawing("a small red circle above a blue square", 1));
    let shapes = |picture: &RgbImage| -> Vec<bool> {
        let drawn = |pixel: &image::Rgb<u8>| pixel.0.iter().any(|level| *level < 170);
        picture.pixels().map(drawn).collect()
    };
    let before = shapes(&original);
    // Intersection over union of what is drawn.
    let kept = |strength: f64| {
        let made = draw(&Request {
            init_image: Some(encoded(&original)),
            strength: Some(strength),
            ..drawing("a small green circle above a purple square", 2)
        });
        let (green, red) = (count(&made, is_green), count(&made, is_red));
        assert!(
            green > 300 && red == 0,
            "{strength}: {green} green pixels, {red} red ones"
        );
        let pairs = || before.iter().zip(shapes(&made));
        let both = pairs().filter(|(before, after)| **before && *after).count();
        let either = pairs().filter(|(before, after)| **before || *after).count();
        both as f64 / either as f64
    };
    let (little, much) = (kept(0.3), kept(1.0));
    assert!(
        little > 0.85 && much < 0.75,
        "{little} and {much} of the shapes are kept"
    );
}

#[test]
fn a_second_pass_is_sharper_than_enlarging_alone() {
    let first = drawing("a small red heart", 5);
    let second = Request {
        hires: Some(Hires {
            upscaler: Some(Upscaler::Lanczos),
            strength: Some(0.3),
            ..Hires::default()
        }),
        ..first.clone()
    };
    let enlarged = imageops::resize(&draw(&first), 256, 256, FilterType::Lanczos3);
    let refined = draw(&second);
    assert_eq!(refined.dimensions(), (256, 256));
    // One heart, not four.
    let (before, after) = (count(&enlarged, is_red), count(&refined, is_red));
    assert!(
        before.abs_diff(after) * 2 < before,
        "{before} and {after} red pixels"
    );
    let (before, after) = (steepness(&enlarged), steepness(&refined));
    assert!(
        after > 1.15 * before,
        "edges of {before} and of {after} levels a pixel"
    );
}

/// How fast brightness changes where it does: the mean change between neighbouring pixels, weighted by itself.
fn steepness(picture: &RgbImage) -> f64 {
    let grey = imageops::grayscale(picture);
    let (mut sum, mut squares) = (0.0, 0.0);
    for y in 0..grey.height() - 1 {
        for x in 0..grey.width() - 1 {
            let level = |x, y| f64::from(grey.get_pixel(x, y).0[0]);
            let change = (level(x + 1, y) - level(x, y)).hypot(level(x, y + 1) - level(x, y));
            sum += change;
            squares += change * change;
        }
    }
    squares / sum
}
