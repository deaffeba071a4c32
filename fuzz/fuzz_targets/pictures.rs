//! Bytes in place of a picture: they are refused or decoded, within limits, and a PNG file's texts are read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_image::{Limits, Picture};

/// Small, so that a run does not spend its time on pixels.
const LIMITS: Limits = Limits {
    max_side: 512,
    max_pixels: 1 << 16,
    max_alloc: 1 << 20,
};

fuzz_target!(|file: &[u8]| {
    let picture = Picture::from_bytes(file);
    let size = picture.size(&LIMITS);
    if let Ok(decoded) = picture.decode(&LIMITS) {
        assert_eq!(decoded.rgb.dimensions(), size.expect("the header was read"));
        if let Some(alpha) = decoded.alpha {
            assert_eq!(alpha.dimensions(), decoded.rgb.dimensions());
        }
    }
    let again = Picture::from_base64(&picture.to_base64()).expect("its own base64");
    assert_eq!(again, picture);
    let _ = sd_worker::http::read::png_parameters(file);
});
