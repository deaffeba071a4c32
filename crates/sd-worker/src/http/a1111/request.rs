//! From the web UI's fields to a request of this worker.

use sd_pipeline::{Hires, MaskPolarity, Picture, PromptWeighting, Request, ResizeMode, Upscaler};

use sd_image::Limits;

use super::{fields::Fields, fill, options::Overrides, sampler};
use crate::http::{
    ApiError, Result,
    field::{shown, unsupported, whole},
};

/// The web UI's `denoising_strength` when none is given.
const STRENGTH: f64 = 0.75;
/// The web UI's `mask_blur` when none is given, in pixels.
const MASK_BLUR: f64 = 4.0;

/// A request in this worker's terms.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub request: Request,
    pub overrides: Overrides,
    /// Paints the colours around the mask under it before the picture is used.
    pub fill: bool,
}

impl Asked {
    /// Fills the picture if that is asked for, which takes a while.
    ///
    /// # Errors
    /// A picture cannot be read or is too large.
    pub(super) fn filled(mut self, limits: &Limits) -> Result<Self> {
        if self.fill {
            fill::fill(&mut self.request, limits)?;
        }
        Ok(self)
    }
}

impl Fields {
    /// `POST txt2img`.
    pub(super) fn txt2img(&self) -> Result<Asked> {
        if self
            .init_images
            .as_ref()
            .is_some_and(|images| !images.is_empty())
        {
            return Err(unsupported("init_images", "belongs to img2img"));
        }
        let Asked {
            request, overrides, ..
        } = self.common()?;
        let request = Request {
            hires: self.hires()?,
            ..request
        };
        Ok(Asked {
            request,
            overrides,
            fill: false,
        })
    }

    /// `POST img2img`.
    pub(super) fn img2img(&self) -> Result<Asked> {
        if self.enable_hr == Some(true) {
            return Err(unsupported("enable_hr", "belongs to txt2img"));
        }
        let init_image = match self.init_images.as_deref() {
            Some([image]) => picture("init_images", image)?,
            Some([]) | None => {
                return Err(ApiError::invalid("init_images", "init_images: is missing"));
            }
            Some(_) => return Err(unsupported("init_images", "expected one picture")),
        };
        none_but(
            "initial_noise_multiplier",
            self.initial_noise_multiplier,
            1.0,
        )?;
        let Asked {
            request, overrides, ..
        } = self.common()?;
        let request = Request {
            init_image: Some(init_image),
            strength: Some(self.denoising_strength.unwrap_or(STRENGTH)),
            resize_mode: Some(match self.resize_mode.unwrap_or(0) {
                0 => ResizeMode::Stretch,
                1 => ResizeMode::Crop,
                2 => ResizeMode::Fill,
                other => {
                    return Err(unsupported(
                        "resize_mode",
                        &format!("got {other}, expected 0, 1 or 2"),
                    ));
                }
            }),
            ..request
        };
        let asked = Asked {
            request,
            overrides,
            fill: false,
        };
        match self.mask.as_deref().filter(|mask| !mask.is_empty()) {
            Some(mask) => self.inpaint(asked, picture("mask", mask)?),
            None => Ok(asked),
        }
    }

    fn inpaint(&self, asked: Asked, mask: Picture) -> Result<Asked> {
        let fill = match self.inpainting_fill.unwrap_or(0) {
            0 => true,
            1 => false,
            other => {
                return Err(unsupported(
                    "inpainting_fill",
                    &format!(
                        "got {other}, expected 0 (the colours around the mask) or 1 (the picture)"
                    ),
                ));
            }
        };
        let mask_polarity = match self.inpainting_mask_invert.unwrap_or(0) {
            0 => MaskPolarity::WhiteRepaints,
            1 => MaskPolarity::BlackRepaints,
            other => {
                return Err(ApiError::invalid(
                    "inpainting_mask_invert",
                    format!("inpainting_mask_invert: got {other}, expected 0 or 1"),
                ));
            }
        };
        let only_masked = self.inpaint_full_res.unwrap_or(true);
        let padding = whole(
            "inpaint_full_res_padding",
            self.inpaint_full_res_padding,
            0..=8192,
        )?;
        let request = Request {
            mask_image: Some(mask),
            mask_polarity: Some(mask_polarity),
            mask_blur: Some(self.blur()?),
            padding_mask_crop: only_masked.then_some(padding.unwrap_or(0)),
            // The part under the mask is always filled into its frame.
            resize_mode: asked.request.resize_mode.filter(|_| !only_masked),
            overlay: Some(true),
            ..asked.request
        };
        Ok(Asked {
            request,
            fill,
            ..asked
        })
    }

    fn blur(&self) -> Result<f64> {
        let [x, y] = [self.mask_blur_x, self.mask_blur_y]
            .map(|radius| self.mask_blur.or(radius).unwrap_or(MASK_BLUR));
        if x == y {
            Ok(x)
        } else {
            Err(unsupported(
                "mask_blur_y",
                "expected the same as mask_blur_x",
            ))
        }
    }

    fn hires(&self) -> Result<Option<Hires>> {
        if self.enable_hr != Some(true) {
            return Ok(None);
        }
        for (field, text) in [
            ("hr_checkpoint_name", &self.hr_checkpoint_name),
            ("hr_sampler_name", &self.hr_sampler_name),
            ("hr_scheduler", &self.hr_scheduler),
            ("hr_prompt", &self.hr_prompt),
            ("hr_negative_prompt", &self.hr_negative_prompt),
        ] {
            // `Use same sampler` and its like.
            let same = |text: &str| text.starts_with("Use same ");
            if let Some(text) = text
                .as_deref()
                .filter(|text| !text.is_empty() && !same(text))
            {
                return Err(unsupported(
                    field,
                    &format!("got {}, expected the same as the first pass", shown(text)),
                ));
            }
        }
        for (field, side) in [
            ("firstphase_width", self.firstphase_width),
            ("firstphase_height", self.firstphase_height),
        ] {
            none_but(field, side, 0)?;
        }
        let upscaler = match self.hr_upscaler.as_deref() {
            None | Some("Latent") => Upscaler::LatentBilinear,
            Some("Latent (nearest)") => Upscaler::LatentNearest,
            Some("Latent (bicubic)") => Upscaler::LatentBicubic,
            Some("Lanczos") => Upscaler::Lanczos,
            Some(other) => {
                return Err(unsupported(
                    "hr_upscaler",
                    &format!(
                        "got {}, expected one of {}",
                        shown(other),
                        UPSCALERS.join(", ")
                    ),
                ));
            }
        };
        let width = whole("hr_resize_x", self.hr_resize_x, 0..=8192)?.filter(|&side| side > 0);
        let height = whole("hr_resize_y", self.hr_resize_y, 0..=8192)?.filter(|&side| side > 0);
        Ok(Some(Hires {
            scale: self
                .hr_scale
                .filter(|_| width.is_none() && height.is_none()),
            width,
            height,
            upscaler: Some(upscaler),
            strength: Some(self.denoising_strength.unwrap_or(STRENGTH)),
            num_inference_steps: whole(
                "hr_second_pass_steps",
                self.hr_second_pass_steps,
                0..=1000,
            )?
            .filter(|&steps| steps > 0),
        }))
    }

    /// What both have in common.
    fn common(&self) -> Result<Asked> {
        self.refuse_what_changes_the_picture()?;
        let overrides = Overrides::read("override_settings.", self.override_settings.as_ref())?;
        let sampler_name = self
            .sampler_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .or(self.sampler_index.as_deref());
        let scheduler = sampler::scheduler(sampler_name, self.scheduler.as_deref())?;
        let variation_strength = self.subseed_strength.filter(|&strength| strength != 0.0);
        let batches = whole("n_iter", self.n_iter, 1..=64)?.unwrap_or(1);
        let pictures = whole("batch_size", self.batch_size, 1..=64)?.unwrap_or(1);
        let request = Request {
            negative_prompt: self.negative_prompt.clone(),
            num_inference_steps: whole("steps", self.steps, 1..=1000)?,
            guidance_scale: self.cfg_scale,
            width: whole("width", self.width, 1..=8192)?,
            height: whole("height", self.height, 1..=8192)?,
            seed: seed(self.seed),
            num_images: Some(batches * pictures),
            eta: self.eta(scheduler.as_deref())?,
            scheduler,
            prompt_weighting: Some(PromptWeighting::A1111),
            variation_seed: variation_strength.and(seed(self.subseed)),
            variation_strength,
            ..Request::new(self.prompt.clone().unwrap_or_default())
        };
        Ok(Asked {
            request,
            overrides,
            fill: false,
        })
    }

    /// Clients send 1 for every sampler, which for all but DDIM is what they do anyway.
    fn eta(&self, scheduler: Option<&str>) -> Result<Option<f64>> {
        let Some(eta) = self.eta else { return Ok(None) };
        let Some(entry) = scheduler.and_then(|name| sd_scheduler::entry(name).ok()) else {
            return none_but("eta", Some(eta), 1.0).map(|()| None);
        };
        match entry.name {
            "ddim" => Ok(Some(eta)),
            _ if entry.stochastic => none_but("eta", Some(eta), 1.0).map(|()| None),
            // The sampler has no such setting, there as here.
            _ => Ok(None),
        }
    }

    fn refuse_what_changes_the_picture(&self) -> Result<()> {
        for (field, prompt) in [
            ("prompt", &self.prompt),
            ("negative_prompt", &self.negative_prompt),
        ] {
            if prompt.as_deref().is_some_and(has_composition) {
                return Err(unsupported(
                    field,
                    "prompts are not composed with AND; write `and` for the word",
                ));
            }
            if let Some(network) = prompt.as_deref().and_then(extra_network) {
                return Err(unsupported(
                    field,
                    &format!("there are no extra networks, got `{network}`"),
                ));
            }
        }
        for (field, asked) in [
            ("restore_faces", self.restore_faces == Some(true)),
            ("tiling", self.tiling == Some(true)),
            (
                "styles",
                self.styles.iter().flatten().any(|style| !style.is_empty()),
            ),
            (
                "seed_resize_from_h",
                self.seed_resize_from_h.is_some_and(|side| side > 0),
            ),
            (
                "seed_resize_from_w",
                self.seed_resize_from_w.is_some_and(|side| side > 0),
            ),
            ("script_name", is_named(&self.script_name)),
            ("refiner_checkpoint", is_named(&self.refiner_checkpoint)),
            ("infotext", is_named(&self.infotext)),
            ("firstpass_image", is_named(&self.firstpass_image)),
            ("latent_mask", is_named(&self.latent_mask)),
            ("mask_round", self.mask_round == Some(false)),
        ] {
            if asked {
                return Err(unsupported(field, "this worker has no such feature"));
            }
        }
        none_but("image_cfg_scale", self.image_cfg_scale, 1.5)?;
        none_but("s_churn", self.s_churn, 0.0)?;
        none_but("s_noise", self.s_noise, 1.0)?;
        none_but("s_min_uncond", self.s_min_uncond, 0.0)?;
        for (name, script) in self.alwayson_scripts.iter().flatten() {
            if has_arguments(script) {
                let field = format!("alwayson_scripts.{}", shown(name));
                return Err(unsupported(&field, "this worker has no scripts"));
            }
        }
        Ok(())
    }
}

/// The upscalers of [`Fields::hr_upscaler`], by the web UI's names.
pub(super) const UPSCALERS: [&str; 4] =
    ["Latent", "Latent (nearest)", "Latent (bicubic)", "Lanczos"];

/// The first `<lora:...>` or its like in a prompt, as far as its name.
fn extra_network(prompt: &str) -> Option<&'static str> {
    ["<lora:", "<lyco:", "<hypernet:"]
        .into_iter()
        .find(|start| prompt.contains(start))
}

/// The web UI draws `a AND b` with the guidance of both prompts.
fn has_composition(prompt: &str) -> bool {
    let mut words = prompt.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    words.any(|word| word == "AND")
}

fn is_named(text: &Option<String>) -> bool {
    text.as_deref()
        .is_some_and(|text| !text.is_empty() && text != "None")
}

/// Clients send `{"args": []}` or `{"args": [false]}` to turn a script off.
fn has_arguments(script: &serde_json::Value) -> bool {
    match script.get("args") {
        None => script.as_object().is_none_or(|script| !script.is_empty()),
        Some(serde_json::Value::Array(args)) => args.iter().any(|arg| arg != false),
        Some(_) => true,
    }
}

fn picture(field: &'static str, text: &str) -> Result<Picture> {
    Picture::from_base64(text)
        .map_err(|error| ApiError::invalid(field, format!("{field}: {error}")))
}

/// -1, or any number below 0: drawn.
fn seed(seed: Option<i64>) -> Option<u64> {
    seed.and_then(|seed| u64::try_from(seed).ok())
}

fn none_but<T: PartialEq + std::fmt::Display>(
    field: &'static str,
    value: Option<T>,
    only: T,
) -> Result<()> {
    match value {
        Some(value) if value != only => {
            Err(unsupported(field, &format!("got {value}, expected {only}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
