//! Files decode to Pillow's pixels; what is damaged or too large is an error.

mod common;

use std::fs;

use common::{Golden, golden};
use image::RgbImage;
use proptest::prelude::*;
use sd_image::{Error, Limits, Picture};

fn picture(file: &str) -> Picture {
    Picture::from_bytes(fs::read(golden(file)).unwrap())
}

fn decode(bytes: &[u8]) -> Result<sd_image::Decoded, Error> {
    Picture::from_bytes(bytes).decode(&Limits::default())
}

/// JPEG leaves open how a decoder rounds its transform and interpolates colours: a few levels here and there.
fn assert_same(file: &str, ours: &RgbImage, theirs: &RgbImage) {
    let (most, mean) = if file.ends_with(".jpg") {
        (7, 0.5)
    } else {
        (0, 0.0)
    };
    let off = common::levels_off(ours, theirs);
    assert!(off <= most, "{file}: {off} levels off");
    let levels = ours.as_raw().iter().zip(theirs.as_raw());
    let sum: u32 = levels
        .map(|(ours, theirs)| u32::from(ours.abs_diff(*theirs)))
        .sum();
    let off = f64::from(sum) / ours.as_raw().len() as f64;
    assert!(off <= mean, "{file}: {off} levels off on average");
}

#[test]
fn every_kind_of_file_decodes_as_in_pillow() {
    let expected = Golden::read("files.safetensors");
    let names = expected.names();
    let files: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_suffix(".rgb"))
        .collect();
    assert_eq!(files.len(), 36);
    for file in files {
        let picture = picture(file);
        let decoded = picture
            .decode(&Limits::default())
            .unwrap_or_else(|error| panic!("{file}: {error:?}"));
        let rgb = expected.rgb(&format!("{file}.rgb"));
        assert_eq!(
            picture.size(&Limits::default()).unwrap(),
            rgb.dimensions(),
            "{file}"
        );
        assert_same(file, &decoded.rgb, &rgb);
        let alpha = format!("{file}.alpha");
        let alpha = names.contains(&alpha).then(|| expected.grey(&alpha));
        assert!(decoded.alpha == alpha, "{file}");
    }
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    for file in [
        "rgb.png",
        "palette.png",
        "rgb.jpg",
        "progressive.jpg",
        "lossy.webp",
        "lossless.webp",
    ] {
        let picture = picture(file);
        let bytes = picture.bytes();
        // The checksums and the end chunk of a PNG, and the padding of a WebP, hold no pixels.
        for len in 0..bytes.len() - 25 {
            assert!(
                decode(&bytes[..len]).is_err(),
                "{file}: {len} of {} bytes",
                bytes.len()
            );
        }
    }
    let bytes = picture("rgb.jpg");
    assert!(matches!(
        decode(&bytes.bytes()[..800]),
        Err(Error::Truncated { format: "JPEG" })
    ));
    // Cameras append whole pictures.
    let followed = [bytes.bytes(), b"\xFF\xD8 and so on"].concat();
    assert!(decode(&followed).is_ok());
}

#[test]
fn other_files_are_named_as_what_they_are_not() {
    for bytes in [
        &b""[..],
        b"GIF89a",
        b"BM",
        b"<svg/>",
        b"\x89PN",
        b"RIFF\0\0\0\0WAVE",
    ] {
        assert!(matches!(decode(bytes), Err(Error::Format)), "{bytes:?}");
    }
}

/// Headers that promise much more than the bytes that follow could fill.
#[test]
fn a_bomb_is_refused_by_its_header() {
    let mut png = picture("rgb.png").bytes().to_vec();
    png[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
    let checksum = crc32(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&checksum);

    let mut jpeg = picture("rgb.jpg").bytes().to_vec();
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xFF, 0xC0])
        .unwrap();
    jpeg[frame + 5..frame + 9].fill(0xFF);

    // The width and height of a lossless WebP are 14 bits each, less 1.
    let mut webp = picture("lossless.webp").bytes().to_vec();
    webp[21..25].copy_from_slice(&(0x3FFE_u32 | 0x3FFE << 14).to_le_bytes());

    // Even a row of this one is too much.
    assert!(matches!(
        decode(&png),
        Err(Error::Memory { format: "PNG", .. })
    ));
    for (bytes, side) in [(jpeg, 0xFFFF), (webp, 0x3FFF)] {
        match decode(&bytes) {
            Err(Error::TooLarge { width, height, .. }) => assert_eq!((width, height), (side, side)),
            other => panic!("{side}: {other:?}"),
        }
    }
}

/// A frame may be larger than the picture that it is said to be in.
#[test]
fn a_bomb_within_a_small_picture_is_refused() {
    for (file, chunk) in [("oriented.webp", b"VP8L"), ("animated.webp", b"VP8L")] {
        let mut bytes = picture(file).bytes().to_vec();
        let at = bytes.windows(4).position(|name| name == chunk).unwrap();
        bytes[at + 9..at + 13].copy_from_slice(&(0x3FFF_u32 | 0x3FFF << 14).to_le_bytes());
        match decode(&bytes) {
            Err(Error::TooLarge { width, height, .. }) => {
                assert_eq!((width, height), (0x4000, 0x4000))
            }
            other => panic!("{file}: {other:?}"),
        }
    }
    let mut bytes = picture("lossy.webp").bytes().to_vec();
    let at = bytes.windows(4).position(|name| name == b"VP8 ").unwrap();
    bytes[at + 14..at + 18].copy_from_slice(&[0xFF, 0x3F, 0xFF, 0x3F]);
    assert!(matches!(
        decode(&bytes),
        Err(Error::TooLarge {
            width: 0x3FFF,
            height: 0x3FFF,
            ..
        })
    ));
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn each_limit_counts() {
    let picture = picture("rgba_16.png");
    let (width, height) = picture.size(&Limits::default()).unwrap();
    let exact = Limits {
        max_side: width.max(height),
        max_pixels: u64::from(width * height),
        max_alloc: u64::from(width * height) * 8,
    };
    assert!(picture.decode(&exact).is_ok());
    for limits in [
        Limits {
            max_side: exact.max_side - 1,
            ..exact
        },
        Limits {
            max_pixels: exact.max_pixels - 1,
            ..exact
        },
        Limits {
            max_alloc: exact.max_alloc - 1,
            ..exact
        },
    ] {
        assert!(
            matches!(picture.decode(&limits), Err(Error::TooLarge { .. })),
            "{limits:?}"
        );
        assert!(picture.size(&limits).is_err(), "{limits:?}");
    }
}

#[test]
fn json_is_base64_and_data_uris_are_read() {
    let picture = picture("grey_1.png");
    let json = serde_json::to_string(&picture).unwrap();
    assert_eq!(json, format!("\"{}\"", picture.to_base64()));
    assert_eq!(serde_json::from_str::<Picture>(&json).unwrap(), picture);

    let encoded = picture.to_base64();
    let (first, second) = encoded.split_at(30);
    for text in [
        format!("data:image/png;base64,{encoded}"),
        format!(" DATA:;base64, {first}\r\n\t{second}\n"),
        encoded.trim_end_matches('=').to_owned(),
    ] {
        assert_eq!(Picture::from_base64(&text).unwrap(), picture, "{text}");
    }
    assert!(matches!(
        Picture::from_base64("a picture!"),
        Err(Error::Base64(_))
    ));
    assert!(
        serde_json::from_str::<Picture>("7")
            .unwrap_err()
            .to_string()
            .contains("base64")
    );
    // What is logged does not hold the bytes.
    assert_eq!(
        format!("{:?}", Picture::from_bytes(*b"abc")),
        r#"Picture { len: 3, sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" }"#
    );
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_an_error(start in 0..4_usize, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let magic = [&b""[..], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xFF\xD8\xFF", b"RIFF\xFF\0\0\0WEBPVP8"][start];
        let _ = decode(&[magic, &bytes].concat());
    }

    #[test]
    fn any_damage_decodes_or_is_an_error(
        file in 0..9_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let files = [
            "palette_alpha.png", "rgb_16.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "oriented.jpg", "lossy.webp",
            "alpha.webp", "animated.webp",
        ];
        let mut bytes = fs::read(golden(files[file])).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes);
    }

    #[test]
    fn any_text_is_a_picture_or_an_error(text in "(data:)?[ -~,;=é]*") {
        let _ = Picture::from_base64(&text);
    }
}
