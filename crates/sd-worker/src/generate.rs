//! `sd-worker generate`: from the command line to files.

use candle_core::Tensor;
use sd_config::{ModelConfig, Version};
use sd_pipeline::{Job, ModelSource, Pipeline, Request, Run};

use crate::{
    args::GenerateArgs,
    device,
    dump::Dump,
    error::{Error, Result},
    loading,
    output::DumpPath,
    png,
    progress::{self, Stage},
};

/// Makes the pictures and writes them.
///
/// # Errors
/// The request does not suit the model, the model cannot be loaded, or a file cannot be written.
#[expect(
    clippy::print_stderr,
    reason = "what a user has to know goes to standard error"
)]
pub fn run(args: &GenerateArgs) -> Result<()> {
    args.output.check(args.num_images.unwrap_or(1))?;
    args.dump_tensors.as_ref().map_or(Ok(()), DumpPath::check)?;

    if let (None, Some(version)) = (&args.model, args.version) {
        // What its files will refuse is better said before gigabytes of them are fetched.
        request(args).resolve(&ModelConfig::preset(version))?;
    }
    let pipeline = load(args)?;
    for warning in pipeline.warnings() {
        eprintln!("warning: {warning}");
    }
    let mut run = pipeline.start(&request(args))?;
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
    denoise(&pipeline, &mut run, dump.as_mut())?;
    let decoding = Stage::new("decoding");
    let pictures = run.decode(&pipeline)?;
    drop(decoding);

    write(args, &pipeline, run.job(), &pictures)?;
    if let (Some(path), Some(dump)) = (&args.dump_tensors, dump) {
        path.write(&dump.finish(pictures)?)?;
    }
    Ok(())
}

fn load(args: &GenerateArgs) -> Result<Pipeline> {
    let stage = Stage::new("loading the model");
    let source = source(args)?;
    let mut options = loading::options(&source, device::open(args.device)?, args.dtype)?;
    options.progress = Some(stage.downloads());
    let pipeline = Pipeline::builder(source).options(options).build()?;
    check_version(args, pipeline.config().version)?;
    Ok(pipeline)
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

/// The request as typed: what is not given is for the library to resolve.
fn request(args: &GenerateArgs) -> Request {
    Request {
        negative_prompt: args.negative_prompt.clone(),
        prompt_2: args.prompt_2.clone(),
        num_inference_steps: args.steps,
        guidance_scale: args.guidance_scale,
        guidance_rescale: args.guidance_rescale,
        width: args.width,
        height: args.height,
        seed: args.seed,
        seed_mode: args.seed_mode.map(Into::into),
        num_images: args.num_images,
        scheduler: args.scheduler.clone(),
        eta: args.eta,
        clip_skip: args.clip_skip,
        ..Request::new(&args.prompt)
    }
}

fn denoise(pipeline: &Pipeline, run: &mut Run, mut dump: Option<&mut Dump>) -> Result<()> {
    let bar = progress::steps(run.job().num_inference_steps);
    while let Some(progress) = run.advance(pipeline)? {
        bar.set_position(progress.step as u64);
        if let Some(dump) = &mut dump {
            dump.latents(run, progress.call)?;
        }
    }
    bar.finish();
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "the names of the files, which are numbered when there are several"
)]
fn write(args: &GenerateArgs, pipeline: &Pipeline, job: &Job, pictures: &Tensor) -> Result<()> {
    let images = sd_pipeline::to_rgb(pictures)?;
    for (index, image) in images.iter().enumerate() {
        let parameters = pipeline.a1111_parameters(job, index)?;
        let metadata = pipeline.metadata(job, index)?.to_string();
        let png = png::encode(image, &[("parameters", &parameters), ("sd", &metadata)])?;
        if let Some(path) = args.output.write(index, images.len(), &png)? {
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(())
}
