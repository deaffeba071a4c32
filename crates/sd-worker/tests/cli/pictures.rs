//! What the pictures are: bytes, names, texts.

use std::{fs, io::Cursor, path::Path};

use serde_json::Value;

use crate::{assert_done, command, folder, generate, stderr};

pub(crate) struct Png {
    pub(crate) size: (u32, u32),
    pub(crate) pixels: Vec<u8>,
    texts: Vec<(String, String)>,
}

impl Png {
    pub(crate) fn read(path: impl AsRef<Path>) -> Self {
        Self::parse(&fs::read(path).unwrap())
    }

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let info = reader.info();
        let latin1 = info
            .uncompressed_latin1_text
            .iter()
            .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
        let utf8 = info
            .utf8_text
            .iter()
            .map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap()));
        Self {
            size: info.size(),
            texts: latin1.chain(utf8).collect(),
            pixels,
        }
    }

    pub(crate) fn text(&self, keyword: &str) -> &str {
        let mut found = self.texts.iter().filter(|(name, _)| name == keyword);
        let (_, text) = found.next().unwrap_or_else(|| panic!("no text {keyword}"));
        assert!(found.next().is_none(), "two texts {keyword}");
        text
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_thread_count() {
    let folder = folder();
    for (threads, name) in [("1", "one.png"), ("2", "two.png")] {
        let args = [
            "generate",
            "a blue star",
            "--steps",
            "2",
            "--seed",
            "5",
            "--output",
            name,
        ];
        let output = command(folder.path(), args)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert_done(&output);
    }
    let [one, two] = ["one.png", "two.png"].map(|name| fs::read(folder.path().join(name)).unwrap());
    assert!(one == two, "the pictures differ");
    assert_done(&generate(
        folder.path(),
        &["--seed", "6", "--output", "other.png"],
    ));
    let [one, other] = ["one.png", "other.png"].map(|name| Png::read(folder.path().join(name)));
    assert_eq!(one.size, (128, 128));
    assert_ne!(one.pixels, other.pixels);
}

#[test]
fn a_drawn_seed_is_printed_and_makes_the_picture_again() {
    let folder = folder();
    let output = generate(folder.path(), &["--output", "first.png"]);
    assert_done(&output);
    let text = stderr(&output);
    let seed = text
        .lines()
        .find_map(|line| line.strip_prefix("seed "))
        .expect("the seed is printed");
    assert_done(&generate(
        folder.path(),
        &["--output", "again.png", "--seed", seed],
    ));
    let [first, again] =
        ["first.png", "again.png"].map(|name| fs::read(folder.path().join(name)).unwrap());
    assert!(first == again, "the pictures differ");
}

#[test]
fn a_dash_writes_the_same_png_to_standard_output() {
    let folder = folder();
    assert_done(&generate(folder.path(), &["--seed", "1"]));
    let piped = generate(folder.path(), &["--seed", "1", "--output", "-"]);
    assert_done(&piped);
    assert!(piped.stdout == fs::read(folder.path().join("out.png")).unwrap());
    assert_eq!(stderr(&piped), "", "nothing to say when the seed is given");
}

#[test]
fn several_pictures_are_numbered_and_each_can_be_made_again_alone() {
    let folder = folder();
    let output = generate(
        folder.path(),
        &["--seed", "3", "--num-images", "2", "--output", "x.png"],
    );
    assert_done(&output);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let second = Png::read(folder.path().join("x-2.png"));
    assert_ne!(
        second.pixels,
        Png::read(folder.path().join("x-1.png")).pixels
    );
    assert!(
        second.text("parameters").contains("Seed: 4,"),
        "{}",
        second.text("parameters")
    );

    assert_done(&generate(
        folder.path(),
        &["--seed", "4", "--output", "alone.png"],
    ));
    assert_eq!(
        Png::read(folder.path().join("alone.png")).pixels,
        second.pixels
    );

    let batch = [
        "--seed",
        "3",
        "--num-images",
        "2",
        "--seed-mode",
        "batch",
        "--output",
        "b.png",
    ];
    assert_done(&generate(folder.path(), &batch));
    assert_ne!(
        Png::read(folder.path().join("b-2.png")).pixels,
        second.pixels
    );
}

#[test]
fn the_png_says_how_it_was_made() {
    let folder = folder();
    let args = [
        "--seed",
        "7",
        "--negative-prompt",
        "赤い円",
        "--guidance-scale",
        "3.5",
        "--scheduler",
        "EulerDiscreteScheduler",
    ];
    assert_done(&generate(folder.path(), &args));
    let png = Png::read(folder.path().join("out.png"));
    let parameters = png.text("parameters");
    for part in [
        "a red circle on a white background\n",
        "Negative prompt: 赤い円\n",
        "Steps: 2,",
        "CFG scale: 3.5,",
        "Seed: 7,",
        "Size: 128x128",
    ] {
        assert!(
            parameters.contains(part),
            "`{part}` is not in: {parameters}"
        );
    }
    let sd: Value = serde_json::from_str(png.text("sd")).unwrap();
    assert_eq!(sd["job"]["seed"], 7, "{sd}");
    assert_eq!(sd["job"]["scheduler"], "euler", "{sd}");
    assert_eq!(sd["job"]["negative_prompt"], "赤い円", "{sd}");
}
