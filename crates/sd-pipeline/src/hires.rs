//! The second pass of a hires fix: what was made, enlarged and changed like a picture that was given.

use candle_core::{Device, Tensor};
use sd_image::{Filter, resize};
use sd_scheduler::SeededNoise;

use crate::{
    Error, Job, Pipeline, Result, Upscaler,
    error::Doing,
    image::{to_rgb, unit_range},
    init,
    interpolate::{Mode, interpolate},
    pass::Pass,
    source::to_tensor,
};

/// The beginning of the second pass from the first one's latents, and its generators. These start afresh, so that the
/// passes are what two requests with the same seed would be.
pub(crate) fn start(
    pipeline: &Pipeline,
    second: &Job,
    upscaler: Upscaler,
    pass: &Pass,
    latents: &Tensor,
) -> Result<(Tensor, SeededNoise)> {
    let device = latents.device();
    let mut noise = init::noise(second);
    let shape = pipeline.latent_shape(second);
    let enlarged = |mode| {
        let [_, _, height, width] = shape;
        interpolate(latents, height, width, mode).doing("enlarging the latents")
    };
    let original = match upscaler {
        Upscaler::LatentNearest => enlarged(Mode::Nearest)?,
        Upscaler::LatentBilinear => enlarged(Mode::Bilinear)?,
        Upscaler::LatentBicubic => enlarged(Mode::Bicubic)?,
        Upscaler::Lanczos => {
            let images = enlarged_pictures(pipeline, second, latents, device)?;
            let posterior = pipeline.encode(second, &images)?;
            init::sample(&posterior, second, &mut noise)?
        }
    };
    let fresh = init::initial_noise(shape, second, device, &mut noise)?;
    let latents = pass.plan().noised(pass.first, &original, &fresh)?;
    Ok((latents, noise))
}

/// The pictures of latents, rounded to 8 bits and enlarged: `[n, 3, height, width]` in -1..1.
fn enlarged_pictures(
    pipeline: &Pipeline,
    second: &Job,
    latents: &Tensor,
    device: &Device,
) -> Result<Tensor> {
    let decoded = unit_range(&pipeline.decode(second, latents)?)?;
    let side = |pixels| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (width, height) = (side(second.width), side(second.height));
    let images = to_rgb(&decoded)?
        .iter()
        .map(|image| {
            let image =
                resize(image, width, height, Filter::Lanczos).map_err(|source| Error::Picture {
                    field: "hires",
                    source,
                })?;
            to_tensor(&image, device)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&images, 0).doing("batching the enlarged pictures")
}
