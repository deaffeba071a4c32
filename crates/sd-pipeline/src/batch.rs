//! One UNet call for several runs, which need not agree in anything but the shape of their latents.

use candle_core::Tensor;
use sd_models::unet::{Added, UnetInput};

use crate::{Error, Pipeline, Progress, Result, Run, error::Doing, guidance};

/// Advances every unfinished run by one call. Entry i of the result is run i's progress, None if it was done before.
pub(crate) fn advance(pipeline: &Pipeline, runs: &mut [&mut Run]) -> Result<Vec<Option<Progress>>> {
    for run in runs.iter() {
        pipeline.check_owns(run)?;
    }
    let active: Vec<&Run> = runs
        .iter()
        .map(|run| &**run)
        .filter(|run| !run.is_done())
        .collect();
    let mut predictions = predict(pipeline, &active)?.into_iter();
    runs.iter_mut()
        .map(|run| match run.is_done() {
            true => Ok(None),
            false => predictions
                .next()
                .map(|prediction| run.step(pipeline, &prediction))
                .transpose(),
        })
        .collect()
}

/// The guided prediction `[num_images, c, h, w]` of each run.
fn predict(pipeline: &Pipeline, runs: &[&Run]) -> Result<Vec<Tensor>> {
    check_shapes(runs)?;
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let output = call(pipeline, runs)?;
    let mut start = 0;
    runs.iter()
        .map(|run| {
            let own = output.narrow(0, start, run.samples());
            start += run.samples();
            own.and_then(|own| guidance::guided(own, run))
                .doing("applying guidance")
        })
        .collect()
}

/// The UNet's output for the samples of all runs, in their order. The samples of a run are all its pictures with the
/// negative prompt, if it is guided, then all its pictures with the positive one.
fn call(pipeline: &Pipeline, runs: &[&Run]) -> Result<Tensor> {
    let (mut latents, mut timesteps, mut hidden) = (vec![], vec![], vec![]);
    let (mut pooled, mut time_ids, mut guidance_embeddings) = (vec![], vec![], vec![]);
    for run in runs {
        let input = run.unet_input()?;
        let conditions = run.conditions();
        for branch in conditions.branches() {
            latents.push(input.clone());
            for _ in 0..run.job.num_images {
                timesteps.push(run.timestep());
                hidden.push(&branch.hidden);
                pooled.extend(&branch.pooled);
                time_ids.extend(&branch.time_ids);
                guidance_embeddings.extend(&conditions.guidance_embedding);
            }
        }
    }
    let _span = tracing::debug_span!("unet", samples = timesteps.len()).entered();
    let (pooled, time_ids) = (stacked(&pooled)?, stacked(&time_ids)?);
    let output = pipeline.model.unet.forward(&UnetInput {
        sample: &Tensor::cat(&latents, 0).doing("batching latents")?,
        timesteps: &timesteps,
        encoder_hidden_states: &Tensor::cat(&hidden, 0).doing("batching text")?,
        added: pooled
            .as_ref()
            .zip(time_ids.as_ref())
            .map(|(text_embeds, time_ids)| Added {
                text_embeds,
                time_ids,
            }),
        timestep_cond: stacked(&guidance_embeddings)?.as_ref(),
        class_labels: None,
        residuals: None,
    })?;
    Ok(output)
}

/// The rows of an input that not every model has.
fn stacked(rows: &[&Tensor]) -> Result<Option<Tensor>> {
    match rows {
        [] => Ok(None),
        rows => Tensor::cat(rows, 0).doing("batching conditions").map(Some),
    }
}

fn check_shapes(runs: &[&Run]) -> Result<()> {
    let [first, others @ ..] = runs else {
        return Ok(());
    };
    for other in others {
        check_shape("latents", &first.latents, &other.latents)?;
        check_shape("text", first.text(), other.text())?;
    }
    Ok(())
}

/// The shapes of one sample must be the same.
fn check_shape(what: &'static str, first: &Tensor, other: &Tensor) -> Result<()> {
    let [first, other] = [first, other].map(|tensor| tensor.dims()[1..].to_vec());
    if first == other {
        Ok(())
    } else {
        Err(Error::Batch { what, first, other })
    }
}
