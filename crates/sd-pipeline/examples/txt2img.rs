//! A picture of a prompt: `cargo run --release --example txt2img -- "a red circle on a white background"`.

use std::{env, error::Error, ops::ControlFlow};

use sd_pipeline::{Pipeline, Request, builtin_model};

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = env::args().nth(1).ok_or("usage: txt2img PROMPT")?;
    let pipeline = Pipeline::builder(builtin_model()).build()?;
    let made = pipeline.generate(&Request::new(prompt), |_| ControlFlow::Continue(()))?;
    made.images[0].save("txt2img.png")?;
    Ok(())
}
