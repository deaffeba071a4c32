//! What the tests of the networks share beside [`super::common`]: random tensors and weights.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::common::{difference, golden};

/// The tolerance of a network's results against diffusers.
pub(crate) const STAGE: f32 = 1e-5;

/// The folders in a folder of fixtures, sorted.
pub(crate) fn folders(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(golden(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let paths = entries.map(|entry| entry.unwrap().path());
    let folders: BTreeSet<_> = paths.filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty(), "{path} has no fixtures");
    folders.into_iter().collect()
}

/// How far diffusers in bf16 is from itself in f32, for a network of a folder of `models`: of the largest result.
pub(crate) fn bf16_error(folder: &Path, network: &str) -> f32 {
    let errors: serde_json::Value = serde_json::from_str(&text(&golden("bf16.json"))).unwrap();
    let model = folder.file_name().and_then(|name| name.to_str()).unwrap();
    let error = errors[model][network].as_f64();
    error.unwrap_or_else(|| panic!("{model} {network}")) as f32
}

pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensors whose change does not change `run`'s result by more than 1e-4.
pub(crate) fn idle(
    tensors: &HashMap<String, Tensor>,
    run: impl Fn(HashMap<String, Tensor>) -> Tensor + Sync,
) -> BTreeSet<String> {
    let reference = run(tensors.clone());
    let moves = |name: &str| {
        let mut tensors = tensors.clone();
        let changed = (&tensors[name] + random(1, tensors[name].dims())).unwrap();
        tensors.insert(name.to_owned(), changed);
        difference(&run(tensors), &reference) > 1e-4
    };
    // Networks this small lose more to waking threads than they gain.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    pool.install(|| {
        tensors
            .keys()
            .filter(|name| !moves(name))
            .cloned()
            .collect()
    })
}

/// The bits of an f32 tensor.
pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Numbers of mean 0 and variance 1 that look normal, the same for the same `seed`.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = || {
        // SplitMix64 (Steele 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let mut normal = || (0..4).map(|_| uniform()).sum::<f32>() * 3f32.sqrt();
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A builder that makes up weights when they are asked for: of variance `1 / inputs` for matrices and kernels,
/// near 1 for the weights of norms.
pub(crate) fn random_weights(dtype: DType) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(RandomWeights), dtype, Device::Cpu)
}

struct RandomWeights;

impl SimpleBackend for RandomWeights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let hash = |h: u64, b: u8| h.wrapping_mul(31).wrapping_add(b.into());
        let tensor = random(name.bytes().fold(7, hash), shape.dims());
        let tensor = match shape.dims() {
            [_, inputs @ ..] if !inputs.is_empty() => {
                (tensor / (inputs.iter().product::<usize>() as f64).sqrt())?
            }
            _ if name.ends_with("weight") => ((tensor * 0.1)? + 1.)?,
            _ => (tensor * 0.1)?,
        };
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}: the shape is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
