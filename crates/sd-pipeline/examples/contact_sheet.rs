//! Draws the sheets of the documentation with the built-in model.
//!
//! `contact_sheet schedulers docs/images/schedulers.png`: one prompt and seed by every scheduler, 20 steps each.
//! `contact_sheet prompts docs/images/builtin.png`: several prompts at the default settings.
//! `contact_sheet previews docs/images/previews.png`: a run as its linear and its full previews show it.

use std::{error::Error, ops::ControlFlow};

use image::imageops::{FilterType, resize};
use sd_pipeline::{Pipeline, PreviewKind, Request, RgbImage, builtin_model};

const PROMPTS: [&str; 12] = [
    "a red circle on a white background",
    "a small blue star above a yellow heart on a green background",
    "a large purple flower on a yellow background",
    "an orange crescent to the left of a cyan diamond on a black background",
    "a pink heart on a gray background",
    "a white ring on a blue background",
    "a small yellow star inside a large red square on a white background",
    "a green triangle above a brown square on an orange background",
    "a black cross on a pink background",
    "a cyan heart to the right of a red star on a purple background",
    "a large yellow crescent on a blue background",
    "a small white circle inside a large green diamond on a red background",
];

/// UNet calls after which the sheet of previews shows the run.
const CALLS: [usize; 7] = [0, 1, 3, 6, 10, 16, 25];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let pipeline = Pipeline::builder(builtin_model()).build()?;
    let (pictures, columns) = match arguments.first().map(String::as_str) {
        Some("schedulers") => (
            drawn(&pipeline, sd_scheduler::ALL.iter().map(by_scheduler))?,
            5,
        ),
        Some("prompts") => (
            drawn(&pipeline, PROMPTS.iter().map(|prompt| request(prompt)))?,
            6,
        ),
        Some("previews") => (previews(&pipeline)?, CALLS.len()),
        _ => return Err("usage: contact_sheet schedulers|prompts|previews OUTPUT.png".into()),
    };
    let output = arguments.get(1).ok_or("which file to write?")?;

    let side = |pictures: usize| u32::try_from(pictures * 132 - 4);
    let rows = pictures.len().div_ceil(columns);
    let mut sheet = RgbImage::new(side(columns)?, side(rows)?);
    sheet.fill(0xff);
    for (i, picture) in pictures.iter().enumerate() {
        let (x, y) = (i % columns * 132, i / columns * 132);
        image::imageops::replace(&mut sheet, picture, x as i64, y as i64);
    }
    Ok(sheet.save(output)?)
}

fn drawn(
    pipeline: &Pipeline,
    requests: impl Iterator<Item = Request>,
) -> sd_pipeline::Result<Vec<RgbImage>> {
    let draw = |request| pipeline.generate(&request, |_| ControlFlow::Continue(()));
    requests
        .map(|request| Ok(draw(request)?.images.remove(0)))
        .collect()
}

/// A row of linear previews, enlarged, above one of full previews.
fn previews(pipeline: &Pipeline) -> sd_pipeline::Result<Vec<RgbImage>> {
    let prompt = "a small yellow star inside a large red square on a white background";
    let mut run = pipeline.start(&request(prompt))?;
    let (mut linear, mut full) = (vec![], vec![]);
    let mut call = 0;
    loop {
        if CALLS.contains(&call) {
            let small = run.preview(pipeline, PreviewKind::Linear)?.remove(0);
            linear.push(resize(&small, 128, 128, FilterType::Nearest));
            full.append(&mut run.preview(pipeline, PreviewKind::Full)?);
        }
        match run.advance(pipeline)? {
            Some(progress) => call = progress.call,
            None => return Ok([linear, full].concat()),
        }
    }
}

fn request(prompt: &str) -> Request {
    Request {
        seed: Some(42),
        ..Request::new(prompt)
    }
}

fn by_scheduler(entry: &sd_scheduler::Entry) -> Request {
    Request {
        scheduler: Some(entry.name.into()),
        num_inference_steps: Some(20),
        ..request("a small blue star above a yellow heart on a green background")
    }
}
