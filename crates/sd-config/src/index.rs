//! The table of contents: `model_index.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json::File;
use crate::{Error, Result, files};

/// Classes of a text encoder.
const CLIP: &[&str] = &["CLIPTextModel", "CLIPTextModelWithProjection"];
/// Classes of a tokenizer.
const CLIP_TOKENIZER: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];

/// The components that make up a model, by folder, with the classes that are built; for the
/// scheduler, others decide. All further components, such as a safety checker, are ignored.
const COMPONENTS: [(&str, &[&str]); 7] = [
    ("scheduler", &[]),
    ("text_encoder", CLIP),
    ("text_encoder_2", CLIP),
    ("tokenizer", CLIP_TOKENIZER),
    ("tokenizer_2", CLIP_TOKENIZER),
    ("unet", &["UNet2DConditionModel"]),
    ("vae", &["AutoencoderKL"]),
];

/// Defaults that a model brings itself under the key `sd_defaults`, which diffusers does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunDefaults {
    /// Steps of the scheduler.
    pub num_inference_steps: Option<usize>,
    /// Guidance scale.
    pub guidance_scale: Option<f64>,
}

impl RunDefaults {
    fn check(&self, file: File<'_>) -> Result<()> {
        let key = "sd_defaults";
        self.num_inference_steps
            .map_or(Ok(()), |steps| file.range(key, steps, 1..=1000))?;
        match self
            .guidance_scale
            .filter(|scale| !(0.0..=100.0).contains(scale))
        {
            Some(scale) => Err(file.invalid(key, scale, "expected a guidance scale of 0 to 100")),
            None => Ok(()),
        }
    }
}

/// The pipeline's class and its components.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelIndex {
    /// The class of diffusers' pipeline, without the prefix `Flax`.
    pub class_name: String,
    /// The class of each component that is there, by folder, without the prefix `Flax`.
    pub components: BTreeMap<String, String>,
    /// XL: a negative prompt that is not given becomes zeros, instead of the encoded empty prompt.
    pub force_zeros_for_empty_prompt: bool,
    /// XL refiner: the sizes end with an aesthetic score.
    pub requires_aesthetics_score: bool,
    /// The model's own defaults.
    pub sd_defaults: RunDefaults,
}

/// The keys that are not components, with the defaults of diffusers' pipelines.
#[derive(Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "_class_name")]
    class_name: String,
    force_zeros_for_empty_prompt: bool,
    requires_aesthetics_score: bool,
    sd_defaults: RunDefaults,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            class_name: String::new(),
            force_zeros_for_empty_prompt: true,
            requires_aesthetics_score: false,
            sd_defaults: RunDefaults::default(),
        }
    }
}

impl ModelIndex {
    /// Parses and checks the text of `model_index.json`.
    ///
    /// # Errors
    /// Text that is no JSON object, values of a wrong type, another kind of model, a component of a
    /// class that is not built.
    pub fn parse(json: &str) -> Result<Self> {
        let file = File(files::MODEL_INDEX);
        let map = file.object(json)?;
        let components = components(&map)?;
        let keys: Keys = file.read(map)?;
        keys.sd_defaults.check(file)?;
        Ok(Self {
            class_name: plain(&keys.class_name).to_owned(),
            components,
            force_zeros_for_empty_prompt: keys.force_zeros_for_empty_prompt,
            requires_aesthetics_score: keys.requires_aesthetics_score,
            sd_defaults: keys.sd_defaults,
        })
    }
}

/// The entries `"folder": ["library", "class"]`; `[null, null]` marks a component left out.
fn components(map: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let class = |folder: &str| map.get(folder)?.as_array()?.get(1)?.as_str().map(plain);
    let other_kind = |found: String| {
        let pipeline = map.get("_class_name").and_then(Value::as_str);
        let pipeline = pipeline.unwrap_or("the pipeline").to_owned();
        Error::Kind { pipeline, found }
    };
    if let Some(class) = class("transformer") {
        return Err(other_kind(format!("has a transformer, {class}")));
    }
    let mut components = BTreeMap::new();
    for (folder, built) in COMPONENTS {
        let Some(class) = class(folder) else { continue };
        if !(built.is_empty() || built.contains(&class)) {
            return Err(other_kind(format!("has {class} as its {folder}")));
        }
        components.insert(folder.to_owned(), class.to_owned());
    }
    match ["unet", "vae"]
        .into_iter()
        .find(|folder| !components.contains_key(*folder))
    {
        Some(folder) => Err(other_kind(format!("has no {folder}"))),
        None => Ok(components),
    }
}

/// Old folders name the Flax twin of a class; the files are the same.
fn plain(class: &str) -> &str {
    class.strip_prefix("Flax").unwrap_or(class)
}
