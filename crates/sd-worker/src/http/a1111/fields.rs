//! The body of `txt2img` and `img2img`, as the web UI's clients send it: mostly defaults and `null`.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::lax;

/// Keys that are not listed are ignored, as the web UI does. Listed ones either do what they do there, or are refused by
/// name when they ask for something this worker cannot do.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = A1111Request)]
pub(super) struct Fields {
    /// What to draw, with the web UI's weights: `(word:1.2)`, `[word]`.
    pub prompt: Option<String>,
    /// What to steer away from.
    pub negative_prompt: Option<String>,
    /// Only empty.
    pub styles: Option<Vec<String>>,
    /// Start of the noise; picture i is drawn from `seed + i`. -1 draws one.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub seed: Option<i64>,
    /// Seed of the variation. -1 draws one.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub subseed: Option<i64>,
    /// How far towards the variation, 0 to 1.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub subseed_strength: Option<f64>,
    /// Only 0 and less.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub seed_resize_from_h: Option<i64>,
    /// Only 0 and less.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub seed_resize_from_w: Option<i64>,
    /// One of `samplers`. Default: the model's own.
    pub sampler_name: Option<String>,
    /// Old name of `sampler_name`, which wins.
    pub sampler_index: Option<String>,
    /// One of `schedulers`. Default: `Automatic`.
    pub scheduler: Option<String>,
    /// Times `n_iter`: the number of pictures.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub batch_size: Option<i64>,
    /// Times `batch_size`: the number of pictures.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub n_iter: Option<i64>,
    /// Denoising steps. Default: the model's.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub steps: Option<i64>,
    /// How closely to follow the prompt. Default: the model's.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub cfg_scale: Option<f64>,
    /// In pixels, a multiple of 8. Default: that of `init_images`, or the model's.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub width: Option<i64>,
    /// In pixels, a multiple of 8. Default: that of `init_images`, or the model's.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub height: Option<i64>,
    /// Only false.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub restore_faces: Option<bool>,
    /// Only false.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub tiling: Option<bool>,
    /// Share of fresh noise for DDIM, 0 to 1; ancestral samplers have 1 only.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub eta: Option<f64>,
    /// Only 0.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub s_churn: Option<f64>,
    /// Only 1.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub s_noise: Option<f64>,
    /// Only 0.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub s_min_uncond: Option<f64>,
    /// img2img, and the second pass of `enable_hr`: how much to change, 0 to 1. Default: 0.75.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub denoising_strength: Option<f64>,
    /// Options for this request alone, see `POST options`.
    pub override_settings: Option<Map<String, Value>>,
    /// false: `sd_model_checkpoint` of `override_settings` stays.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub override_settings_restore_afterwards: Option<bool>,
    /// Only empty.
    pub refiner_checkpoint: Option<String>,
    /// Only empty.
    pub script_name: Option<String>,
    /// Scripts without arguments only.
    pub alwayson_scripts: Option<Map<String, Value>>,
    /// Only empty.
    pub infotext: Option<String>,
    /// A name for `/internal/progress`.
    pub force_task_id: Option<String>,
    /// false: the reply has no pictures.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub send_images: Option<bool>,

    /// txt2img: enlarges the picture and refines it in a second pass.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub enable_hr: Option<bool>,
    /// The second pass's size over the first's. Default: 2.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub hr_scale: Option<f64>,
    /// `Latent`, `Latent (nearest)`, `Latent (bicubic)` or `Lanczos`.
    pub hr_upscaler: Option<String>,
    /// Steps of the second pass. 0: as many as the first.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub hr_second_pass_steps: Option<i64>,
    /// Width of the second pass in pixels. 0: by `hr_scale`.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub hr_resize_x: Option<i64>,
    /// Height of the second pass in pixels. 0: by `hr_scale`.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub hr_resize_y: Option<i64>,
    /// Only empty.
    pub hr_checkpoint_name: Option<String>,
    /// Only empty.
    pub hr_sampler_name: Option<String>,
    /// Only empty.
    pub hr_scheduler: Option<String>,
    /// Only empty.
    pub hr_prompt: Option<String>,
    /// Only empty.
    pub hr_negative_prompt: Option<String>,
    /// Only empty.
    pub firstpass_image: Option<String>,
    /// Only 0.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub firstphase_width: Option<i64>,
    /// Only 0.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub firstphase_height: Option<i64>,

    /// img2img: the picture to change, base64 or a data URI. One.
    pub init_images: Option<Vec<String>>,
    /// img2img: 0 stretches, 1 crops, 2 fills.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub resize_mode: Option<i64>,
    /// img2img: white is painted anew.
    pub mask: Option<String>,
    /// Radius of the mask's blur in pixels. Default: 4.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub mask_blur: Option<f64>,
    /// As `mask_blur`; both directions are alike.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub mask_blur_x: Option<f64>,
    /// As `mask_blur`; both directions are alike.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub mask_blur_y: Option<f64>,
    /// What is under the mask at first: 0 the colours around it, 1 the picture.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub inpainting_fill: Option<i64>,
    /// Works on the masked part alone. Default: true.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub inpaint_full_res: Option<bool>,
    /// Pixels around it.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub inpaint_full_res_padding: Option<i64>,
    /// Only true: the mask has no half tones where it meets the latents.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub mask_round: Option<bool>,
    /// Only empty.
    pub latent_mask: Option<String>,
    /// 1: black is painted anew.
    #[serde(deserialize_with = "lax::integer")]
    #[schema(value_type = lax::Integer)]
    pub inpainting_mask_invert: Option<i64>,
    /// Only 1.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub initial_noise_multiplier: Option<f64>,
    /// Only 1.5, the web UI's default.
    #[serde(deserialize_with = "lax::number")]
    #[schema(value_type = lax::Number)]
    pub image_cfg_scale: Option<f64>,
    /// true: `parameters` of the reply repeats the pictures.
    #[serde(deserialize_with = "lax::boolean")]
    #[schema(value_type = lax::Boolean)]
    pub include_init_images: Option<bool>,
}
