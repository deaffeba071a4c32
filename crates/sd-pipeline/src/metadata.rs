//! What a picture says about how it was made.

use serde_json::{Value, json};

use crate::{Job, Pipeline, PromptWeighting, Result, Upscaler};

impl Pipeline {
    /// The text of picture `image`'s PNG chunk `parameters`, as the AUTOMATIC1111 web UI writes it and many tools read it.
    ///
    /// ```text
    /// a red circle
    /// Negative prompt: blurry
    /// Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 512x512, Model hash: 0123456789, Model: name, Version: ..
    /// ```
    ///
    /// # Errors
    /// As [`weights_sha256`](Self::weights_sha256).
    pub fn a1111_parameters(&self, job: &Job, image: usize) -> Result<String> {
        let mut text = job.prompt.clone();
        if let Some(negative) = job
            .negative_prompt
            .as_deref()
            .filter(|negative| !negative.is_empty())
        {
            text.push_str("\nNegative prompt: ");
            text.push_str(negative);
        }
        let sampler = sd_scheduler::label(&job.scheduler)?;
        let mut settings = vec![
            ("Steps", job.num_inference_steps.to_string()),
            ("Sampler", sampler),
            ("CFG scale", job.guidance_scale.to_string()),
            ("Seed", job.image_seed(image).to_string()),
            ("Size", format!("{}x{}", job.width, job.height)),
            // As many digits as the web UI shows.
            (
                "Model hash",
                self.weights_sha256()?.chars().take(10).collect(),
            ),
            ("Model", self.name().into()),
        ];
        if job.clip_skip > 0 {
            // Counted there from 1, the last layer.
            settings.push(("Clip skip", (job.clip_skip + 1).to_string()));
        }
        let prompts = [Some(&job.prompt), job.negative_prompt.as_ref()];
        let has_brackets = |prompt: &String| prompt.contains(['(', '[']);
        if job.prompt_weighting == PromptWeighting::Plain
            && prompts.into_iter().flatten().any(has_brackets)
        {
            // There: brackets are text.
            settings.push(("Emphasis", "None".into()));
        }
        settings.extend(of_pictures(job));
        settings.extend(of_variation(job, image));
        settings.extend(of_second_pass(job));
        settings.push((
            "Version",
            format!("sd-pipeline {}", env!("CARGO_PKG_VERSION")),
        ));
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| format!("{key}: {}", quoted(value)))
            .collect();
        Ok(format!("{text}\n{}", settings.join(", ")))
    }

    /// What is needed to make picture `image` of a job again: `{"software", "version", "model", "image", "seed",
    /// "variation_seed", "job"}`. The job is a [`Request`](crate::Request) too, but for the pictures it was given: of these
    /// it has the hash alone, `{"sha256"}`.
    ///
    /// # Errors
    /// As [`weights_sha256`](Self::weights_sha256).
    pub fn metadata(&self, job: &Job, image: usize) -> Result<Value> {
        Ok(json!({
            "software": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "model": {
                "name": self.name(),
                "version": self.config().version.map(|version| version.to_string()),
                "sha256": self.weights_sha256()?,
            },
            "image": image,
            "seed": job.image_seed(image),
            "variation_seed": job.image_variation_seed(image),
            "job": without_pictures(job),
        }))
    }
}

fn of_pictures(job: &Job) -> Vec<(&'static str, String)> {
    let mut settings = vec![];
    let hires = job.hires.as_ref().and_then(|hires| hires.strength);
    if let Some(strength) = job.strength.or(hires) {
        settings.push(("Denoising strength", strength.to_string()));
    }
    if let Some(blur) = job.mask_blur.filter(|blur| *blur > 0.0) {
        settings.push(("Mask blur", blur.to_string()));
    }
    if let Some(padding) = job.padding_mask_crop {
        settings.push(("Inpaint area", "Only masked".into()));
        settings.push(("Masked area padding", padding.to_string()));
    }
    settings
}

fn of_variation(job: &Job, image: usize) -> Vec<(&'static str, String)> {
    match (job.image_variation_seed(image), job.variation_strength) {
        (Some(seed), Some(strength)) => vec![
            ("Variation seed", seed.to_string()),
            ("Variation seed strength", strength.to_string()),
        ],
        _ => vec![],
    }
}

fn of_second_pass(job: &Job) -> Vec<(&'static str, String)> {
    let (Some(second), Some(hires)) = (job.second_pass(), &job.hires) else {
        return vec![];
    };
    let upscaler = match hires.upscaler.unwrap_or_default() {
        Upscaler::LatentNearest => "Latent (nearest)",
        Upscaler::LatentBilinear => "Latent",
        Upscaler::LatentBicubic => "Latent (bicubic)",
        Upscaler::Lanczos => "Lanczos",
    };
    vec![
        (
            "Hires resize",
            format!("{}x{}", second.width, second.height),
        ),
        ("Hires steps", second.num_inference_steps.to_string()),
        ("Hires upscaler", upscaler.into()),
    ]
}

/// A job's JSON with hashes in place of pictures.
fn without_pictures(job: &Job) -> Value {
    let mut job = job.clone();
    let pictures = [
        ("init_image", job.init_image.take()),
        ("mask_image", job.mask_image.take()),
    ];
    let mut job = json!(job);
    for (field, picture) in pictures {
        if let Some(picture) = picture {
            job[field] = json!({"sha256": picture.sha256()});
        }
    }
    job
}

/// The web UI quotes what would break its line of settings.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        Value::from(value).to_string()
    } else {
        value.into()
    }
}
