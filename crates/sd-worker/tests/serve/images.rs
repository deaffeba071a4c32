//! Pictures in the format that a client likes best.

use image::ImageFormat;

use crate::{assert_error, star, worker::Worker};

#[test]
fn the_format_is_the_one_that_is_accepted() {
    let (worker, _folder) = Worker::fresh(&[]);
    let path = worker.submit(&star(1));
    let sha256 = worker.finished(&path)["images"][0]["sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let picture = format!("{path}/images/0");
    let png = worker.client.get(&picture);
    let pixels = image::load_from_memory(&png.body).unwrap().into_rgb8();
    for (accept, kind, format) in [
        ("*/*", "image/png", ImageFormat::Png),
        ("image/png", "image/png", ImageFormat::Png),
        ("image/jpeg", "image/jpeg", ImageFormat::Jpeg),
        ("image/webp,*/*;q=0.8", "image/webp", ImageFormat::WebP),
        (
            "image/png;q=0.1, image/jpeg;q=0.2",
            "image/jpeg",
            ImageFormat::Jpeg,
        ),
        (
            "text/html, image/*;q=0.5, image/png;q=0",
            "image/webp",
            ImageFormat::WebP,
        ),
    ] {
        let reply = worker.client.with("accept", accept).get(&picture);
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some(kind)),
            "{accept}"
        );
        assert_eq!(reply.header("vary"), Some("Accept"));
        let made = image::load_from_memory_with_format(&reply.body, format)
            .unwrap()
            .into_rgb8();
        assert_eq!(made.dimensions(), (128, 128));
        if format == ImageFormat::Jpeg {
            let off: u64 = made
                .iter()
                .zip(pixels.iter())
                .map(|(a, b)| u64::from(a.abs_diff(*b)))
                .sum();
            assert!(off < 4 * pixels.len() as u64, "{off}");
        } else {
            assert!(made == pixels, "{accept}");
        }
    }
    for accept in ["text/html", "image/avif", "image/*;q=0"] {
        let reply = worker.client.with("accept", accept).get(&picture);
        assert_error(&reply, 406, "not_acceptable", Some("Accept"));
    }
    use sha2::{Digest, Sha256};
    let digest: String = Sha256::digest(&png.body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(digest, sha256);
}

#[test]
fn a_copy_that_is_right_is_not_sent_again() {
    let (worker, _folder) = Worker::fresh(&[]);
    let path = worker.submit(&star(1));
    worker.finished(&path);
    let picture = format!("{path}/images/0");
    let etag = worker
        .client
        .get(&picture)
        .header("etag")
        .unwrap()
        .to_owned();
    let same = worker
        .client
        .with("if-none-match", &format!("\"x\", {etag}"))
        .get(&picture);
    assert_eq!(
        (same.status, same.body.len(), same.header("etag")),
        (304, 0, Some(etag.as_str()))
    );
    let jpeg = worker
        .client
        .with("if-none-match", &etag)
        .with("accept", "image/jpeg")
        .get(&picture);
    assert_eq!(jpeg.status, 200);
    assert_ne!(jpeg.header("etag"), Some(etag.as_str()));
    let head = worker.client.send("HEAD", &picture, b"");
    assert_eq!(
        (head.status, head.body.len(), head.header("etag")),
        (200, 0, Some(etag.as_str()))
    );
}
