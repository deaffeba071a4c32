//! Intermediary pictures of `generate`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use sd_pipeline::PreviewKind;

use super::one_of;

/// What is shown on the way.
#[derive(Args, Debug)]
#[command(next_help_heading = "Previews")]
pub struct PreviewArgs {
    /// Write the picture as it is after every N steps to NAME-step-N.png, beside the output
    #[arg(long, value_name = "N")]
    pub preview_every: Option<NonZeroUsize>,

    /// How it is made: of the latents alone at an eighth of the size, by a tiny decoder, or in full [default: linear, with
    /// --tiny-vae tiny]
    #[arg(long, value_name = "KIND", requires = "preview_every", value_parser = one_of::<PreviewKind>(&["linear", "tiny", "full"]))]
    pub preview_kind: Option<PreviewKind>,

    /// The tiny decoder: taesd_decoder.safetensors or its like, or a folder of diffusers' AutoencoderTiny
    #[arg(
        long,
        value_name = "PATH",
        requires = "preview_every",
        required_if_eq("preview_kind", "tiny")
    )]
    pub tiny_vae: Option<PathBuf>,
}

impl PreviewArgs {
    /// Whether one is due after `step` of `num_steps`; the last one is the picture itself.
    pub(crate) fn is_due(&self, step: usize, num_steps: usize) -> bool {
        let every = self.preview_every.map_or(num_steps, NonZeroUsize::get);
        step.is_multiple_of(every) && (1..num_steps).contains(&step)
    }

    /// How to make it.
    pub(crate) fn kind(&self) -> PreviewKind {
        self.preview_kind.unwrap_or(match self.tiny_vae {
            Some(_) => PreviewKind::Tiny,
            None => PreviewKind::Linear,
        })
    }
}
