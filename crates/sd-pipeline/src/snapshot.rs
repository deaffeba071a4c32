//! A run as bytes: a safetensors file of what changes from call to call, whose metadata holds the job. What the job alone
//! decides (the encoded text, the plan) is computed again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use candle_core::{Device, Tensor, safetensors::Load};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorView},
};
use sd_models::safetensors_header;
use sd_scheduler::{SchedulerState, SeededNoise, rng::TorchGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Conditions, Error, Picture, Pipeline, Request, Result, Run, error::Doing, init, pass::Pass,
};

/// The metadata's one key. One, as the order of several would change from file to file.
const DESCRIPTION: &str = "sd_pipeline_run";
/// Counts up when snapshots written before can no longer be read.
const VERSION: u32 = 1;
const LATENTS: &str = "latents";
/// Prefix of the scheduler's tensors, which are shaped like the latents.
const SCHEDULER: &str = "scheduler.";
/// Prefix of the generators' states, which are bytes.
const GENERATOR: &str = "generator.";
/// The encoded bytes of the job's pictures.
const INIT_IMAGE: &str = "init_image";
const MASK_IMAGE: &str = "mask_image";

#[derive(Serialize, Deserialize)]
struct Description<J> {
    version: u32,
    /// The model's [`fingerprint`](sd_models::Model::fingerprint).
    weights: String,
    /// UNet calls made.
    call: usize,
    job: J,
}

pub(crate) fn write(run: &Run) -> Result<Vec<u8>> {
    let model = run.model.upgrade().ok_or(Error::OtherPipeline)?;
    let mut tensors = BTreeMap::from([(LATENTS.to_string(), on_host(&run.latents)?)]);
    for (key, tensor) in run.passes[run.pass].scheduler.state().tensors {
        tensors.insert(format!("{SCHEDULER}{key}"), on_host(&tensor)?);
    }
    for (index, generator) in run.noise.generators().iter().enumerate() {
        tensors.insert(format!("{GENERATOR}{index}"), bytes(&generator.to_bytes())?);
    }
    // As tensors, since the metadata's size is limited.
    let mut job = run.job.clone();
    for (name, picture) in [
        (INIT_IMAGE, job.init_image.take()),
        (MASK_IMAGE, job.mask_image.take()),
    ] {
        if let Some(picture) = picture {
            tensors.insert(name.into(), bytes(picture.bytes())?);
        }
    }
    let weights = model.fingerprint()?.into();
    let description = Description {
        version: VERSION,
        weights,
        call: run.calls_made(),
        job: &job,
    };
    let metadata = HashMap::from([(
        DESCRIPTION.to_string(),
        serde_json::to_string(&description)?,
    )]);
    safetensors::serialize(tensors, Some(metadata)).map_err(Error::SnapshotWrite)
}

fn bytes(values: &[u8]) -> Result<Tensor> {
    Tensor::new(values, &Device::Cpu).doing("saving bytes")
}

/// Candle's tensors serialise themselves, and panic if that fails: it cannot once they are on the host.
fn on_host(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu).doing("reading the run back")
}

/// A snapshot whose header is checked.
struct File<'a> {
    header: Metadata,
    /// What the header's offsets count in.
    data: &'a [u8],
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        let header = safetensors_header(bytes);
        let (header, start) = header.map_err(|reason| Error::SnapshotFile { reason })?;
        let data = &bytes[start..];
        Ok(Self { header, data })
    }

    fn tensor(&self, name: &str) -> Option<TensorView<'a>> {
        let info = self.header.info(name)?;
        let (start, end) = info.data_offsets;
        TensorView::new(info.dtype, info.shape.clone(), self.data.get(start..end)?).ok()
    }
}

pub(crate) fn read(bytes: &[u8], pipeline: &Pipeline) -> Result<Run> {
    let file = File::new(bytes)?;
    let Description {
        weights, call, job, ..
    } = description(&file.header)?;
    let found = pipeline.model.fingerprint()?;
    if weights != found {
        return Err(Error::OtherWeights {
            expected: weights,
            found: found.into(),
        });
    }
    // A job's JSON is a request: resolving it checks every limit again.
    let mut request = Request::from_map(job)?;
    request.init_image = picture(&file, INIT_IMAGE)?;
    request.mask_image = picture(&file, MASK_IMAGE)?;
    let job = pipeline.resolve(&request)?;
    let mut passes = Pass::all(pipeline.config(), &job)?;
    let (pass, call) = position(&passes, call)?;
    let conditions = Conditions::encode(&pipeline.model, &job, &passes)?;
    let second = job.second_pass().filter(|_| pass > 0);
    let shape = pipeline.latent_shape(second.as_ref().unwrap_or(&job));
    let device = conditions.at(0).device();
    let tensor = |name: &str| tensor(&file, name, &shape, device);
    let latents = tensor(LATENTS)?;
    let mut tensors = BTreeMap::new();
    for name in file.header.offset_keys() {
        if let Some(key) = name.strip_prefix(SCHEDULER) {
            tensors.insert(key.to_string(), tensor(&name)?);
        }
    }
    let start = passes[pass].first;
    passes[pass].scheduler.restore(SchedulerState {
        start,
        next: call,
        tensors,
    })?;
    // What to keep of a picture follows from the job and the generators as they were at the start.
    let mut noise = init::noise(&job);
    let generators = (0..noise.generators().len())
        .map(|index| generator(&file, &format!("{GENERATOR}{index}")))
        .collect::<Result<_>>()?;
    let inpaint = match &job.mask_image {
        Some(_) => init::start(pipeline, &job, &passes[0], device, &mut noise)?.inpaint,
        None => None,
    };
    Ok(Run {
        job,
        model: Arc::downgrade(&pipeline.model),
        conditions,
        passes,
        pass,
        call,
        noise: SeededNoise::from_generators(generators),
        latents,
        inpaint,
        denoised: None,
    })
}

/// The pass and the call of its plan that come after so many calls of a run.
fn position(passes: &[Pass], made: usize) -> Result<(usize, usize)> {
    let mut left = made;
    for (index, pass) in passes.iter().enumerate() {
        let last = index + 1 == passes.len();
        if left < pass.calls() || last && left == pass.calls() {
            return Ok((index, pass.first + left));
        }
        left -= pass.calls();
    }
    let calls: usize = passes.iter().map(Pass::calls).sum();
    Err(wrong("call", format!("at most {calls}")))
}

fn picture(file: &File<'_>, name: &str) -> Result<Option<Picture>> {
    match file.tensor(name) {
        Some(view) if view.dtype() == Dtype::U8 => Ok(Some(Picture::from_bytes(view.data()))),
        Some(_) => Err(wrong(name, "a picture's bytes")),
        None => Ok(None),
    }
}

fn description(header: &Metadata) -> Result<Description<Map<String, Value>>> {
    let metadata = header.metadata().as_ref();
    let json = metadata
        .and_then(|metadata| metadata.get(DESCRIPTION))
        .ok_or_else(|| wrong(DESCRIPTION, "a description of the run in the metadata"))?;
    let description: Description<_> = serde_json::from_str(json)?;
    if description.version == VERSION {
        Ok(description)
    } else {
        Err(wrong("version", VERSION))
    }
}

/// A tensor shaped like the latents.
fn tensor(file: &File<'_>, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
    match file.tensor(name) {
        Some(view) if view.dtype() == Dtype::F32 && view.shape() == shape => {
            view.load(device).doing("restoring the run")
        }
        _ => Err(wrong(name, format!("f32 {shape:?}"))),
    }
}

fn generator(file: &File<'_>, name: &str) -> Result<TorchGenerator> {
    match file.tensor(name) {
        Some(view) if view.dtype() == Dtype::U8 => Ok(TorchGenerator::from_bytes(view.data())?),
        _ => Err(wrong(name, "a generator's state")),
    }
}

fn wrong(part: &str, expected: impl ToString) -> Error {
    Error::SnapshotPart {
        part: part.into(),
        expected: expected.to_string(),
    }
}
