//! `sd-worker generate`: from the command line to files.

mod request;

use sd_config::Version;
use sd_pipeline::{ModelSource, Pipeline, PipelineBuilder, Request, Run};
use serde_json::Value;

use crate::{
    args::GenerateArgs,
    device,
    dump::Dump,
    error::{Error, Result},
    loading,
    output::{DumpPath, Output},
    png,
    progress::{self, Stage},
};

/// Makes the pictures and writes them.
///
/// # Errors
/// The request does not suit the model, the model cannot be loaded, or a file cannot be read or written.
#[expect(
    clippy::print_stderr,
    reason = "what a user has to know goes to standard error"
)]
pub fn run(args: &GenerateArgs) -> Result<()> {
    args.output.check(args.num_images.unwrap_or(1))?;
    args.dump_tensors.as_ref().map_or(Ok(()), DumpPath::check)?;
    if args.preview.preview_every.is_some() && args.output == Output::Stdout {
        return Err(Error::PreviewToStdout);
    }

    let request = request::request(args)?;
    check(args, &request)?;
    let pipeline = load(args, source(args)?)?;
    let mut run = pipeline.start(&request)?;
    if args.seed.is_none() {
        eprintln!("seed {}", run.job().seed);
    }
    for cut in run.truncated() {
        eprintln!("warning: the prompt is too long, the model does not see its end: {cut}");
    }

    let mut dump = args
        .dump_tensors
        .as_ref()
        .map(|_| Dump::new(&run))
        .transpose()?;
    let steps = denoise(args, &pipeline, &mut run, 0, dump.as_mut())?;
    match &args.refiner.refiner {
        None => finish(args, &pipeline, &run, dump, None),
        Some(refiner) => {
            let refiner = loading::source(refiner)?;
            refine(args, pipeline, &run, steps, &request, refiner)
        }
    }
}

/// What a model will refuse is better said before gigabytes of it are fetched, and its refiner's refusals before the model
/// has drawn.
fn check(args: &GenerateArgs, request: &Request) -> Result<()> {
    let stage = Stage::new("reading what the model is");
    let base = builder(args, source(args)?, &stage)?.resolver()?;
    check_version(args, base.config().version)?;
    base.resolve(request)?;
    if let Some(refiner) = &args.refiner.refiner {
        let refiner = builder(args, loading::source(refiner)?, &stage)?.resolver()?;
        refiner.resolve(&request::refining(args, request, 0))?;
    }
    Ok(())
}

/// Lets the refiner go on with the base model's latents.
fn refine(
    args: &GenerateArgs,
    pipeline: Pipeline,
    base: &Run,
    base_steps: usize,
    request: &Request,
    refiner: ModelSource,
) -> Result<()> {
    let latents = base.latents()?;
    let images = 0..base.job().num_images;
    let base_metadata = images
        .map(|image| pipeline.metadata(base.job(), image))
        .collect::<Result<_, _>>()?;
    // There may not be room for both models.
    drop(pipeline);
    let pipeline = load(args, refiner)?;
    let request = request::refining(args, request, base.job().seed);
    let mut run = pipeline.start_from(&request, &latents)?;
    denoise(args, &pipeline, &mut run, base_steps, None)?;
    finish(args, &pipeline, &run, None, Some(base_metadata))
}

#[expect(
    clippy::print_stderr,
    reason = "what a user has to know goes to standard error"
)]
fn load(args: &GenerateArgs, source: ModelSource) -> Result<Pipeline> {
    let stage = Stage::new("loading the model");
    let mut builder = builder(args, source, &stage)?;
    if let Some(path) = &args.preview.tiny_vae {
        builder = builder.tiny_vae(path);
    }
    let pipeline = builder.build()?;
    drop(stage);
    for warning in pipeline.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(pipeline)
}

/// How to load `source`, whose downloads `stage` shows.
fn builder(args: &GenerateArgs, source: ModelSource, stage: &Stage) -> Result<PipelineBuilder> {
    let device = device::open(args.device)?;
    let limit = loading::max_memory(args.memory.max_memory, &device);
    let mut options = loading::options(&source, device, args.dtype)?;
    options.progress = Some(stage.downloads());
    let builder = Pipeline::builder(source)
        .options(options)
        .attention_slice(args.memory.attention_slice);
    Ok(match limit {
        Some(limit) => builder.max_memory(limit),
        None => builder,
    })
}

fn source(args: &GenerateArgs) -> Result<ModelSource> {
    match (args.model.as_deref(), args.version) {
        (Some(model), _) => loading::source(model),
        (None, None) => Ok(sd_pipeline::builtin_model()),
        (None, Some(version)) => Ok(ModelSource::Hub {
            repo: version.repo_id().to_owned(),
            revision: None,
        }),
    }
}

/// `--model` and `--version` together: what was found must be what was asked for.
fn check_version(args: &GenerateArgs, found: Option<Version>) -> Result<()> {
    match (&args.model, args.version) {
        (Some(model), Some(asked)) if found != Some(asked) => Err(Error::Version {
            model: model.clone(),
            asked,
            found: found.map_or("no known version", Version::name),
        }),
        _ => Ok(()),
    }
}

/// Makes the UNet calls and shows what is made, after `steps_before` of another model. Returns the steps.
fn denoise(
    args: &GenerateArgs,
    pipeline: &Pipeline,
    run: &mut Run,
    steps_before: usize,
    mut dump: Option<&mut Dump>,
) -> Result<usize> {
    let bar = progress::steps(run.job().num_inference_steps);
    let mut step = 0;
    while let Some(progress) = run.advance(pipeline)? {
        bar.set_length(progress.num_steps as u64);
        bar.set_position(progress.step as u64);
        if let Some(dump) = &mut dump {
            dump.latents(run, progress.call)?;
        }
        // Some schedulers make several calls a step.
        if progress.step > step && args.preview.is_due(progress.step, progress.num_steps) {
            let previews = run.preview(pipeline, args.preview.kind())?;
            for (index, preview) in previews.iter().enumerate() {
                let png = png::encode(preview, &[])?;
                let step = steps_before + progress.step;
                args.output
                    .write_preview(step, index, previews.len(), &png)?;
            }
        }
        step = progress.step;
    }
    bar.finish();
    Ok(step)
}

/// Decodes and writes the pictures. `base` is the metadata of the runs that these went on from, picture by picture.
#[expect(
    clippy::print_stderr,
    reason = "the names of the files, which are numbered when there are several"
)]
fn finish(
    args: &GenerateArgs,
    pipeline: &Pipeline,
    run: &Run,
    dump: Option<Dump>,
    base: Option<Vec<Value>>,
) -> Result<()> {
    let decoding = Stage::new("decoding");
    let decoded = run.decode(pipeline)?;
    let images = run.pictures(&decoded)?;
    drop(decoding);

    for (index, image) in images.iter().enumerate() {
        let parameters = pipeline.a1111_parameters(run.job(), index)?;
        let mut metadata = pipeline.metadata(run.job(), index)?;
        if let Some(base) = base.as_ref().and_then(|base| base.get(index)) {
            metadata["base"] = base.clone();
        }
        let texts = [
            ("parameters", parameters.as_str()),
            ("sd", &metadata.to_string()),
        ];
        let png = png::encode(image, &texts)?;
        if let Some(path) = args.output.write(index, images.len(), &png)? {
            eprintln!("wrote {}", path.display());
        }
    }
    if let (Some(path), Some(dump)) = (&args.dump_tensors, dump) {
        path.write(&dump.finish(decoded)?)?;
    }
    Ok(())
}
