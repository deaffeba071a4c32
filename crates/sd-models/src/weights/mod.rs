//! Weights: safetensors files in, a [`VarBuilder`] out, and a report of everything that did not
//! fit.
//!
//! The builder answers a missing or wrong-shaped tensor with zeros and takes a note, so that one
//! run of a network's constructor finds all of them; [`Weights::finish`] then fails with the whole
//! list.

mod file;
mod keys;
mod report;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use file::WeightFile;
pub use file::safetensors_header;
pub use report::{LoadReport, Mismatch};

use crate::source::{FileData, StoredFile};
use crate::{Component, Error, Result};

/// Zeros handed out for missing tensors, in elements, before the constructor is stopped: a
/// configuration of absurd sizes must end in an error and not in an allocation. The largest real
/// tensor has 6e7 elements.
const ZEROS_LIMIT: usize = 1 << 28;
/// What a missing tensor counts at least, so that the number of missing tensors is bounded as well.
const ZEROS_MIN: usize = 1 << 12;

/// The weights of one component, from one or several safetensors files.
///
/// Names are normalised to what current `diffusers` writes: CLIP keys lose `text_model.`, and the
/// old `query`, `key`, `value`, `proj_attn` of the autoencoder become `to_q`, `to_k`, `to_v`,
/// `to_out.0`. Weights of 1x1 convolutions, `[out, in, 1, 1]` or `[out, in, 1]`, serve where a
/// linear layer asks for `[out, in]`.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use sd_models::{Component, Weights};
///
/// let weights = Weights::open(Component::Vae, &["vae/diffusion_pytorch_model.safetensors"])?;
/// let vb = weights.var_builder(DType::F32, &Device::Cpu);
/// let bias = vb.pp("decoder.conv_out").get(3, "bias")?; // zeros if there is none,
/// let report = weights.finish()?; // which is an error here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Weights {
    files: Arc<Files>,
}

#[derive(Debug)]
struct Files {
    component: Component,
    files: Vec<WeightFile>,
    /// Normalised name -> file and name in it.
    index: HashMap<String, (usize, String)>,
    notes: Mutex<Notes>,
}

/// What a constructor asked for.
#[derive(Debug, Default)]
struct Notes {
    used: BTreeSet<String>,
    missing: BTreeMap<String, Vec<usize>>,
    mismatched: BTreeMap<String, Mismatch>,
    zeros: usize,
    stopped: bool,
}

impl Weights {
    /// Maps the files of `component` into memory; several files are the shards of one set.
    ///
    /// The files must not be truncated while this value or one of its builders lives: the system
    /// ends a process that reads a mapped page which is gone.
    ///
    /// # Errors
    /// A file that cannot be read, is not a valid safetensors file, or repeats a tensor of another
    /// one.
    pub fn open<P: AsRef<Path>>(component: Component, paths: &[P]) -> Result<Self> {
        let files = paths
            .iter()
            .map(|path| WeightFile::map(component, path.as_ref()));
        Self::new(component, files.collect::<Result<_>>()?)
    }

    /// As [`open`](Self::open), for files of a [`Store`](crate::source::Store).
    pub(crate) fn of_files(component: Component, files: &[StoredFile]) -> Result<Self> {
        let files = files.iter().map(|file| match &file.data {
            FileData::Path(path) => WeightFile::map(component, path),
            FileData::Static(bytes) => {
                WeightFile::in_memory(component, &file.name, Cow::Borrowed(bytes))
            }
        });
        Self::new(component, files.collect::<Result<_>>()?)
    }

    /// Weights that are already in memory: the bytes of a safetensors file.
    ///
    /// # Errors
    /// Bytes that are not a valid safetensors file.
    pub fn from_bytes(
        component: Component,
        name: &str,
        bytes: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self> {
        let file = WeightFile::in_memory(component, name, bytes.into())?;
        Self::new(component, vec![file])
    }

    fn new(component: Component, files: Vec<WeightFile>) -> Result<Self> {
        let mut index = HashMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                let key = keys::normalise(component, &name);
                let Some((other, twin)) = index.insert(key, (number, name.clone())) else {
                    continue;
                };
                let other = files[other].name();
                return Err(Error::Corrupt {
                    component,
                    file: file.name().to_owned(),
                    reason: format!("`{name}` is also there as `{twin}` in {other}"),
                });
            }
        }
        let notes = Mutex::default();
        Ok(Self {
            files: Arc::new(Files {
                component,
                files,
                index,
                notes,
            }),
        })
    }

    /// A builder that yields tensors of `dtype` on `device`, converted while they are copied.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Backend(self.files.clone())), dtype, device.clone())
    }

    /// Ends the loading: names the tensors of the files that no layer asked for.
    ///
    /// # Errors
    /// [`Error::Tensors`] with every tensor that is missing, wrong-shaped or not of a floating
    /// type.
    pub fn finish(self) -> Result<LoadReport> {
        let Files {
            component, index, ..
        } = &*self.files;
        let notes = self.files.notes();
        let unexpected = index
            .keys()
            .filter(|name| !notes.used.contains(*name) && !keys::is_ignored(*component, name));
        let report = LoadReport {
            component: *component,
            missing: notes.missing.clone(),
            mismatched: notes.mismatched.clone(),
            unexpected: unexpected.cloned().collect(),
            stopped: notes.stopped,
        };
        if report.is_usable() {
            Ok(report)
        } else {
            Err(Error::Tensors(Box::new(report)))
        }
    }
}

impl Files {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Notes are valid after every single insertion, so a panic elsewhere does not spoil them.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tensor of a normalised name, of whatever shape and type.
    fn find(&self, name: &str) -> Option<file::RawTensor<'_>> {
        let (number, name_in_file) = self.index.get(name)?;
        self.files[*number].tensor(name_in_file)
    }

    /// Zeros in place of a tensor that has been noted as unusable.
    fn zeros(&self, shape: &Shape, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut notes = self.notes();
        let dims = shape.dims().iter();
        let elements = dims.fold(1, |n: usize, &dim| n.saturating_mul(dim));
        notes.zeros = notes.zeros.saturating_add(elements.max(ZEROS_MIN));
        if notes.zeros > ZEROS_LIMIT {
            notes.stopped = true;
            candle_core::bail!("too many tensors are missing or wrong-shaped");
        }
        drop(notes);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }
}

/// The bridge to Candle. Errors are noted, not returned: see the module's description.
struct Backend(Arc<Files>);

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let Some(raw) = self.0.find(name) else {
            let expected = shape.dims().to_vec();
            self.0.notes().missing.insert(name.to_owned(), expected);
            return self.0.zeros(&shape, dtype, device);
        };
        self.0.notes().used.insert(name.to_owned());
        let mismatch = if !keys::serves(raw.shape, shape.dims()) {
            Mismatch::Shape {
                found: raw.shape.to_vec(),
                expected: shape.dims().to_vec(),
            }
        } else if raw.dtype().is_none() {
            Mismatch::Dtype {
                found: raw.dtype_name(),
            }
        } else {
            return raw.load(shape.dims(), dtype, device);
        };
        self.0.notes().mismatched.insert(name.to_owned(), mismatch);
        self.0.zeros(&shape, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let found = self.0.find(name);
        let shape = found.map_or(Shape::from(()), |raw| Shape::from(raw.shape));
        self.get(shape, name, Init::default(), dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.index.contains_key(name)
    }
}
