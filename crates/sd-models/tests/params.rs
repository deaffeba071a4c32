//! The parameters of the published models: what our networks ask for is what diffusers and transformers save.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use sd_config::{ModelConfig, TinyVaeConfig, Version};
use sd_models::Component;
use sd_models::text::ClipTextModel;
use sd_models::unet::Unet;
use sd_models::vae::{AutoencoderKl, TinyDecoder};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Takes down what a network asks for, and hands out zeros that take no memory.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<String, Vec<usize>>>>);

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let earlier = self
            .0
            .lock()
            .unwrap()
            .insert(name.to_owned(), shape.dims().to_vec());
        assert!(earlier.is_none(), "{name} is asked for twice");
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        panic!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// A line of `params.json`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Parameters {
    count: usize,
    sha256: String,
}

/// What `build` asks for.
fn recorded(build: impl FnOnce(VarBuilder<'static>)) -> Parameters {
    let recorder = Recorder::default();
    build(VarBuilder::from_backend(
        Box::new(recorder.clone()),
        DType::F16,
        Device::Cpu,
    ));
    let parameters = recorder.0.lock().unwrap();
    let lines: String = parameters
        .iter()
        .map(|(name, shape)| format!("{name} {shape:?}\n"))
        .collect();
    let digest = Sha256::digest(lines);
    Parameters {
        count: parameters.len(),
        sha256: digest.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

#[test]
fn published_models_have_the_parameters_of_diffusers() {
    let expected: HashMap<String, HashMap<String, Parameters>> =
        common::json(&common::golden("params.json"));
    for version in Version::ALL {
        let model = ModelConfig::preset(version);
        let mut found = HashMap::from([
            (
                "unet".to_owned(),
                recorded(|vb| drop(Unet::new(vb, &model.unet).unwrap())),
            ),
            (
                "vae".to_owned(),
                recorded(|vb| drop(AutoencoderKl::new(vb, &model.vae).unwrap())),
            ),
        ]);
        for encoder in &model.text_encoders {
            let parameters = recorded(|vb| {
                drop(ClipTextModel::new(vb, &encoder.clip, Component::TextEncoder).unwrap())
            });
            found.insert(encoder.folder.to_owned(), parameters);
        }
        assert_eq!(found, expected[&version.to_string()], "{version}");
    }
    assert_eq!(expected.len(), Version::ALL.len() + 1, "and TAESD");
    let config = TinyVaeConfig::default();
    let tiny_vae = recorded(|vb| drop(TinyDecoder::new(vb, &config).unwrap()));
    assert_eq!(tiny_vae, expected["taesd"]["tiny_vae"]);
}
