//! What a caller asks for: a prompt, and whatever should differ from the model's defaults.

use sd_image::{Picture, ResizeMode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, PromptWeighting, Result};

/// A request for pictures: of text alone, of a picture to change (`init_image`), or of a part of one to paint anew
/// (`mask_image` too). `None` is the model's default for that task; field names, meanings and sizes (height first) are
/// those of diffusers' pipelines, and JSON keys are field names.
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
    /// What to draw. Text beyond the encoder's length (75 tokens) is cut, [`Run::truncated`](crate::Run::truncated) tells; with
    /// a `prompt_weighting` nothing is cut. This and the other prompts have 65536 bytes of UTF-8 at most.
    pub prompt: String,
    /// What to steer away from. `None` is the empty text, or no text at all for a model that says
    /// `force_zeros_for_empty_prompt`, as XL does.
    pub negative_prompt: Option<String>,
    /// Prompt of the second text encoder (XL). `None` or empty: `prompt`.
    pub prompt_2: Option<String>,
    /// Negative prompt of the second text encoder. `None` or empty: `negative_prompt`. Without a `negative_prompt`, a
    /// model that says `force_zeros_for_empty_prompt` ignores it.
    pub negative_prompt_2: Option<String>,
    /// How all prompts are read. `None`: [`PromptWeighting::Plain`].
    pub prompt_weighting: Option<PromptWeighting>,
    /// Denoising steps, 1 to 1000.
    pub num_inference_steps: Option<usize>,
    /// Classifier-free guidance, 0 to 100. 1 and less turn it off, and with it the negative prompt.
    pub guidance_scale: Option<f64>,
    /// Share of the guided prediction that is rescaled to the spread of the unguided one, 0 to 1. As in diffusers, only XL
    /// has it when there is an `init_image`.
    pub guidance_rescale: Option<f64>,
    /// Width in pixels, a multiple of 8. `None`: that of `init_image`, brought down to a multiple of 8, or the model's;
    /// with `padding_mask_crop` always the model's.
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8. `None`: as for `width`.
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
    /// Last layers of the text encoder to leave out: for the positive prompt only, with a `prompt_weighting` for both.
    pub clip_skip: Option<usize>,
    /// Encodes and decodes pictures in tiles as large as the model's training pictures, which bounds the memory and changes
    /// the picture slightly. `None`: where the request would not fit into the pipeline's
    /// [`max_memory`](crate::PipelineBuilder::max_memory) otherwise.
    pub vae_tiling: Option<bool>,
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
    /// The picture to change. Base64 or a `data:` URI in JSON.
    pub init_image: Option<Picture>,
    /// How much of `init_image` to change, 0 to 1: the share of `num_inference_steps` that is made; latent consistency models
    /// make all of them, from less noise. `None`: 0.8, with a mask 1; XL: 0.3, with a mask 0.9999.
    pub strength: Option<f64>,
    /// How `init_image` and `mask_image` are brought to `width` and `height`. `None`: [`ResizeMode::Stretch`], and
    /// [`ResizeMode::Fill`] with `padding_mask_crop`; these are the only ones that an overlay can undo.
    pub resize_mode: Option<ResizeMode>,
    /// Which part of `init_image` to paint anew; the rest is kept.
    pub mask_image: Option<Picture>,
    /// What `mask_image` says. `None`: white is painted anew.
    pub mask_polarity: Option<MaskPolarity>,
    /// Radius in pixels of the Gaussian that softens the mask, 0 to 1024. `None`: 0. The model sees the softened mask cut at
    /// half; the `overlay` blends along it.
    pub mask_blur: Option<f64>,
    /// Works on the masked part alone, at full `width` and `height`: the smallest part of the picture that holds the mask and
    /// this many pixels around it. `None`: on the whole picture.
    pub padding_mask_crop: Option<usize>,
    /// Puts the result back into `init_image`, at its size: pixels outside the mask stay as they are, bit for bit. `None`:
    /// only with `padding_mask_crop`, where it cannot be turned off.
    pub overlay: Option<bool>,
    /// Seed of a second noise that the first is bent towards. `None` with a `variation_strength` draws one.
    pub variation_seed: Option<u64>,
    /// How far towards the second noise, 0 to 1: the web UI's variation strength. Where it is not 0, the pictures of a request
    /// share the seed, and picture i varies by variation seed + i.
    pub variation_strength: Option<f64>,
    /// XL: the share of the way from noise at which the run stops, between 0 and 1, for another model to go on there.
    pub denoising_end: Option<f64>,
    /// XL: the share at which [`Pipeline::start_from`](crate::Pipeline::start_from) goes on with another run's latents.
    pub denoising_start: Option<f64>,
    /// XL refiner: how beautiful the picture is said to be, 0 to 10. `None`: 6.
    pub aesthetic_score: Option<f64>,
    /// XL refiner: `aesthetic_score` for the negative prompt. `None`: 2.5.
    pub negative_aesthetic_score: Option<f64>,
    /// Enlarges the finished picture, and refines it in a second pass.
    pub hires: Option<Hires>,
}

/// What a mask says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskPolarity {
    /// White is painted anew, as in diffusers and the web UI.
    #[default]
    WhiteRepaints,
    /// Black is painted anew.
    BlackRepaints,
    /// What is transparent is painted anew, whatever its colour, as in OpenAI's interface.
    TransparentRepaints,
}

/// A second pass at a larger size: the finished picture enlarged, then changed as an `init_image` would be, from the same
/// seed. Where XL's size conditioning is the first pass's size, it becomes the second's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hires {
    /// The second pass's size over the first's, 1 to 8, rounded down to a multiple of 8. `None`: 2, without `width` and
    /// `height`.
    pub scale: Option<f64>,
    /// Width in pixels, a multiple of 8. `None`: by `scale`, or in proportion to `height`.
    pub width: Option<usize>,
    /// Height in pixels, a multiple of 8. `None`: by `scale`, or in proportion to `width`.
    pub height: Option<usize>,
    /// What enlarges. `None`: [`Upscaler::LatentBilinear`].
    pub upscaler: Option<Upscaler>,
    /// How much to change, 0 to 1. `None`: 0.7.
    pub strength: Option<f64>,
    /// Steps of the second pass, of which `strength` decides how many are made. `None`: those of the first.
    pub num_inference_steps: Option<usize>,
}

/// What enlarges a picture for its second pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upscaler {
    /// The latents, each repeated.
    LatentNearest,
    /// The latents, interpolated linearly.
    #[default]
    LatentBilinear,
    /// The latents, interpolated by cubics.
    LatentBicubic,
    /// The decoded picture, by Lanczos' filter.
    Lanczos,
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
        let json = Value::Object(fields);
        Self::deserialize(&json).map_err(|error| named(json, error))
    }
}

/// What is wrong with the JSON of a request. serde_json does not say which key it is, so each is read alone.
fn named(json: Value, error: serde_json::Error) -> Error {
    let Value::Object(fields) = json else {
        return Error::RequestJson(error);
    };
    for (field, value) in fields {
        let alone = Map::from_iter([("prompt".into(), "".into()), (field.clone(), value)]);
        if let Err(source) = Request::deserialize(Value::Object(alone)) {
            return Error::FieldJson { field, source };
        }
    }
    Error::RequestJson(error)
}
