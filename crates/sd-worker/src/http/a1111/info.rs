//! `info` of a reply: how its pictures were made.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{fields::Fields, infotext, options, sampler};
use crate::{engine::ModelInfo, jobs::Job};

/// What the web UI says of finished pictures, and its clients read. `pictures` are the job's PNG files.
pub(super) fn info(
    fields: &Fields,
    job: &Job,
    model: Option<&ModelInfo>,
    pictures: &[Vec<u8>],
) -> Value {
    let request = &job.request;
    let seeds: Vec<_> = job.images.iter().map(|image| image.seed).collect();
    let negative = request.negative_prompt.as_deref().unwrap_or_default();
    let subseeds: Vec<_> = (0..seeds.len() as u64)
        .map(|index| match request.variation_seed {
            Some(seed) => Value::from(seed.wrapping_add(index)),
            None => Value::from(-1),
        })
        .collect();
    let (sampler, schedule) = sampler::labels(request.scheduler.as_deref().unwrap_or_default());
    let infotexts: Vec<_> = pictures
        .iter()
        .map(|file| {
            let texts = infotext::texts(file).unwrap_or_default();
            texts
                .into_iter()
                .find_map(|(name, text)| (name == infotext::PARAMETERS).then_some(text))
                .unwrap_or_default()
        })
        .collect();
    let (width, height) = job
        .images
        .first()
        .map_or((0, 0), |image| (image.width, image.height));
    json!({
        "prompt": request.prompt,
        "all_prompts": vec![&request.prompt; seeds.len()],
        "negative_prompt": negative,
        "all_negative_prompts": vec![negative; seeds.len()],
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": subseeds.first(),
        "all_subseeds": subseeds,
        "subseed_strength": request.variation_strength.unwrap_or(0.0),
        "width": width,
        "height": height,
        "sampler_name": sampler,
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": fields.batch_size.unwrap_or(1),
        "restore_faces": false,
        "face_restoration_model": null,
        "sd_model_name": job.model,
        "sd_model_hash": model.and_then(options::short_hash),
        "sd_vae_name": null,
        "sd_vae_hash": null,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength.or(request.hires.as_ref().and_then(|hires| hires.strength)),
        "extra_generation_params": {"Schedule type": schedule},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": timestamp(job.created_at),
        "clip_skip": request.clip_skip.unwrap_or(0) + 1,
        "is_using_inpainting_conditioning": false,
        "version": version(),
    })
}

/// `20261123084355`, as the web UI writes it.
pub(super) fn timestamp(time: OffsetDateTime) -> String {
    format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// Name and version of this program.
pub(super) fn version() -> &'static str {
    concat!("sd-worker ", env!("CARGO_PKG_VERSION"))
}
