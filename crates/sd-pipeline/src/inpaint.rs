//! What keeps the rest of a picture while a part of it is painted anew.

use candle_core::{Result, Tensor};
use sd_scheduler::Plan;

use crate::error::Doing;

/// The two ways of inpainting.
#[derive(Clone, Debug)]
pub(crate) enum Inpaint {
    /// The UNet was trained for it and sees what to keep: mask and masked picture's latents, `[n, 1 + c, h, w]`, come after
    /// the latents in its input.
    Channels(Tensor),
    /// Any UNet: what to keep is put back after each call.
    Blend {
        /// Latents of the whole picture, `[n, c, h, w]`.
        original: Tensor,
        /// The noise of the run's start, `[n, c, h, w]`.
        noise: Tensor,
        /// 1 where the picture is painted anew, otherwise 0: `[1, 1, h, w]`.
        mask: Tensor,
    },
}

impl Inpaint {
    /// For a UNet with channels for the mask `[1, 1, height, width]` and the masked picture's latents `[n, c, h, w]`.
    pub(crate) fn channels(kept: Tensor, mask: &Tensor) -> crate::Result<Self> {
        let join = || {
            let mask = shrunk(mask, &kept)?.repeat((kept.dim(0)?, 1, 1, 1))?;
            Tensor::cat(&[&mask, &kept], 1)
        };
        join().doing("placing the mask").map(Self::Channels)
    }

    /// For a UNet without: `mask` is `[1, 1, height, width]`.
    pub(crate) fn blending(original: Tensor, noise: Tensor, mask: &Tensor) -> crate::Result<Self> {
        let mask = shrunk(mask, &original).doing("placing the mask")?;
        Ok(Self::Blend {
            original,
            noise,
            mask,
        })
    }

    /// What the UNet sees of these latents.
    pub(crate) fn input(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::Channels(channels) => Tensor::cat(&[latents, channels], 1),
            Self::Blend { .. } => Ok(latents.clone()),
        }
    }

    /// The latents before `call` with the rest of the picture put back, at the same level of noise; without noise when the
    /// run ends there, whatever the plan's last level is.
    pub(crate) fn keep(
        &self,
        latents: Tensor,
        plan: &Plan,
        call: usize,
        ends: bool,
    ) -> crate::Result<Tensor> {
        let Self::Blend {
            original,
            noise,
            mask,
        } = self
        else {
            return Ok(latents);
        };
        let kept = match ends {
            false => plan.noised(call, original, noise)?,
            true => {
                (original / plan.reference_scale(call)).doing("keeping the rest of a picture")?
            }
        };
        let blend =
            || latents.broadcast_mul(mask)? + kept.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
        blend().doing("keeping the rest of a picture")
    }
}

/// A mask `[1, 1, height, width]` at the size of latents, by the first pixel of each (torch's `nearest`).
fn shrunk(mask: &Tensor, latents: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = mask.dims4()?;
    let (_, _, rows, columns) = latents.dims4()?;
    let first = |axis, side: usize, count: usize| {
        let indices: Vec<u32> = (0..count).map(|i| (i * (side / count)) as u32).collect();
        let indices = Tensor::from_vec(indices, count, mask.device())?;
        Ok::<_, candle_core::Error>((axis, indices))
    };
    let (axis, indices) = first(2, height, rows)?;
    let mask = mask.index_select(&indices, axis)?;
    let (axis, indices) = first(3, width, columns)?;
    mask.index_select(&indices, axis)
}
