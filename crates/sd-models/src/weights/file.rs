//! One safetensors file: mapped or in memory, its header checked.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::{Component, Error, Result};

/// The file starts with the header's length as a little-endian u64.
const LENGTH_BYTES: usize = 8;
/// The format's limit on the header, as in the `safetensors` crate.
const MAX_HEADER_BYTES: usize = 100_000_000;

#[derive(Debug)]
pub(super) struct WeightFile {
    name: String,
    bytes: Bytes,
    metadata: Metadata,
    /// Where the tensors' data starts; the header's offsets count from here.
    data_start: usize,
}

enum Bytes {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

/// A tensor as it lies in the file.
pub(super) struct RawTensor<'a> {
    pub(super) shape: &'a [usize],
    dtype: Dtype,
    file: &'a WeightFile,
    /// Where its data lies in the file.
    place: Range<usize>,
}

impl WeightFile {
    pub(super) fn map(component: Component, path: &Path) -> Result<Self> {
        let map = || {
            // Before it is opened: a pipe would wait for a writer.
            if !path.metadata()?.is_file() {
                return Err(std::io::Error::other("not a regular file"));
            }
            map_file(&File::open(path)?)
        };
        let mapped = map().map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::new(component, path.display().to_string(), Bytes::Mapped(mapped))
    }

    pub(super) fn in_memory(
        component: Component,
        name: &str,
        bytes: Cow<'static, [u8]>,
    ) -> Result<Self> {
        Self::new(component, name.to_owned(), Bytes::Memory(bytes))
    }

    fn new(component: Component, name: String, bytes: Bytes) -> Result<Self> {
        match safetensors_header(bytes.as_slice()) {
            Ok((metadata, data_start)) => Ok(Self {
                name,
                bytes,
                metadata,
                data_start,
            }),
            Err(reason) => Err(Error::Corrupt {
                component,
                file: name,
                reason,
            }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(super) fn tensor(&self, name: &str) -> Option<RawTensor<'_>> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        Some(RawTensor {
            shape: &info.shape,
            dtype: info.dtype,
            file: self,
            place: self.data_start + start..self.data_start + end,
        })
    }
}

impl RawTensor<'_> {
    /// Candle's name of the type, if it is one that weights are stored in.
    pub(super) fn dtype(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    pub(super) fn dtype_name(&self) -> String {
        format!("{:?}", self.dtype)
    }

    /// Copies the tensor to `device` and converts it there. `shape` has as many elements as the
    /// tensor. The pages it was copied from are given back: a model is not resident twice.
    pub(super) fn load(
        &self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let Some(stored) = self.dtype() else {
            candle_core::bail!("tensor of type {:?}", self.dtype);
        };
        let Some(bytes) = self.file.bytes.as_slice().get(self.place.clone()) else {
            // `safetensors_header` has compared the offsets with the length of the data.
            candle_core::bail!("tensor data at {:?}, beyond the file's end", self.place);
        };
        let tensor = if device.is_cpu() {
            sd_ops::tensor_from_bytes(bytes, stored, shape, dtype)?
        } else {
            Tensor::from_raw_buffer(bytes, stored, shape, device)?.to_dtype(dtype)?
        };
        self.file.bytes.release(&self.place);
        Ok(tensor)
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }

    /// Gives back the memory of mapped bytes that have been copied; reading them again reads the file again.
    fn release(&self, place: &Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            release_mapped(map, place);
        }
        #[cfg(not(unix))]
        let _ = place;
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} bytes]", self.as_slice().len())
    }
}

#[expect(
    unsafe_code,
    reason = "weights of many gigabytes are mapped and not read; see SAFETY"
)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this module, which only copies out of it and
    // accepts any bytes there. What the compiler cannot know is that nobody writes to the file
    // meanwhile: a writer could spoil the copied numbers, and a truncation ends the process
    // (SIGBUS). Files of weights are written once and then renamed into place, by us and by the
    // Python libraries alike.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "the advice drops pages; see SAFETY")]
fn release_mapped(map: &Mmap, place: &Range<usize>) {
    // SAFETY: the map is of a file and was never written to, so a page that is dropped is read from the file again when
    // it is next touched: the bytes behind every reference stay what they are.
    let advised =
        unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, place.start, place.len()) };
    // It only saves memory.
    drop(advised);
}

/// The header of a safetensors file's bytes, and where its data starts. The offsets of its tensors count from there, and
/// lie within the bytes.
///
/// The `safetensors` crate compares tensors and offsets with each other, and we compare their sum with the file.
/// `SafeTensors::deserialize` would do both, but adds the hostile sum up unchecked.
///
/// # Errors
/// What is wrong with the bytes, in words.
pub fn safetensors_header(bytes: &[u8]) -> Result<(Metadata, usize), String> {
    let (length, rest) = bytes
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or("it is shorter than 8 bytes")?;
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MAX_HEADER_BYTES)
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| {
            format!(
                "its header claims {length} bytes, the file has {}",
                rest.len()
            )
        })?;
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let data = rest.len() - header.len();
    if metadata.data_len() != data {
        return Err(format!(
            "its header describes {} bytes of data, the file has {data}",
            metadata.data_len()
        ));
    }
    Ok((metadata, LENGTH_BYTES + header.len()))
}
