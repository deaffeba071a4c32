//! Resizing, modes, masks, blur and overlay equal Pillow's and diffusers', level for level.

mod common;

use std::fs;

use common::{Golden, Samples, golden};
use image::{GrayImage, Luma, Pixel, Rgb};
use sd_image::{
    Filter, Region, ResizeMode, Result, binarize, crop_region, fit, gaussian_blur, luma, overlay,
    resize,
};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as NameError;

/// Splits `picture.how.WIDTHxHEIGHT`.
fn case(name: &str) -> Option<(&str, &str, u32, u32)> {
    let mut parts = name.split('.');
    let (picture, how, size) = (parts.next()?, parts.next()?, parts.next()?);
    let (width, height) = size.split_once('x')?;
    Some((
        picture,
        how,
        width.parse().unwrap(),
        height.parse().unwrap(),
    ))
}

/// An enum by its name in JSON.
fn named<'a, T: Deserialize<'a>>(name: &'a str) -> T {
    let name: Result<T, NameError> = T::deserialize(name.into_deserializer());
    name.unwrap()
}

/// Compares every picture of a fixture file that has a size in its name; returns how many there are.
fn compare<'a>(
    golden: &Golden,
    names: &'a [String],
    rgb: impl Fn(&Samples<Rgb<u8>>, &'a str, u32, u32) -> Result<Samples<Rgb<u8>>>,
    grey: impl Fn(&GrayImage, &'a str, u32, u32) -> Result<GrayImage>,
) -> usize {
    fn check<P: Pixel<Subpixel = u8>>(
        golden: &Golden,
        name: &str,
        picture: &str,
        ours: impl Fn(&Samples<P>) -> Result<Samples<P>>,
    ) {
        let ours = ours(&golden.get(picture)).unwrap();
        let theirs: Samples<P> = golden.get(name);
        assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
        assert!(
            ours.as_raw() == theirs.as_raw(),
            "{name}: {} levels off",
            common::levels_off(&ours, &theirs)
        );
    }

    let cases: Vec<_> = names
        .iter()
        .filter_map(|name| Some((name, case(name)?)))
        .collect();
    for (name, (picture, how, width, height)) in &cases {
        if golden.is_rgb(picture) {
            check(golden, name, picture, |picture| {
                rgb(picture, how, *width, *height)
            });
        } else {
            check(golden, name, picture, |picture| {
                grey(picture, how, *width, *height)
            });
        }
    }
    cases.len()
}

#[test]
fn every_filter_resizes_as_pillow() {
    let golden = Golden::read("resize.safetensors");
    let names = golden.names();
    let count = compare(
        &golden,
        &names,
        |picture, filter, width, height| resize(picture, width, height, named::<Filter>(filter)),
        |picture, filter, width, height| resize(picture, width, height, named::<Filter>(filter)),
    );
    assert_eq!(count, 6 * 4 * 6);
}

#[test]
fn every_mode_fits_as_diffusers() {
    let golden = Golden::read("fit.safetensors");
    let names = golden.names();
    let count = compare(
        &golden,
        &names,
        |picture, mode, width, height| fit(picture, width, height, named::<ResizeMode>(mode)),
        |picture, mode, width, height| fit(picture, width, height, named::<ResizeMode>(mode)),
    );
    assert_eq!(count, 3 * 3 * 5);
}

#[test]
fn brightness_and_the_binary_mask_are_pillows() {
    let golden = Golden::read("mask.safetensors");
    let mut mask = luma(&golden.rgb("colours"));
    assert!(mask == golden.grey("luma"));
    binarize(&mut mask);
    assert!(mask == golden.grey("binary"));
}

#[test]
fn every_radius_blurs_as_pillow() {
    let golden = Golden::read("blur.safetensors");
    let mut count = 0;
    for name in golden.names() {
        let Some((mask, radius)) = name.split_once('.') else {
            continue;
        };
        let ours = gaussian_blur(&golden.grey(mask), radius.parse().unwrap()).unwrap();
        let theirs = golden.grey(&name);
        assert!(
            ours == theirs,
            "{name}: {} levels off",
            common::levels_off(&ours, &theirs)
        );
        count += 1;
    }
    assert_eq!(count, 3 * 11);
}

#[test]
fn crop_regions_are_diffusers() {
    #[derive(Deserialize)]
    struct Case {
        /// Width and height.
        mask: (u32, u32),
        /// Left, top, right, bottom.
        white: [u32; 4],
        width: u32,
        height: u32,
        padding: u32,
        region: [u32; 4],
    }

    let cases: Vec<Case> =
        serde_json::from_slice(&fs::read(golden("crop_region.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 200);
    for Case {
        mask,
        white,
        width,
        height,
        padding,
        region,
    } in cases
    {
        let [left, top, right, bottom] = white;
        let marked = GrayImage::from_fn(mask.0, mask.1, |x, y| {
            Luma([u8::from(
                (left..right).contains(&x) && (top..bottom).contains(&y),
            )])
        });
        let found = crop_region(&marked, width, height, padding).unwrap();
        let context = format!("{white:?} of {mask:?} for {width}x{height} with {padding}");
        assert_eq!(
            [found.left, found.top, found.right, found.bottom],
            region,
            "{context}"
        );
    }
}

#[test]
fn overlays_are_diffusers() {
    let golden = Golden::read("overlay.safetensors");
    let region = Region {
        left: 5,
        top: 2,
        right: 25,
        bottom: 22,
    };
    for (prefix, region) in [("", None), ("region.", Some(region))] {
        let get = |name: &str| format!("{prefix}{name}");
        let mask = golden.grey(&get("mask"));
        let original = golden.rgb(&get("original"));
        let ours = overlay(&original, &mask, &golden.rgb(&get("repainted")), region).unwrap();
        assert!(ours == golden.rgb(&get("whole")), "{prefix}");
        for ((pixel, original), mask) in ours.pixels().zip(original.pixels()).zip(mask.pixels()) {
            assert!(mask.0 != [0] || pixel == original);
        }
    }
}
