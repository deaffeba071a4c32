//! Pictures in overlapping tiles, so that memory depends on a tile and not on the picture (diffusers'
//! `AutoencoderKL.enable_vae_tiling`, autoencoder_kl.py: `tiled_decode`, `_tiled_encode`).
//!
//! A tile is as large as the pictures that the model was trained on and shares a quarter with each neighbour, where one
//! fades into the other. The result is not that of the whole picture: norms and attention see one tile at a time.

use candle_core::{Result, Tensor};

use crate::nn::Ledger;

/// How the tensors that go into the network are cut, and the results joined. Lengths are sides of squares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Of a tile, in pixels of the network's input.
    size: usize,
    /// What two neighbouring results share, in pixels of the output.
    overlap: usize,
    /// What a result contributes, in pixels of the output.
    kept: usize,
}

impl Tiling {
    /// Tiles of `latents` each way, a multiple of 4, to tiles `factor` times as large.
    pub(super) fn decoding(latents: usize, factor: usize) -> Self {
        Self::new(latents, latents * factor)
    }

    /// The opposite way.
    pub(super) fn encoding(latents: usize, factor: usize) -> Self {
        Self::new(latents * factor, latents)
    }

    fn new(size: usize, result: usize) -> Self {
        Self {
            size,
            overlap: result / 4,
            kept: result - result / 4,
        }
    }

    /// Sides of the largest tile of an input `[height, width]`.
    pub(super) fn largest(&self, input: [usize; 2]) -> [usize; 2] {
        input.map(|side| side.min(self.size))
    }

    /// Whether an input `[height, width]` takes more than one tile.
    pub(super) fn cuts(&self, input: [usize; 2]) -> bool {
        self.largest(input) != input
    }

    /// `f` of every tile of `x [1, channels, height, width]`, joined. Of a tile that is done, only its part of the
    /// result and its edges are kept.
    pub(super) fn map(&self, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let stride = self.size - self.size / 4;
        let part =
            |x: &Tensor, dim, start, side: usize| x.narrow(dim, start, self.size.min(side - start));
        let mut rows = Vec::new();
        // The lower edges of the row of tiles above.
        let mut above: Vec<Tensor> = Vec::new();
        for top in (0..height).step_by(stride) {
            let x = part(x, 2, top, height)?;
            let (mut row, mut below) = (Vec::new(), Vec::new());
            let mut before: Option<Tensor> = None;
            for (column, left) in (0..width).step_by(stride).enumerate() {
                let mut tile = f(&part(&x, 3, left, width)?.contiguous()?)?;
                if let Some(edge) = above.get(column) {
                    tile = faded(edge, &tile, 2)?;
                }
                if let Some(edge) = &before {
                    tile = faded(edge, &tile, 3)?;
                }
                below.push(self.edge(&tile, 2)?);
                before = Some(self.edge(&tile, 3)?);
                let [height, width] = [tile.dim(2)?, tile.dim(3)?].map(|side| side.min(self.kept));
                let kept = tile.narrow(2, 0, height)?.narrow(3, 0, width)?;
                row.push(kept.force_contiguous()?);
            }
            rows.push(Tensor::cat(&row, 3)?);
            above = below;
        }
        Tensor::cat(&rows, 2)
    }

    /// The memory of [`map`](Self::map) for an input of `[height, width]` and a result of these dims, where a tile's
    /// `f` is `replay`.
    pub(super) fn replay(
        &self,
        memory: &mut Ledger,
        input: [usize; 2],
        result: [usize; 4],
        replay: impl FnOnce(&mut Ledger, [usize; 2]) -> [usize; 4],
    ) {
        // The rows that are done, as if all were.
        memory.hold(&result);
        let tile = replay(memory, self.largest(input));
        memory.release(&tile);
        memory.pass(&result);
    }

    /// The end of a tile that its neighbour along `dim` shares, as a copy: a view would keep the tile.
    fn edge(&self, tile: &Tensor, dim: usize) -> Result<Tensor> {
        let side = tile.dim(dim)?;
        let shared = self.overlap.min(side);
        tile.narrow(dim, side - shared, shared)?.force_contiguous()
    }
}

/// `tile` with its beginning along `dim` faded in from `edge` (`blend_v` and `blend_h`).
fn faded(edge: &Tensor, tile: &Tensor, dim: usize) -> Result<Tensor> {
    let (edge_side, side) = (edge.dim(dim)?, tile.dim(dim)?);
    let shared = edge_side.min(side);
    let ramp = |weight: fn(f64) -> f64| {
        let weights = (0..shared).map(|i| weight(i as f64 / shared as f64) as f32);
        let mut shape = [1; 4];
        shape[dim] = shared;
        Tensor::from_iter(weights, tile.device())?
            .to_dtype(tile.dtype())?
            .reshape(&shape)
    };
    let old = edge.narrow(dim, edge_side - shared, shared)?;
    let new = tile.narrow(dim, 0, shared)?;
    let blended = (old.broadcast_mul(&ramp(|x| 1. - x)?)? + new.broadcast_mul(&ramp(|x| x)?)?)?;
    match side - shared {
        0 => Ok(blended),
        rest => Tensor::cat(&[blended, tile.narrow(dim, shared, rest)?], dim),
    }
}
