//! Every size and number works or is an error.

use image::imageops::crop_imm;
use image::{GrayImage, Luma, Rgb, RgbImage};
use proptest::prelude::*;
use sd_image::{
    Error, Filter, Limits, Margins, Region, ResizeMode, crop_region, fit, gaussian_blur, invert,
    outpaint, overlay, resize,
};

const FILTERS: [Filter; 4] = [
    Filter::Nearest,
    Filter::Bilinear,
    Filter::Bicubic,
    Filter::Lanczos,
];
const MODES: [ResizeMode; 3] = [ResizeMode::Stretch, ResizeMode::Fill, ResizeMode::Crop];

/// A picture whose pixels all differ from their neighbours.
fn checked(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let level = if (x + y) % 2 == 0 { 255 } else { 0 };
        Rgb([level, 255 - level, (x * 7 + y * 13) as u8])
    })
}

proptest! {
    #[test]
    fn a_flat_picture_stays_flat(
        from in (1..40_u32, 1..40_u32), to in (1..60_u32, 1..60_u32), level: u8, filter in 0..4_usize,
    ) {
        let flat = GrayImage::from_pixel(from.0, from.1, Luma([level]));
        let resized = resize(&flat, to.0, to.1, FILTERS[filter]).unwrap();
        prop_assert_eq!(&resized, &GrayImage::from_pixel(to.0, to.1, Luma([level])));
    }

    #[test]
    fn a_picture_of_the_right_size_is_left_alone(size in (1..30_u32, 1..30_u32), filter in 0..4_usize, mode in 0..3_usize) {
        let picture = checked(size.0, size.1);
        prop_assert_eq!(&resize(&picture, size.0, size.1, FILTERS[filter]).unwrap(), &picture);
        prop_assert_eq!(&fit(&picture, size.0, size.1, MODES[mode]).unwrap(), &picture);
    }

    #[test]
    fn every_size_is_met_or_refused(from in (0..30_u32, 0..30_u32), to in (0..50_u32, 0..50_u32), mode in 0..3_usize) {
        match fit(&checked(from.0, from.1), to.0, to.1, MODES[mode]) {
            Ok(fitted) => prop_assert_eq!(fitted.dimensions(), to),
            Err(error) => prop_assert!(matches!(error, Error::Resize { .. }), "{error:?}"),
        }
    }

    #[test]
    fn a_crop_is_the_middle_of_the_whole(from in (1..40_u32, 1..40_u32), to in (1..50_u32, 1..50_u32)) {
        let picture = checked(from.0, from.1);
        // In proportion, and as high or as wide as asked for.
        let inner = match to.0 * from.1 > from.0 * to.1 {
            true => (to.0, from.1 * to.0 / from.0),
            false => (from.0 * to.1 / from.1, to.1),
        };
        let whole = resize(&picture, inner.0, inner.1, Filter::Lanczos).unwrap();
        let (left, top) = (inner.0 / 2 - to.0 / 2, inner.1 / 2 - to.1 / 2);
        let middle = crop_imm(&whole, left, top, to.0, to.1).to_image();
        prop_assert_eq!(&fit(&picture, to.0, to.1, ResizeMode::Crop).unwrap(), &middle);
    }

    #[test]
    fn blurring_keeps_the_size_and_the_range(size in (0..40_u32, 0..40_u32), radius in 0.0..1024.0_f64) {
        let mask = GrayImage::from_fn(size.0, size.1, |x, y| Luma([if (x / 3 + y / 5) % 2 == 0 { 40 } else { 200 }]));
        let blurred = gaussian_blur(&mask, radius).unwrap();
        prop_assert_eq!(blurred.dimensions(), size);
        prop_assert!(blurred.pixels().all(|pixel| (39..=201).contains(&pixel.0[0])));
    }

    #[test]
    fn a_crop_region_holds_the_mask_and_lies_in_the_picture(
        size in (1..60_u32, 1..60_u32),
        at in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        to in (1..u32::from(u16::MAX), 1..u32::from(u16::MAX)),
        padding: u32,
    ) {
        let (x, y) = (at.0.index(size.0 as usize) as u32, at.1.index(size.1 as usize) as u32);
        let mut mask = GrayImage::new(size.0, size.1);
        mask.put_pixel(x, y, Luma([1]));
        let Region { left, top, right, bottom } = crop_region(&mask, to.0, to.1, padding).unwrap();
        prop_assert!(left <= x && x < right && right <= size.0);
        prop_assert!(top <= y && y < bottom && bottom <= size.1);
    }

    #[test]
    fn an_overlay_keeps_what_is_black_and_takes_what_is_white(size in (1..20_u32, 1..20_u32), region: bool) {
        let original = checked(size.0, size.1);
        let repainted = RgbImage::from_pixel(size.0, size.1, Rgb([9, 99, 199]));
        let mask = GrayImage::from_fn(size.0, size.1, |x, _| Luma([if x % 2 == 0 { 255 } else { 0 }]));
        let whole = Region { left: 0, top: 0, right: size.0, bottom: size.1 };
        let result = overlay(&original, &mask, &repainted, region.then_some(whole)).unwrap();
        for (x, y, pixel) in result.enumerate_pixels() {
            let expected = if x % 2 == 0 { &repainted } else { &original };
            prop_assert_eq!(pixel, expected.get_pixel(x, y));
        }
    }

    #[test]
    fn outpainting_keeps_the_picture_and_marks_the_rest(size in (1..12_u32, 1..12_u32), margins in [0..9_u32, 0..9, 0..9, 0..9]) {
        let picture = checked(size.0, size.1);
        let [left, top, right, bottom] = margins;
        let (larger, mut mask) = outpaint(&picture, Margins { left, top, right, bottom }, &Limits::default()).unwrap();
        prop_assert_eq!(larger.dimensions(), (left + size.0 + right, top + size.1 + bottom));
        for (x, y, pixel) in larger.enumerate_pixels() {
            let inside = x.checked_sub(left).zip(y.checked_sub(top)).and_then(|(x, y)| picture.get_pixel_checked(x, y));
            prop_assert_eq!(mask.get_pixel(x, y).0[0], if inside.is_some() { 0 } else { 255 });
            let nearest = (x.saturating_sub(left).min(size.0 - 1), y.saturating_sub(top).min(size.1 - 1));
            prop_assert_eq!(pixel, picture.get_pixel(nearest.0, nearest.1));
        }
        invert(&mut mask);
        prop_assert_eq!(mask.pixels().filter(|pixel| pixel.0 == [255]).count(), picture.pixels().count());
    }
}

#[test]
fn what_a_crop_cuts_is_not_made() {
    // The whole picture would have 8192 x 2^29 pixels.
    let cropped = fit(&checked(1, 65_536), 8192, 8, ResizeMode::Crop).unwrap();
    assert_eq!(cropped.dimensions(), (8192, 8));
}

#[test]
fn nonsense_is_an_error() {
    let mask = GrayImage::new(4, 4);
    for radius in [-1.0, f64::NAN, f64::INFINITY, 1e9] {
        assert!(
            matches!(gaussian_blur(&mask, radius), Err(Error::Radius { .. })),
            "{radius}"
        );
    }
    assert!(matches!(crop_region(&mask, 8, 8, 0), Err(Error::EmptyMask)));
    assert!(matches!(
        crop_region(&mask, 8, 0, 0),
        Err(Error::Resize { .. })
    ));
    assert!(matches!(
        resize(&mask, 65_536, 1, Filter::Lanczos),
        Err(Error::Resize { .. })
    ));
    for mode in MODES {
        assert!(matches!(
            fit(&mask, u32::MAX, u32::MAX, mode),
            Err(Error::Resize { .. })
        ));
    }

    let picture = checked(4, 4);
    assert!(matches!(
        overlay(&picture, &GrayImage::new(4, 5), &picture, None),
        Err(Error::Size { what: "mask", .. })
    ));
    let nowhere = Region {
        left: 3,
        top: 0,
        right: 2,
        bottom: 9,
    };
    assert!(matches!(
        overlay(&picture, &mask, &picture, Some(nowhere)),
        Err(Error::Resize { .. })
    ));
    let wide = Margins {
        left: u32::MAX,
        right: 7,
        ..Margins::default()
    };
    assert!(matches!(
        outpaint(&picture, wide, &Limits::default()),
        Err(Error::TooLarge { .. })
    ));
    assert!(outpaint(&RgbImage::new(0, 3), Margins::default(), &Limits::default()).is_err());
}
