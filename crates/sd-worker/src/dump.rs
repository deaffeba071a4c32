//! `--dump-tensors`: the numbers between a prompt and its picture, for comparing two implementations.

use std::collections::BTreeMap;

use candle_core::Tensor;
use sd_pipeline::Run;

use crate::error::Result;

/// Tensors under the names and at the scale that diffusers shows them, all f32.
pub(crate) struct Dump {
    tensors: BTreeMap<String, Tensor>,
}

impl Dump {
    /// The encoded prompts, `[1, tokens, features]`, XL's pooled text, `[1, features]`, and the latents that a fresh run
    /// starts from, `[images, 4, height / 8, width / 8]`.
    pub(crate) fn new(run: &Run) -> Result<Self> {
        let conditions = run.conditions();
        let branches = [
            ("", Some(&conditions.positive)),
            ("negative_", conditions.negative.as_ref()),
        ];
        let mut tensors = BTreeMap::new();
        for (prefix, branch) in branches {
            let Some(branch) = branch else { continue };
            tensors.insert(format!("{prefix}prompt_embeds"), branch.hidden.clone());
            tensors.extend(
                branch
                    .pooled
                    .clone()
                    .map(|pooled| (format!("{prefix}pooled"), pooled)),
            );
        }
        tensors.insert("initial_latents".to_owned(), run.latents()?);
        Ok(Self { tensors })
    }

    /// The latents after a scheduler step, `latents_000` after the first.
    pub(crate) fn latents(&mut self, run: &Run, call: usize) -> Result<()> {
        self.tensors
            .insert(format!("latents_{:03}", call - 1), run.latents()?);
        Ok(())
    }

    /// The safetensors file, with the pictures, `[images, 3, height, width]` in 0..1.
    pub(crate) fn finish(mut self, image: Tensor) -> Result<Vec<u8>> {
        self.tensors.insert("image".to_owned(), image);
        Ok(safetensors::serialize(self.tensors, None)?)
    }
}
