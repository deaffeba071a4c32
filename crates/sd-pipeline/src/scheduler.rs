//! Which scheduler runs a job: the model's own or another one, set up from the model's `scheduler_config.json`.

use std::num::NonZeroUsize;

use sd_config::ModelConfig;
use sd_scheduler::{Overrides, Scheduler};

use crate::{Job, Result, job::wrong};

/// One spelling of the name that was asked for, or of the model's own class.
pub(crate) fn name(model: &ModelConfig, asked: Option<&str>) -> Result<String> {
    match asked {
        Some(asked) => {
            sd_scheduler::canonical_name(asked).map_err(|_| wrong("scheduler", asked, known()))
        }
        None => {
            let own = &model.scheduler.class_name;
            sd_scheduler::canonical_name(own)
                .map_err(|_| wrong("scheduler", format!("{own} of the model's file"), known()))
        }
    }
}

/// The scheduler of one run.
pub(crate) fn build(model: &ModelConfig, job: &Job) -> Result<Box<dyn Scheduler>> {
    let mut file = model.scheduler.clone();
    if !model.is_xl() {
        // Whatever the file says: `StableDiffusionPipeline.__init__` in diffusers does so, `StableDiffusionXLPipeline`
        // does not.
        file.steps_offset = Some(1);
        file.clip_sample = Some(false);
    }
    let mut overrides = Overrides::default();
    overrides.eta = Some(job.eta);
    overrides.strength = job.strength.filter(|_| spreads_steps(model, job));
    let config = sd_scheduler::from_file_as(&job.scheduler, &file, &overrides)?;
    let steps = NonZeroUsize::new(job.num_inference_steps).unwrap_or(NonZeroUsize::MIN);
    config.build(steps).map_err(|error| match error {
        sd_scheduler::Error::Steps {
            steps, expected, ..
        } => wrong("num_inference_steps", steps, expected),
        other => other.into(),
    })
}

/// Whether image-to-image makes all steps, from less noise, instead of leaving the first ones out: diffusers' pipeline for
/// latent consistency models does, but there is none of it for inpainting.
pub(crate) fn spreads_steps(model: &ModelConfig, job: &Job) -> bool {
    let distilled =
        sd_scheduler::entry(&job.scheduler).is_ok_and(|entry| matches!(entry.name, "lcm" | "tcd"));
    model.uses_guidance_embedding() && distilled && job.mask_image.is_none()
}

fn known() -> String {
    let names: Vec<_> = sd_scheduler::ALL.iter().map(|entry| entry.name).collect();
    names.join(", ")
}
