//! What `generate` starts from beside noise: a picture, a mask, margins.

use std::path::PathBuf;

use clap::Args;
use sd_image::Margins;
use sd_pipeline::{MaskPolarity, ResizeMode};

use super::one_of;

/// Image-to-image, inpainting and outpainting.
#[derive(Args, Debug)]
#[command(next_help_heading = "Picture to start from")]
pub struct SourceArgs {
    /// PNG, JPEG or WebP to change; its size is the new picture's, unless that is given
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,

    /// How much of it to change, 0 to 1 [default: 0.8, with a mask 1; XL: 0.3 and 0.9999]
    #[arg(long, value_name = "SHARE", requires = "init_image")]
    pub strength: Option<f64>,

    /// How it is brought to another size [default: stretch, with --only-masked fill]
    #[arg(long, value_name = "MODE", requires = "init_image", value_parser = one_of::<ResizeMode>(&["stretch", "fill", "crop"]))]
    pub resize_mode: Option<ResizeMode>,

    /// PNG, JPEG or WebP that is white where the picture is painted anew
    #[arg(long, value_name = "FILE", requires = "init_image", group = "masked")]
    pub mask: Option<PathBuf>,

    /// What of the mask is painted anew [default: white-repaints]
    #[arg(long, value_name = "PART", requires = "mask", value_parser = one_of::<MaskPolarity>(&["white-repaints", "black-repaints", "transparent-repaints"]))]
    pub mask_polarity: Option<MaskPolarity>,

    /// Radius in pixels that softens the mask's edge [default: 0]
    #[arg(long, value_name = "PIXELS", requires = "masked")]
    pub mask_blur: Option<f64>,

    /// Work on the masked part alone, at full size, with so many pixels around it
    #[arg(long, value_name = "PIXELS", num_args = 0..=1, require_equals = true, default_missing_value = "32", requires = "mask")]
    pub only_masked: Option<usize>,

    /// Keep every pixel outside the mask as it is [default: with --only-masked or --outpaint]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", requires = "masked")]
    pub overlay: Option<bool>,

    /// Pixels to add on each side of the picture, and to paint
    #[arg(long, value_name = "LEFT,TOP,RIGHT,BOTTOM", requires = "init_image", group = "masked", value_parser = margins)]
    pub outpaint: Option<Margins>,
}

fn margins(text: &str) -> Result<Margins, &'static str> {
    let sides: Option<Vec<u32>> = text
        .split(',')
        .map(|side| side.trim().parse().ok())
        .collect();
    match sides.as_deref() {
        Some(&[left, top, right, bottom]) => Ok(Margins {
            left,
            top,
            right,
            bottom,
        }),
        _ => Err("expected four numbers of pixels, such as 64,0,64,0"),
    }
}
