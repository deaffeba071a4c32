//! From the command line to a request.

use std::{fs, path::Path};

use sd_image::{Decoded, Limits, Picture};
use sd_pipeline::{Request, RgbImage};

use crate::{
    args::{GenerateArgs, SourceArgs},
    error::{Error, Result},
    png,
};

/// The request as typed, with its pictures: what is not given is for the library to resolve.
///
/// # Errors
/// A picture cannot be read.
pub(super) fn request(args: &GenerateArgs) -> Result<Request> {
    let request = Request {
        negative_prompt: args.negative_prompt.clone(),
        prompt_2: args.prompt_2.clone(),
        prompt_weighting: args.prompt_weighting,
        num_inference_steps: args.steps,
        guidance_scale: args.guidance_scale,
        guidance_rescale: args.guidance_rescale,
        width: args.width,
        height: args.height,
        seed: args.seed,
        seed_mode: args.seed_mode,
        num_images: args.num_images,
        scheduler: args.scheduler.clone(),
        eta: args.eta,
        clip_skip: args.clip_skip,
        variation_seed: args.variation_seed,
        variation_strength: args.variation_strength,
        denoising_end: args
            .refiner
            .refiner
            .is_some()
            .then_some(args.refiner.refiner_start),
        hires: args.hires.hires(),
        vae_tiling: args.memory.vae_tiling,
        ..Request::new(&args.prompt)
    };
    let request = sourced(request, &args.source)?;
    // Scores are the refiner's, which may be the only model.
    Ok(match args.refiner.refiner {
        Some(_) => request,
        None => scored(request, args),
    })
}

/// What the refiner is asked to do with the base model's latents.
pub(super) fn refining(args: &GenerateArgs, base: &Request, seed: u64) -> Request {
    let request = Request {
        seed: Some(seed),
        denoising_start: base.denoising_end,
        denoising_end: None,
        init_image: None,
        strength: None,
        resize_mode: None,
        variation_seed: None,
        variation_strength: None,
        ..base.clone()
    };
    scored(request, args)
}

fn scored(request: Request, args: &GenerateArgs) -> Request {
    Request {
        aesthetic_score: args.refiner.aesthetic_score,
        negative_aesthetic_score: args.refiner.negative_aesthetic_score,
        ..request
    }
}

fn sourced(request: Request, args: &SourceArgs) -> Result<Request> {
    let Some(path) = &args.init_image else {
        return Ok(request);
    };
    let (init_image, decoded) = read("init-image", path)?;
    let request = Request {
        init_image: Some(init_image),
        strength: args.strength,
        resize_mode: args.resize_mode,
        mask_polarity: args.mask_polarity,
        mask_blur: args.mask_blur,
        padding_mask_crop: args.only_masked,
        overlay: args.overlay,
        ..request
    };
    if let Some(path) = &args.mask {
        let (mask_image, _) = read("mask", path)?;
        return Ok(Request {
            mask_image: Some(mask_image),
            ..request
        });
    }
    let Some(margins) = args.outpaint else {
        return Ok(request);
    };
    let (larger, mask) =
        sd_image::outpaint(&decoded.rgb, margins, &Limits::default()).map_err(|source| {
            Error::Picture {
                flag: "outpaint",
                source,
            }
        })?;
    let mask = RgbImage::from_fn(mask.width(), mask.height(), |x, y| {
        image::Rgb([mask.get_pixel(x, y).0[0]; 3])
    });
    Ok(Request {
        init_image: Some(Picture::from_bytes(png::encode(&larger, &[])?)),
        mask_image: Some(Picture::from_bytes(png::encode(&mask, &[])?)),
        // Nobody adds room to a picture to have the rest of it changed.
        overlay: request.overlay.or(Some(true)),
        ..request
    })
}

/// Reads a picture and decodes it once, as that is quicker than loading a model in vain.
fn read(flag: &'static str, path: &Path) -> Result<(Picture, Decoded)> {
    let bytes = fs::read(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })?;
    let picture = Picture::from_bytes(bytes);
    let decoded = picture
        .decode(&Limits::default())
        .map_err(|source| Error::Picture { flag, source })?;
    Ok((picture, decoded))
}
