//! Fits the colours of linear previews to a model's own pictures: the value of `sd_latent_rgb` in `vae/config.json`.
//!
//! `fit_preview builtin|FOLDER PROMPTS.json [COUNT]`: of a list of `{"prompt": ..}` the first COUNT (48) are drawn, with
//! seeds 0, 1, .. and the model's defaults. The latents that the UNet predicts after a third, two thirds and all of its
//! calls are paired with what the autoencoder makes of them. Every other prompt is left out of the fit, and tells how much
//! of the variance of its pictures the fit explains, beside the colours in use: those in the model's files or, where there
//! are none, the fit to its autoencoder.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "its result is text"
)]

use sd_pipeline::{
    DType, Device, LatentRgb, LatentRgbFit, ModelSource, Pipeline, PreviewKind, Request, RgbImage,
    Tensor, builtin_model,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Scene {
    prompt: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (model, prompts) = match arguments.as_slice() {
        [model, prompts, ..] => (model, prompts),
        _ => return Err("usage: fit_preview builtin|FOLDER PROMPTS.json [COUNT]".into()),
    };
    let count = arguments.get(2).map_or(Ok(48), |count| count.parse())?;
    let source = match model.as_str() {
        "builtin" => builtin_model(),
        folder => ModelSource::Dir(folder.into()),
    };
    let scenes: Vec<Scene> = serde_json::from_str(&std::fs::read_to_string(prompts)?)?;

    let pipeline = Pipeline::builder(source).build()?;
    let channels = pipeline.config().vae.latent_channels;
    let (mut fitted, mut held_out) = (LatentRgbFit::new(channels), LatentRgbFit::new(channels));
    for (seed, scene) in (0..count).zip(&scenes) {
        let fit = if seed % 2 == 0 {
            &mut fitted
        } else {
            &mut held_out
        };
        let request = Request {
            seed: Some(seed),
            ..Request::new(&scene.prompt)
        };
        let mut run = pipeline.start(&request)?;
        while let Some(progress) = run.advance(&pipeline)? {
            let thirds = |call| 3 * call / progress.num_calls;
            if let Some(latents) = run
                .denoised()
                .filter(|_| thirds(progress.call) > thirds(progress.call - 1))
            {
                fit.add(
                    latents,
                    &tensor(&run.preview(&pipeline, PreviewKind::Full)?[0])?,
                )?;
            }
        }
        eprintln!("{} of {count}: {}", seed + 1, scene.prompt);
    }
    let colours = rounded(fitted.solve());
    println!("{}", serde_json::to_string_pretty(&colours)?);
    println!(
        "R^2 of these: {:.4} fitted, {:.4} held out",
        fitted.r_squared(&colours),
        held_out.r_squared(&colours)
    );
    println!(
        "R^2 of those in use: {:.4} held out",
        held_out.r_squared(pipeline.latent_rgb()?)
    );
    Ok(())
}

/// To four decimals: a hundredth of a level of 8 bits.
fn rounded(mut colours: LatentRgb) -> LatentRgb {
    for value in colours
        .factors
        .iter_mut()
        .chain([&mut colours.bias])
        .flatten()
    {
        *value = (*value * 1e4).round() / 1e4;
    }
    colours
}

/// `[1, 3, height, width]` in -1..1.
fn tensor(picture: &RgbImage) -> candle_core::Result<Tensor> {
    let shape = (1, picture.height() as usize, picture.width() as usize, 3);
    Tensor::from_slice(picture, shape, &Device::Cpu)?
        .permute((0, 3, 1, 2))?
        .to_dtype(DType::F32)?
        .affine(2. / 255., -1.)
}
