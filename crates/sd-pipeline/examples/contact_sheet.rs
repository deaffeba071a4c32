//! Draws the sheets of the documentation with the built-in model.
//!
//! `contact_sheet schedulers docs/images/schedulers.png`: one prompt and seed by every scheduler, 20 steps each.
//! `contact_sheet prompts docs/images/builtin.png`: several prompts at the default settings.

use std::ops::ControlFlow;

use sd_pipeline::{Pipeline, Request, RgbImage, builtin_model};

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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (requests, columns): (Vec<_>, u32) = match arguments.first().map(String::as_str) {
        Some("schedulers") => (sd_scheduler::ALL.iter().map(by_scheduler).collect(), 5),
        Some("prompts") => (PROMPTS.iter().map(|prompt| request(prompt)).collect(), 6),
        _ => return Err("usage: contact_sheet schedulers|prompts OUTPUT.png".into()),
    };
    let output = arguments.get(1).ok_or("which file to write?")?;

    let pipeline = Pipeline::builder(builtin_model()).build()?;
    let mut sheet = RgbImage::new(
        columns * 132 - 4,
        requests.len().div_ceil(columns as usize) as u32 * 132 - 4,
    );
    sheet.fill(0xff);
    for (i, request) in (0u32..).zip(&requests) {
        let made = pipeline.generate(request, |_| ControlFlow::Continue(()))?;
        let (x, y) = (i % columns * 132, i / columns * 132);
        for (dx, dy, pixel) in made.images[0].enumerate_pixels() {
            sheet.put_pixel(x + dx, y + dy, *pixel);
        }
    }
    Ok(sheet.save(output)?)
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
