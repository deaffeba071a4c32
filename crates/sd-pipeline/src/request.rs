//! What a caller asks for: a prompt, and whatever should differ from the model's defaults.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// A text-to-image request. `None` is the model's default; field names, meanings and sizes (height first) are those of
/// diffusers' `StableDiffusionPipeline` and `StableDiffusionXLPipeline`, and JSON keys are field names.
///
/// ```
/// use sd_pipeline::Request;
///
/// let request = Request { seed: Some(42), ..Request::new("a red circle") };
/// assert_eq!(request, Request::from_json(r#"{"prompt": "a red circle", "seed": 42}"#)?);
/// # Ok::<(), sd_pipeline::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to draw. Text beyond the encoder's length (75 tokens) is cut; [`Run::truncated`](crate::Run::truncated) tells.
    pub prompt: String,
    /// What to steer away from. `None` is the empty text, or no text at all for a model that says
    /// `force_zeros_for_empty_prompt`, as XL does.
    pub negative_prompt: Option<String>,
    /// Prompt of the second text encoder (XL). `None` or empty: `prompt`.
    pub prompt_2: Option<String>,
    /// Negative prompt of the second text encoder. `None` or empty: `negative_prompt`. Without a `negative_prompt`, a
    /// model that says `force_zeros_for_empty_prompt` ignores it.
    pub negative_prompt_2: Option<String>,
    /// Denoising steps, 1 to 1000.
    pub num_inference_steps: Option<usize>,
    /// Classifier-free guidance, 0 to 100. 1 and less turn it off, and with it the negative prompt.
    pub guidance_scale: Option<f64>,
    /// Share of the guided prediction that is rescaled to the spread of the unguided one, 0 to 1.
    pub guidance_rescale: Option<f64>,
    /// Width in pixels, a multiple of 8.
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8.
    pub height: Option<usize>,
    /// Seed of torch's CPU generator, which uses its low 32 bits. `None` draws one.
    pub seed: Option<u64>,
    /// How several pictures share the seed.
    pub seed_mode: Option<SeedMode>,
    /// Pictures to draw, 1 to 64.
    pub num_images: Option<usize>,
    /// Scheduler by short name or diffusers class, set up from the model's own configuration.
    pub scheduler: Option<String>,
    /// Share of fresh noise in each step of DDIM, 0 to 1; schedulers without such a setting ignore it.
    pub eta: Option<f64>,
    /// Last layers of the text encoder to leave out, for the positive prompt only.
    pub clip_skip: Option<usize>,
    /// XL: (height, width) the training picture is said to have had. `None`: the picture's size.
    pub original_size: Option<(usize, usize)>,
    /// XL: (top, left) of the crop the training picture is said to have had.
    pub crops_coords_top_left: Option<(usize, usize)>,
    /// XL: (height, width) of that crop. `None`: the picture's size.
    pub target_size: Option<(usize, usize)>,
    /// XL: `original_size` for the negative prompt; used when `negative_target_size` is given too.
    pub negative_original_size: Option<(usize, usize)>,
    /// XL: `crops_coords_top_left` for the negative prompt; used when both negative sizes are given.
    pub negative_crops_coords_top_left: Option<(usize, usize)>,
    /// XL: `target_size` for the negative prompt; used when `negative_original_size` is given too.
    pub negative_target_size: Option<(usize, usize)>,
}

/// How the pictures of one request share its seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedMode {
    /// Picture i is drawn from seed + i, so that each can be made again alone. In diffusers: one generator per picture.
    #[default]
    PerImage,
    /// One generator draws the noise of all pictures. In diffusers: a single generator.
    Batch,
}

impl Request {
    /// A request with every default.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            ..Self::default()
        }
    }

    /// Reads a request from a JSON object.
    ///
    /// # Errors
    /// [`Error::FieldJson`] names a key that is unknown or of the wrong type; [`Error::RequestJson`] is anything else.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::from_map(serde_json::from_str(json).map_err(Error::RequestJson)?)
    }

    pub(crate) fn from_map(fields: Map<String, Value>) -> Result<Self> {
        // serde_json does not say which key is wrong, so each is read alone first.
        for (field, value) in &fields {
            let alone =
                Map::from_iter([("prompt".into(), "".into()), (field.clone(), value.clone())]);
            if let Err(source) = Self::deserialize(Value::Object(alone)) {
                return Err(Error::FieldJson {
                    field: field.clone(),
                    source,
                });
            }
        }
        Self::deserialize(Value::Object(fields)).map_err(Error::RequestJson)
    }
}
