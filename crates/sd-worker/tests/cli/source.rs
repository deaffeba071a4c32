//! Pictures in: image-to-image, masks, margins, second passes.

use std::{fs, path::Path};

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::{assert_done, assert_fails, folder, generate, golden, pictures::Png, stderr, worker};

/// A picture of no size that a model likes.
fn photo(folder: &Path, name: &str) -> RgbImage {
    let photo = RgbImage::from_fn(100, 75, |x, y| Rgb([(x * 2) as u8, (y * 3) as u8, 90]));
    photo.save(folder.join(name)).unwrap();
    photo
}

/// White on the right half.
fn mask(folder: &Path, name: &str) -> GrayImage {
    let mask = GrayImage::from_fn(100, 75, |x, _| Luma([if x < 50 { 0 } else { 255 }]));
    mask.save(folder.join(name)).unwrap();
    mask
}

fn made(folder: &Path) -> RgbImage {
    let Png { size, pixels, .. } = Png::read(folder.join("out.png"));
    RgbImage::from_raw(size.0, size.1, pixels).unwrap()
}

#[test]
fn a_picture_is_changed_at_its_own_size() {
    let folder = folder();
    photo(folder.path(), "in.jpg");
    let args = ["--init-image", "in.jpg", "--strength", "0.5", "--seed", "1"];
    assert_done(&generate(folder.path(), &args));
    let png = Png::read(folder.path().join("out.png"));
    // The largest multiples of 8.
    assert_eq!(png.size, (96, 72));
    let metadata: serde_json::Value = serde_json::from_str(png.text("sd")).unwrap();
    let job = &metadata["job"];
    assert_eq!(job["strength"], 0.5);
    assert_eq!(job["init_image"].as_object().unwrap().len(), 1, "{job}");
    assert_eq!(job["init_image"]["sha256"].as_str().unwrap().len(), 64);

    let crop = ["--width", "64", "--height", "64", "--resize-mode", "crop"];
    assert_done(&generate(folder.path(), &[&args[..], &crop].concat()));
    assert_eq!(made(folder.path()).dimensions(), (64, 64));
}

#[test]
fn with_an_overlay_the_rest_of_the_picture_stays() {
    let folder = folder();
    let photo = photo(folder.path(), "in.png");
    let mask = mask(folder.path(), "mask.png");
    let common = [
        "--init-image",
        "in.png",
        "--mask",
        "mask.png",
        "--seed",
        "1",
    ];
    for more in [
        &["--overlay"][..],
        &["--only-masked"],
        &["--only-masked=8", "--mask-blur", "2"],
    ] {
        assert_done(&generate(folder.path(), &[&common[..], more].concat()));
        let made = made(folder.path());
        assert_eq!(made.dimensions(), photo.dimensions(), "{more:?}");
        let (mut changed, mut count) = (0, 0);
        for (x, y, pixel) in made.enumerate_pixels() {
            // Three box blurs of 2 pixels' deviation reach 8 pixels at most.
            if x < 42 {
                assert_eq!(pixel, photo.get_pixel(x, y), "{more:?}: {x}, {y}");
            } else if mask.get_pixel(x, y).0[0] > 0 {
                changed += u32::from(pixel != photo.get_pixel(x, y));
                count += 1;
            }
        }
        assert!(
            changed * 2 > count,
            "{more:?}: {changed} of {count} pixels changed"
        );
    }
    // The same part, said the other way round.
    let whole = fs::read(folder.path().join("out.png")).unwrap();
    let inverted = GrayImage::from_fn(100, 75, |x, y| Luma([255 - mask.get_pixel(x, y).0[0]]));
    inverted.save(folder.path().join("mask.png")).unwrap();
    let more = [
        "--only-masked=8",
        "--mask-blur",
        "2",
        "--mask-polarity",
        "black-repaints",
    ];
    assert_done(&generate(folder.path(), &[&common[..], &more].concat()));
    let pixels = |bytes: &[u8]| Png::parse(bytes).pixels;
    assert!(pixels(&whole) == pixels(&fs::read(folder.path().join("out.png")).unwrap()));
}

#[test]
fn outpainting_adds_room_and_keeps_the_picture() {
    let folder = folder();
    let photo = photo(folder.path(), "in.png");
    let args = [
        "--init-image",
        "in.png",
        "--outpaint",
        "20,0,8,5",
        "--seed",
        "1",
    ];
    assert_done(&generate(folder.path(), &args));
    let made = made(folder.path());
    assert_eq!(made.dimensions(), (128, 80));
    for (x, y, pixel) in photo.enumerate_pixels() {
        assert_eq!(made.get_pixel(x + 20, y), pixel, "{x}, {y}");
    }
}

#[test]
fn a_second_pass_is_larger() {
    let folder = folder();
    for (more, size) in [
        (&["--hires-scale", "1.5"][..], (96, 96)),
        (
            &["--hires-width", "80", "--hires-upscaler", "lanczos"],
            (80, 80),
        ),
        (
            &["--hires-strength", "0.5", "--hires-steps", "3"],
            (128, 128),
        ),
    ] {
        let args = [&["--width", "64", "--height", "64", "--seed", "1"], more].concat();
        assert_done(&generate(folder.path(), &args));
        assert_eq!(made(folder.path()).dimensions(), size, "{more:?}");
    }
}

#[test]
fn a_variation_is_another_picture_and_can_be_made_again() {
    let folder = folder();
    let mut bytes = vec![];
    for strength in ["0", "0.3", "0.3"] {
        let args = [
            "--seed",
            "1",
            "--variation-seed",
            "2",
            "--variation-strength",
            strength,
        ];
        assert_done(&generate(folder.path(), &args));
        bytes.push(Png::read(folder.path().join("out.png")).pixels);
    }
    assert!(bytes[0] != bytes[1]);
    assert!(bytes[1] == bytes[2]);
}

#[test]
fn a_refiner_goes_on_with_the_base_models_latents() {
    let folder = folder();
    let [base, refiner] = ["sdxl", "sdxl-refiner"].map(|name| golden(&format!("models/{name}")));
    let [base, refiner] = [&base, &refiner].map(|path| path.to_str().unwrap());
    let args = [
        "--model", base, "--steps", "4", "--seed", "1", "--width", "64", "--height", "64",
    ];
    let chained = [
        &args[..],
        &[
            "--refiner",
            refiner,
            "--refiner-start",
            "0.5",
            "--aesthetic-score",
            "7",
        ],
    ]
    .concat();
    assert_done(&generate(folder.path(), &chained));
    let png = Png::read(folder.path().join("out.png"));
    let metadata: serde_json::Value = serde_json::from_str(png.text("sd")).unwrap();
    assert_eq!(metadata["job"]["denoising_start"], 0.5);
    assert_eq!(metadata["job"]["aesthetic_score"], 7.0);
    assert_eq!(metadata["base"]["job"]["denoising_end"], 0.5);
    assert_eq!(metadata["base"]["job"]["seed"], metadata["job"]["seed"]);

    assert_done(&generate(folder.path(), &args));
    assert!(Png::read(folder.path().join("out.png")).pixels != png.pixels);

    // The built-in model is no XL: there is nobody to refine for.
    let output = generate(folder.path(), &["--refiner", refiner]);
    assert_fails(&output, 2, &["--refiner-start", "XL"]);
}

#[test]
fn previews_lie_beside_the_picture_and_do_not_change_it() {
    let folder = folder();
    let args = ["--steps", "5", "--seed", "1"];
    assert_done(&generate(folder.path(), &args));
    let without = fs::read(folder.path().join("out.png")).unwrap();
    let tiny = golden("tiny_vaes/four-stages");
    for (more, size) in [
        (&["--preview-every", "2"][..], (16, 16)),
        (
            &["--preview-every", "2", "--preview-kind", "full"],
            (128, 128),
        ),
        (
            &["--preview-every", "2", "--tiny-vae", tiny.to_str().unwrap()],
            (128, 128),
        ),
    ] {
        assert_done(&generate(folder.path(), &[&args[..], more].concat()));
        assert!(
            fs::read(folder.path().join("out.png")).unwrap() == without,
            "{more:?}"
        );
        for step in [2, 4] {
            let name = format!("out-step-{step}.png");
            assert_eq!(Png::read(folder.path().join(name)).size, size, "{more:?}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "{more:?}");
    }
}

#[test]
fn memory_is_limited_and_traded() {
    let folder = folder();
    let made = |more: &[&str]| {
        let args = [&["--width", "192", "--height", "192", "--seed", "1"], more].concat();
        assert_done(&generate(folder.path(), &args));
        Png::read(folder.path().join("out.png"))
    };
    let plain = made(&[]);
    for more in [
        &["--max-memory", "4GiB"][..],
        &["--attention-slice", "64"],
        &["--vae-tiling=false"],
    ] {
        assert!(made(more).pixels == plain.pixels, "{more:?}");
    }
    assert!(made(&["--vae-tiling"]).pixels != plain.pixels);
    let output = generate(folder.path(), &["--max-memory", "1MiB"]);
    assert_fails(&output, 2, &["memory", "1 MiB"]);

    // More than a machine has, which is the limit where none is given.
    let huge = ["--width", "8192", "--height", "8192", "--num-images", "64"];
    assert_fails(
        &generate(folder.path(), &huge),
        2,
        &["of memory are needed", "fits"],
    );
}

#[test]
fn brackets_are_text_unless_a_manner_is_given() {
    let folder = folder();
    let pictures = [None, Some("plain"), Some("a1111"), Some("comfyui")].map(|manner| {
        let mut args = vec![
            "generate",
            "a (red:1.5) circle",
            "--steps",
            "2",
            "--seed",
            "1",
        ];
        args.extend(
            manner
                .iter()
                .flat_map(|manner| ["--prompt-weighting", manner]),
        );
        assert_done(&worker(folder.path(), args));
        Png::read(folder.path().join("out.png")).pixels
    });
    assert!(pictures[0] == pictures[1]);
    assert!(pictures[1] != pictures[2]);
    assert!(pictures[2] != pictures[3]);
}

#[test]
fn a_file_that_is_no_picture_is_named_before_the_model_is_loaded() {
    let folder = folder();
    photo(folder.path(), "in.png");
    let bytes = fs::read(folder.path().join("in.png")).unwrap();
    fs::write(folder.path().join("half.png"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(folder.path().join("text.png"), "a picture").unwrap();
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--init-image", "no.png"], &["no.png", "cannot be read"]),
        (
            &["--init-image", "text.png"],
            &["--init-image", "PNG", "JPEG", "WebP"],
        ),
        (&["--init-image", "half.png"], &["--init-image", "PNG"]),
        (
            &["--init-image", "in.png", "--mask", "text.png"],
            &["--mask", "PNG"],
        ),
    ];
    for (args, parts) in cases {
        let args = [args, &["--model", "./no-such-model"]].concat();
        assert_fails(&generate(folder.path(), &args), 1, parts);
    }
    let room = ["--init-image", "in.png", "--outpaint", "9999999,0,0,0"];
    assert_fails(
        &generate(folder.path(), &room),
        1,
        &["--outpaint", "pixels"],
    );
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    let folder = folder();
    photo(folder.path(), "in.png");
    mask(folder.path(), "mask.png");
    GrayImage::new(100, 75)
        .save(folder.path().join("black.png"))
        .unwrap();
    GrayImage::from_pixel(8, 8, Luma([255]))
        .save(folder.path().join("small.png"))
        .unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--strength", "0.5"], &["--init-image"]),
        (&["--resize-mode", "crop"], &["--init-image"]),
        (&["--mask", "mask.png"], &["--init-image"]),
        (&["--outpaint", "8,8,8,8"], &["--init-image"]),
        (
            &["--init-image", "in.png", "--strength", "1.5"],
            &["--strength", "1.5", "0", "1"],
        ),
        (
            &["--init-image", "in.png", "--resize-mode", "zoom"],
            &["zoom", "stretch", "fill", "crop"],
        ),
        (
            &["--init-image", "in.png", "--mask-blur", "4"],
            &["--mask", "--outpaint"],
        ),
        (&["--init-image", "in.png", "--only-masked"], &["--mask"]),
        (
            &["--init-image", "in.png", "--outpaint", "8,8"],
            &["8,8", "four numbers"],
        ),
        (
            &[
                "--init-image",
                "in.png",
                "--mask",
                "mask.png",
                "--outpaint",
                "8,8,8,8",
            ],
            &["--mask", "--outpaint"],
        ),
        (
            &[
                "--init-image",
                "in.png",
                "--mask",
                "mask.png",
                "--mask-blur",
                "-1",
            ],
            &["--mask-blur", "-1"],
        ),
        (
            &[
                "--init-image",
                "in.png",
                "--mask",
                "mask.png",
                "--mask-polarity",
                "white",
            ],
            &["white-repaints"],
        ),
        (
            &["--init-image", "in.png", "--mask", "black.png"],
            &["--mask", "marks"],
        ),
        (
            &["--init-image", "in.png", "--mask", "small.png", "--overlay"],
            &["--mask", "8x8", "100x75"],
        ),
        (
            &[
                "--init-image",
                "in.png",
                "--mask",
                "mask.png",
                "--mask-polarity",
                "transparent-repaints",
            ],
            &["--mask", "transparency"],
        ),
        (
            &["--init-image", "in.png", "--hires-scale", "2"],
            &["--init-image", "--hires-scale"],
        ),
        (&["--hires-scale", "9"], &["--hires-scale", "9", "8"]),
        (
            &["--hires-scale", "2", "--hires-width", "64"],
            &["--hires-scale", "--hires-width"],
        ),
        (
            &["--hires-upscaler", "magic"],
            &["magic", "latent-bilinear"],
        ),
        (&["--hires-steps", "0"], &["--hires-steps", "0"]),
        (
            &[
                "--refiner",
                "x",
                "--init-image",
                "in.png",
                "--mask",
                "mask.png",
            ],
            &["--refiner", "--mask"],
        ),
        (
            &["--aesthetic-score", "7"],
            &["--aesthetic-score", "refiner"],
        ),
        (&["--max-memory", "lots"], &["--max-memory", "8 GiB"]),
        (&["--attention-slice", "0"], &["--attention-slice", "0"]),
        (&["--vae-tiling=maybe"], &["--vae-tiling", "true"]),
        (
            &["--prompt-weighting", "heavy"],
            &["heavy", "a1111", "comfyui"],
        ),
        (&["--preview-every", "0"], &["--preview-every", "0"]),
        (
            &["--preview-every", "1", "--output", "-"],
            &["--preview-every", "--output"],
        ),
        (&["--preview-kind", "full"], &["--preview-every"]),
        (
            &["--preview-every", "1", "--preview-kind", "tiny"],
            &["--tiny-vae"],
        ),
        (&["--variation-seed", "7"], &["--variation-strength"]),
        (
            &["--variation-strength", "2"],
            &["--variation-strength", "2"],
        ),
    ];
    for (args, parts) in cases {
        let output = generate(folder.path(), args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        for part in *parts {
            assert!(text.contains(part), "{args:?}: `{part}` is not in: {text}");
        }
    }
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        4,
        "a refused command left files"
    );
}

#[test]
fn help_names_the_flags_of_pictures() {
    let folder = folder();
    let help = crate::stdout(&worker(folder.path(), ["generate", "--help"]));
    let flags = "init-image strength resize-mode mask mask-polarity mask-blur outpaint hires-scale hires-width \
                 hires-height hires-upscaler hires-strength hires-steps refiner refiner-start aesthetic-score \
                 negative-aesthetic-score variation-seed variation-strength preview-every preview-kind tiny-vae \
                 prompt-weighting max-memory attention-slice";
    for flag in flags.split_whitespace() {
        assert!(help.contains(&format!("--{flag} ")), "{flag}: {help}");
    }
    for flag in ["--only-masked[=", "--overlay[=", "--vae-tiling[="] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}
