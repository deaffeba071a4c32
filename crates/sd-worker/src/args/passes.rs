//! Second passes of `generate`: at a larger size, or by XL's refiner.

use clap::Args;
use sd_pipeline::{Hires, Upscaler};

use super::one_of;

/// The enlarged second pass; any of these flags asks for it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Second pass at a larger size")]
#[group(id = "hires", multiple = true, conflicts_with_all = ["init_image", "refiner"])]
pub struct HiresArgs {
    /// Size of the second pass over the first's, 1 to 8 [default: 2]
    #[arg(long, value_name = "FACTOR")]
    pub hires_scale: Option<f64>,

    /// Width of the second pass, a multiple of 8
    #[arg(long, value_name = "N", conflicts_with = "hires_scale")]
    pub hires_width: Option<usize>,

    /// Height of the second pass, a multiple of 8
    #[arg(long, value_name = "N", conflicts_with = "hires_scale")]
    pub hires_height: Option<usize>,

    /// What enlarges the first picture [default: latent-bilinear]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Upscaler>(&["latent-nearest", "latent-bilinear", "latent-bicubic", "lanczos"]))]
    pub hires_upscaler: Option<Upscaler>,

    /// How much the second pass changes, 0 to 1 [default: 0.7]
    #[arg(long, value_name = "SHARE")]
    pub hires_strength: Option<f64>,

    /// Steps of the second pass, of which its strength leaves some out [default: STEPS]
    #[arg(long, value_name = "N")]
    pub hires_steps: Option<usize>,
}

impl HiresArgs {
    /// The second pass, if any flag asks for it.
    pub(crate) fn hires(&self) -> Option<Hires> {
        let hires = Hires {
            scale: self.hires_scale,
            width: self.hires_width,
            height: self.hires_height,
            upscaler: self.hires_upscaler,
            strength: self.hires_strength,
            num_inference_steps: self.hires_steps,
        };
        (hires != Hires::default()).then_some(hires)
    }
}

/// The hand-over to a refiner.
#[derive(Args, Debug)]
#[command(next_help_heading = "Refiner")]
pub struct RefinerArgs {
    /// XL refiner that takes over before the end: a folder in diffusers layout, or a Hugging Face id
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["mask", "outpaint", "dump_tensors"])]
    pub refiner: Option<String>,

    /// Share of the way from noise at which it does, between 0 and 1
    #[arg(long, value_name = "SHARE", default_value = "0.8")]
    pub refiner_start: f64,

    /// How beautiful a refiner is told the picture is, 0 to 10 [default: 6]
    #[arg(long, value_name = "SCORE")]
    pub aesthetic_score: Option<f64>,

    /// The same for the negative prompt [default: 2.5]
    #[arg(long, value_name = "SCORE")]
    pub negative_aesthetic_score: Option<f64>,
}
