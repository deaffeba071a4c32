//! What a client of OpenAI's API asks for, and what that means here.

use sd_pipeline::{MaskPolarity, Picture, Request};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::{
    ApiError, Result,
    field::{shown, unsupported, whole},
    routes::images::Format,
};

/// Most pictures of one request, as in OpenAI's API.
const MAX_PICTURES: i64 = 10;
/// Most partial pictures, as in OpenAI's API.
const MAX_PARTIAL_IMAGES: i64 = 3;

/// The fields of all three endpoints. Those from `negative_prompt` to `strength` are ours; a field that is not listed is
/// refused by name.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = OpenAiRequest)]
pub(super) struct Fields {
    /// What to draw. Required but for variations.
    pub prompt: Option<String>,
    /// One of `GET /v1/models`. Default: the worker's default model.
    pub model: Option<String>,
    /// Pictures to make.
    #[schema(minimum = 1, maximum = 10)]
    pub n: Option<i64>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; `auto` is the model's own size, or that of the picture to edit.
    #[schema(pattern = "^([0-9]{1,5}x[0-9]{1,5}|auto)$", example = "512x512")]
    pub size: Option<String>,
    /// Pictures in the reply, which is the default, or their addresses.
    pub response_format: Option<ResponseFormat>,
    /// Default: PNG, which keeps the description of how the picture was made.
    pub output_format: Option<OutputFormat>,
    /// Quality of JPEG in per cent. WebP and PNG are without loss.
    #[schema(minimum = 0, maximum = 100)]
    pub output_compression: Option<i64>,
    /// Server-sent events instead of one reply.
    pub stream: Option<bool>,
    /// With `stream`: previews of the first picture, spread over the steps.
    #[schema(minimum = 0, maximum = 3)]
    pub partial_images: Option<i64>,

    /// What to steer away from.
    pub negative_prompt: Option<String>,
    /// Denoising steps. Default: the model's. Also called `steps`.
    #[serde(alias = "steps")]
    #[schema(minimum = 1, maximum = 1000)]
    pub num_inference_steps: Option<i64>,
    /// How closely to follow the prompt; 1 and less turn guidance off. Default: the model's.
    #[schema(minimum = 0, maximum = 100)]
    pub guidance_scale: Option<f64>,
    /// Start of the noise; picture i is drawn from `seed + i`. Default: drawn.
    #[schema(minimum = 0)]
    pub seed: Option<i64>,
    /// One of `GET /v1/schedulers`, by any of its names. Default: the model's.
    pub scheduler: Option<String>,
    /// Edits and variations: how much of the picture is noised away.
    #[schema(minimum = 0, maximum = 1)]
    pub strength: Option<f64>,

    /// Ignored.
    pub user: Option<String>,
    /// Ignored.
    pub safety_identifier: Option<String>,
    /// `auto` or `low`; ignored, there is no moderation.
    #[schema(pattern = "^(auto|low)$")]
    pub moderation: Option<String>,
    /// `auto` or `opaque`.
    #[schema(pattern = "^(auto|opaque)$")]
    pub background: Option<String>,
    /// `auto`, `standard` or `medium`; the quality is chosen by `num_inference_steps`.
    #[schema(pattern = "^(auto|standard|medium)$")]
    pub quality: Option<String>,
    /// `vivid`, which is OpenAI's default.
    #[schema(pattern = "^vivid$")]
    pub style: Option<String>,
    /// Edits: `low`, which is OpenAI's default; how much is kept is chosen by `strength`.
    #[schema(pattern = "^low$")]
    pub input_fidelity: Option<String>,
}

/// Where the pictures of a reply are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    /// In the reply, as base64.
    #[default]
    B64Json,
    /// At `/v1/jobs/{id}/images/{n}`, which needs the same API key.
    Url,
}

/// How pictures are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutputFormat {
    /// PNG.
    #[default]
    Png,
    /// JPEG.
    Jpeg,
    /// WebP, without loss.
    Webp,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Png => Self::Png,
            OutputFormat::Jpeg => Self::Jpeg,
            OutputFormat::Webp => Self::Webp,
        }
    }
}

impl OutputFormat {
    /// The name in requests and replies.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }
}

/// A picture to work on, and a mask whose transparent part is redrawn.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub image: Picture,
    pub mask: Option<Picture>,
}

/// A request in this worker's terms.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub model: Option<String>,
    pub request: Request,
    pub reply: Reply,
}

/// How the client wants its pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reply {
    pub place: ResponseFormat,
    pub format: OutputFormat,
    /// Per cent.
    pub jpeg_quality: u8,
    /// `None`: one reply. Otherwise events, with that many previews.
    pub partial_images: Option<usize>,
}

impl Fields {
    /// Text alone becomes a picture.
    pub(super) fn generation(self) -> Result<Asked> {
        if self.strength.is_some() {
            return Err(unsupported("strength", "there is no picture to start from"));
        }
        if self.input_fidelity.is_some() {
            return Err(unsupported(
                "input_fidelity",
                "there is no picture to start from",
            ));
        }
        self.required_prompt()?;
        self.asked(None)
    }

    /// A picture is redrawn, whole or where the mask is transparent.
    pub(super) fn edit(self, source: Source) -> Result<Asked> {
        self.required_prompt()?;
        self.asked(Some(source))
    }

    /// A picture is redrawn without, or with, a prompt.
    pub(super) fn variation(self, image: Picture) -> Result<Asked> {
        self.asked(Some(Source { image, mask: None }))
    }

    fn required_prompt(&self) -> Result<()> {
        match &self.prompt {
            Some(_) => Ok(()),
            None => Err(ApiError::invalid("prompt", "prompt: is missing")),
        }
    }

    fn asked(self, source: Option<Source>) -> Result<Asked> {
        self.refuse_what_changes_the_picture()?;
        let reply = self.reply()?;
        let size = self.size.as_deref().map(size).transpose()?.flatten();
        let (init_image, mask_image) = match source {
            Some(Source { image, mask }) => (Some(image), mask),
            None => (None, None),
        };
        let request = Request {
            negative_prompt: self.negative_prompt,
            num_inference_steps: whole("num_inference_steps", self.num_inference_steps, 1..=1000)?,
            guidance_scale: self.guidance_scale,
            width: size.map(|(width, _)| width),
            height: size.map(|(_, height)| height),
            seed: self
                .seed
                .map(|seed| {
                    u64::try_from(seed).map_err(|_| {
                        ApiError::invalid("seed", format!("seed: got {seed}, expected 0 or more"))
                    })
                })
                .transpose()?,
            num_images: whole("n", self.n, 1..=MAX_PICTURES)?,
            scheduler: self.scheduler,
            strength: self.strength,
            mask_polarity: mask_image
                .is_some()
                .then_some(MaskPolarity::TransparentRepaints),
            init_image,
            mask_image,
            ..Request::new(self.prompt.unwrap_or_default())
        };
        Ok(Asked {
            model: self.model,
            request,
            reply,
        })
    }

    fn reply(&self) -> Result<Reply> {
        let format = self.output_format.unwrap_or_default();
        let compression = whole("output_compression", self.output_compression, 0..=100)?;
        if format != OutputFormat::Jpeg && compression.is_some_and(|compression| compression != 100)
        {
            return Err(unsupported(
                "output_compression",
                "PNG and WebP are without loss, expected 100 or `output_format` jpeg",
            ));
        }
        let partial_images = whole(
            "partial_images",
            self.partial_images,
            0..=MAX_PARTIAL_IMAGES,
        )?;
        let place = self.response_format.unwrap_or_default();
        let stream = self.stream.unwrap_or_default();
        if stream && place == ResponseFormat::Url {
            return Err(unsupported(
                "response_format",
                "events carry their pictures, expected b64_json",
            ));
        }
        if place == ResponseFormat::Url && format != OutputFormat::Png {
            return Err(unsupported(
                "output_format",
                "an address serves what the `Accept` header asks for, expected png",
            ));
        }
        Ok(Reply {
            place,
            format,
            // At most 100.
            jpeg_quality: compression.unwrap_or(100) as u8,
            partial_images: stream.then_some(partial_images.unwrap_or(0)),
        })
    }

    /// Values that ask for nothing special pass, and those that this worker would have to ignore do not.
    fn refuse_what_changes_the_picture(&self) -> Result<()> {
        let table: [(&str, &Option<String>, &[&str], &str); 5] = [
            (
                "background",
                &self.background,
                &["auto", "opaque"],
                "pictures are opaque",
            ),
            (
                "input_fidelity",
                &self.input_fidelity,
                &["low"],
                "`strength` says how much is kept",
            ),
            (
                "moderation",
                &self.moderation,
                &["auto", "low"],
                "there is no moderation",
            ),
            (
                "quality",
                &self.quality,
                &["auto", "standard", "medium"],
                "`num_inference_steps` chooses the quality",
            ),
            (
                "style",
                &self.style,
                &["vivid"],
                "the prompt chooses the style",
            ),
        ];
        for (field, value, accepted, reason) in table {
            if let Some(value) = value
                && !accepted.contains(&value.as_str())
            {
                let (got, accepted) = (shown(value), accepted.join(" or "));
                return Err(unsupported(
                    field,
                    &format!("got {got}, expected {accepted}; {reason}"),
                ));
            }
        }
        Ok(())
    }
}

/// `WIDTHxHEIGHT`, or nothing for `auto`.
fn size(text: &str) -> Result<Option<(usize, usize)>> {
    if text == "auto" {
        return Ok(None);
    }
    let parsed = text
        .split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    parsed.map(Some).ok_or_else(|| {
        let got = shown(text);
        ApiError::invalid(
            "size",
            format!("size: got {got}, expected WIDTHxHEIGHT or auto"),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fields(value: Value) -> Fields {
        serde_json::from_value(value).unwrap()
    }

    fn refused(value: Value) -> String {
        fields(value).generation().unwrap_err().param.unwrap()
    }

    #[test]
    fn every_field_of_a_generation_reaches_the_request() {
        let asked = fields(json!({
            "prompt": "a red circle", "model": "builtin", "n": 3, "size": "96x64", "negative_prompt": "blue",
            "steps": 7, "guidance_scale": 4, "seed": 42, "scheduler": "euler_a", "user": "me", "style": null,
            "output_format": "jpeg", "output_compression": 80, "stream": true, "partial_images": 2,
        }))
        .generation()
        .unwrap();
        assert_eq!(asked.model.as_deref(), Some("builtin"));
        assert_eq!(
            asked.request,
            Request {
                negative_prompt: Some("blue".into()),
                num_inference_steps: Some(7),
                guidance_scale: Some(4.0),
                width: Some(96),
                height: Some(64),
                seed: Some(42),
                num_images: Some(3),
                scheduler: Some("euler_a".into()),
                ..Request::new("a red circle")
            }
        );
        assert_eq!(
            asked.reply,
            Reply {
                place: ResponseFormat::B64Json,
                format: OutputFormat::Jpeg,
                jpeg_quality: 80,
                partial_images: Some(2),
            }
        );
    }

    #[test]
    fn what_is_not_asked_for_is_left_to_the_model() {
        let asked = fields(
            json!({"prompt": "x", "size": "auto", "quality": "auto", "background": "opaque"}),
        )
        .generation()
        .unwrap();
        assert_eq!(asked.request, Request::new("x"));
        assert_eq!(asked.reply.partial_images, None);
    }

    #[test]
    fn an_edit_repaints_where_the_mask_is_transparent() {
        let source = Source {
            image: Picture::from_bytes(*b"image"),
            mask: Some(Picture::from_bytes(*b"mask")),
        };
        let request = fields(json!({"prompt": "x", "strength": 0.5}))
            .edit(source)
            .unwrap()
            .request;
        assert_eq!(request.init_image, Some(Picture::from_bytes(*b"image")));
        assert_eq!(request.mask_image, Some(Picture::from_bytes(*b"mask")));
        assert_eq!(
            request.mask_polarity,
            Some(MaskPolarity::TransparentRepaints)
        );
        assert_eq!(request.strength, Some(0.5));
    }

    #[test]
    fn a_variation_needs_no_prompt() {
        let request = Fields::default()
            .variation(Picture::from_bytes(*b"image"))
            .unwrap()
            .request;
        assert_eq!(request.prompt, "");
        assert_eq!(request.mask_polarity, None);
    }

    #[test]
    fn fields_that_would_change_the_picture_are_refused_by_name() {
        for (value, field) in [
            (json!({}), "prompt"),
            (
                json!({"prompt": "x", "background": "transparent"}),
                "background",
            ),
            (json!({"prompt": "x", "quality": "high"}), "quality"),
            (json!({"prompt": "x", "style": "natural"}), "style"),
            (json!({"prompt": "x", "strength": 0.5}), "strength"),
            (
                json!({"prompt": "x", "input_fidelity": "high"}),
                "input_fidelity",
            ),
            (json!({"prompt": "x", "n": 11}), "n"),
            (json!({"prompt": "x", "n": -1}), "n"),
            (json!({"prompt": "x", "size": "64"}), "size"),
            (json!({"prompt": "x", "size": "64x-64"}), "size"),
            (
                json!({"prompt": "x", "size": "99999999999999999999x1"}),
                "size",
            ),
            (json!({"prompt": "x", "seed": -1}), "seed"),
            (json!({"prompt": "x", "steps": 0}), "num_inference_steps"),
            (
                json!({"prompt": "x", "partial_images": 4}),
                "partial_images",
            ),
            (
                json!({"prompt": "x", "output_compression": 101}),
                "output_compression",
            ),
            (
                json!({"prompt": "x", "output_compression": 50, "output_format": "webp"}),
                "output_compression",
            ),
            (
                json!({"prompt": "x", "stream": true, "response_format": "url"}),
                "response_format",
            ),
            (
                json!({"prompt": "x", "output_format": "webp", "response_format": "url"}),
                "output_format",
            ),
        ] {
            assert_eq!(refused(value.clone()), field, "{value}");
        }
    }

    #[test]
    fn a_field_that_is_not_known_is_an_error() {
        let error =
            serde_json::from_value::<Fields>(json!({"prompt": "x", "svg": {}})).unwrap_err();
        assert!(error.to_string().contains("`svg`"), "{error}");
    }
}
