//! The demo model draws what it is asked for.

use std::path::Path;

fn share(pixels: &[u8], is: impl Fn(&[u8]) -> bool) -> f64 {
    let count = pixels.chunks_exact(3).filter(|pixel| is(pixel)).count();
    count as f64 / (pixels.len() / 3) as f64
}

#[test]
fn a_red_circle_on_white() {
    let model = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../assets/demo-model"
    ));
    let picture = consumer::draw(model, "a red circle on a white background", 1).unwrap();
    assert_eq!((picture.width, picture.height), (128, 128));
    assert_eq!(picture.pixels.len(), 128 * 128 * 3);
    let red = share(&picture.pixels, |p| p[0] > 150 && p[1] < 100 && p[2] < 100);
    let white = share(&picture.pixels, |p| p.iter().all(|&level| level > 200));
    assert!((0.02..0.6).contains(&red), "{red} of the picture is red");
    assert!(white > 0.3, "{white} of the picture is white");
    let header = b"P6 128 128 255\n";
    assert_eq!(&picture.to_ppm()[..header.len()], header);
}
