//! What a picture says about how it was made.

use serde_json::{Value, json};

use crate::{Job, Pipeline, PromptWeighting, Result};

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

    /// Everything needed to make picture `image` of a job again: `{"software", "version", "model", "image", "seed",
    /// "variation_seed", "job"}`.
    /// The job is a [`Request`](crate::Request) too, but for the pictures it was given, of which only `{"sha256"}` is there.
    ///
    /// # Errors
    /// As [`weights_sha256`](Self::weights_sha256).
    pub fn metadata(&self, job: &Job, image: usize) -> Result<Value> {
        let mut job = job.clone();
        let pictures = [
            ("init_image", job.init_image.take()),
            ("mask_image", job.mask_image.take()),
        ];
        let (seed, variation_seed) = (job.image_seed(image), job.image_variation_seed(image));
        let mut job = json!(job);
        for (field, picture) in pictures {
            if let Some(picture) = picture {
                job[field] = json!({"sha256": picture.sha256()});
            }
        }
        Ok(json!({
            "software": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "model": {
                "name": self.name(),
                "version": self.config().version.map(|version| version.to_string()),
                "sha256": self.weights_sha256()?,
            },
            "image": image,
            "seed": seed,
            "variation_seed": variation_seed,
            "job": job,
        }))
    }
}

/// The web UI quotes what would break its line of settings.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        Value::from(value).to_string()
    } else {
        value.into()
    }
}
