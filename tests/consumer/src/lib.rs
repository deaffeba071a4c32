//! Draws a picture with `sd-pipeline` and nothing else.

use std::{ops::ControlFlow, path::Path};

use sd_pipeline::{Error, ModelSource, Pipeline, Request};

/// An RGB picture, row by row from the top, three bytes a pixel.
pub struct Picture {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u8>,
}

/// Draws `prompt` with the model in the folder `model`; the same seed gives the same picture.
pub fn draw(model: &Path, prompt: &str, seed: u64) -> Result<Picture, Error> {
    let pipeline = Pipeline::builder(ModelSource::Dir(model.to_owned())).build()?;
    let request = Request {
        seed: Some(seed),
        ..Request::new(prompt)
    };
    let made = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
    let image = made
        .images
        .into_iter()
        .next()
        .expect("one image by default");
    Ok(Picture {
        width: image.width(),
        height: image.height(),
        pixels: image.into_raw(),
    })
}

impl Picture {
    /// The picture as a PPM file, the simplest format that viewers open.
    pub fn to_ppm(&self) -> Vec<u8> {
        let mut ppm = format!("P6 {} {} 255\n", self.width, self.height).into_bytes();
        ppm.extend(&self.pixels);
        ppm
    }
}
