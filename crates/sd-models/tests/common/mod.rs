//! Fixtures and comparisons shared by the tests of this crate.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

/// Everything at this place is written by `tools/golden`.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(path)
}

pub(crate) fn json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensors of a file by case: `case.rest` -> `rest`.
pub(crate) fn cases(path: &Path) -> BTreeMap<String, HashMap<String, Tensor>> {
    let mut cases: BTreeMap<String, HashMap<_, _>> = BTreeMap::new();
    for (name, tensor) in tensors(path) {
        let (case, rest) = name.split_once('.').unwrap();
        cases
            .entry(case.to_owned())
            .or_default()
            .insert(rest.to_owned(), tensor);
    }
    cases
}

/// `max |a - b| / max |b|` over whole tensors of one shape.
pub(crate) fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let values = |x: &Tensor| {
        x.to_dtype(DType::F32)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    let (a, b) = (values(a), values(b));
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    // NaN must not pass as 0.
    let apart = a.iter().zip(&b).fold(0f32, |m, (x, y)| {
        if (x - y).is_nan() {
            f32::NAN
        } else {
            m.max((x - y).abs())
        }
    });
    apart / largest
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let difference = difference(found, expected);
    assert!(
        difference <= tolerance,
        "{what}: {difference:e} apart, {tolerance:e} allowed"
    );
}

/// The bytes of a safetensors file.
pub(crate) fn safetensors(tensors: &[(&str, Tensor)]) -> Vec<u8> {
    safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), None).unwrap()
}

/// The bytes of a safetensors file of any header.
pub(crate) fn raw_safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Copies a folder.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
