//! What a call of the UNet takes, and the check that a model can take it.

use candle_core::Tensor;

use super::Unet;
use crate::{Component, Error, Result};

/// One call of a [`Unet`], over a batch of pictures that are at their own timesteps.
#[derive(Debug, Clone, Copy)]
pub struct UnetInput<'a> {
    /// Noisy latents `[batch, in_channels, height, width]`, any size.
    pub sample: &'a Tensor,
    /// One a picture, in 0..1000; may be fractional.
    pub timesteps: &'a [f64],
    /// The text, `[batch, tokens, cross_attention_dim]`.
    pub encoder_hidden_states: &'a Tensor,
    /// Pooled text and sizes: XL only.
    pub added: Option<Added<'a>>,
    /// The guidance scale's embedding `[batch, time_cond_proj_dim]`: latent consistency models only. None
    /// leaves it out, as diffusers does.
    pub timestep_cond: Option<&'a Tensor>,
    /// `[batch]` or `[batch, width]`, for models with classes.
    pub class_labels: Option<&'a Tensor>,
    /// What a ControlNet adds.
    pub residuals: Option<Residuals<'a>>,
}

impl<'a> UnetInput<'a> {
    /// A call without any of the optional inputs.
    pub fn new(
        sample: &'a Tensor,
        timesteps: &'a [f64],
        encoder_hidden_states: &'a Tensor,
    ) -> Self {
        Self {
            sample,
            timesteps,
            encoder_hidden_states,
            added: None,
            timestep_cond: None,
            class_labels: None,
            residuals: None,
        }
    }
}

/// The conditioning that XL adds to the timestep's.
#[derive(Debug, Clone, Copy)]
pub struct Added<'a> {
    /// Pooled text `[batch, width]`.
    pub text_embeds: &'a Tensor,
    /// `[batch, 6]`: original height and width, crop top and left, target height and width; the refiner's
    /// `[batch, 5]` end with the aesthetic score.
    pub time_ids: &'a Tensor,
}

/// What a ControlNet adds to the skip connections and to the middle.
#[derive(Debug, Clone, Copy)]
pub struct Residuals<'a> {
    /// One a skip connection, the input's first, each of that connection's shape.
    pub down: &'a [Tensor],
    /// Of the shape of the middle block's output.
    pub mid: &'a Tensor,
}

impl Unet {
    /// That every input the model needs is there, of the right shape, and no other.
    pub(super) fn check(&self, input: &UnetInput) -> Result<()> {
        let &[batch, channels, height, width] = input.sample.dims() else {
            let expected = "[batch, channels, height, width]";
            return Err(wrong("sample", input.sample.dims(), expected));
        };
        let channels_in = self.config.in_channels;
        if channels != channels_in || input.sample.elem_count() == 0 {
            let expected = format!("[batch, {channels_in}, height, width], none of them 0");
            return Err(wrong("sample", input.sample.dims(), expected));
        }
        if input.timesteps.len() != batch {
            let found = format!("{} values", input.timesteps.len());
            return Err(error("timesteps", found, format!("one a sample: {batch}")));
        }
        self.check_text(input.encoder_hidden_states, batch)?;
        self.check_added(input.added, batch)?;
        match (self.config.time_cond_proj_dim, input.timestep_cond) {
            (_, None) => {}
            (Some(dim), Some(condition)) => shape("timestep_cond", condition, &[batch, dim])?,
            (None, Some(_)) => return Err(presence("timestep_cond", true)),
        }
        match (&self.class_embedding, input.class_labels) {
            (None, None) => {}
            (Some(classes), Some(labels)) => {
                shape("class_labels", labels, &classes.labels_shape(batch))?;
            }
            (_, labels) => return Err(presence("class_labels", labels.is_some())),
        }
        match &input.residuals {
            Some(residuals) => self.check_residuals(residuals, [batch, height, width]),
            None => Ok(()),
        }
    }

    fn check_text(&self, text: &Tensor, batch: usize) -> Result<()> {
        let (down, mid) = (self.config.down_blocks(), self.config.mid_block());
        let attention = down.iter().chain(&mid).find_map(|block| block.attention);
        let fits = |dim| attention.is_none_or(|attention| attention.context_dim == dim);
        if matches!(*text.dims(), [b, tokens, dim] if b == batch && tokens > 0 && fits(dim)) {
            return Ok(());
        }
        let width = attention.map_or("width".into(), |attention| {
            attention.context_dim.to_string()
        });
        let expected = format!("[{batch}, tokens, {width}], at least one token");
        Err(wrong("encoder_hidden_states", text.dims(), expected))
    }

    fn check_added(&self, added: Option<Added>, batch: usize) -> Result<()> {
        match (&self.add_embedding, added) {
            (None, None) => Ok(()),
            (Some(embedding), Some(added)) => {
                let width = match *added.time_ids.dims() {
                    [b, ids] if b == batch => embedding.text_width(ids),
                    _ => None,
                };
                let Some(width) = width else {
                    let expected = format!("[{batch}, 6], or 5 in the refiner");
                    return Err(wrong("time_ids", added.time_ids.dims(), expected));
                };
                shape("text_embeds", added.text_embeds, &[batch, width])
            }
            (_, added) => Err(presence("added", added.is_some())),
        }
    }

    /// `size` is the batch, height and width of the sample.
    fn check_residuals(&self, residuals: &Residuals, size: [usize; 3]) -> Result<()> {
        let [batch, mut height, mut width] = size;
        let mut channels = self.config.block_out_channels[0];
        let mut expected = vec![[batch, channels, height, width]];
        for block in self.config.down_blocks() {
            channels = block.out_channels;
            expected.extend(vec![[batch, channels, height, width]; block.layers]);
            if block.resample {
                (height, width) = (height.div_ceil(2), width.div_ceil(2));
                expected.push([batch, channels, height, width]);
            }
        }
        if residuals.down.len() != expected.len() {
            let found = format!("{} tensors", residuals.down.len());
            let expected = format!("one a skip connection: {}", expected.len());
            return Err(error("residuals.down", found, expected));
        }
        for (residual, expected) in residuals.down.iter().zip(&expected) {
            shape("residuals.down", residual, expected)?;
        }
        shape(
            "residuals.mid",
            residuals.mid,
            &[batch, channels, height, width],
        )
    }
}

fn shape(what: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    match tensor.dims() == expected {
        true => Ok(()),
        false => Err(wrong(what, tensor.dims(), format!("{expected:?}"))),
    }
}

fn wrong(what: &'static str, found: &[usize], expected: impl Into<String>) -> Error {
    error(what, format!("{found:?}"), expected)
}

/// An input that is given though the model has no place for it, or the other way round.
fn presence(what: &'static str, given: bool) -> Error {
    match given {
        true => error(
            what,
            "given".into(),
            "nothing: this model has no such input",
        ),
        false => error(what, "missing".into(), "a value: this model needs it"),
    }
}

fn error(what: &'static str, found: String, expected: impl Into<String>) -> Error {
    let (component, expected) = (Component::Unet, expected.into());
    Error::Input {
        component,
        what,
        found,
        expected,
    }
}
