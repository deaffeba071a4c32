//! From a source to a [`Model`].

mod tiny;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use sd_config::{ModelConfig, TextEncoderConfig, files};
use serde::Deserialize;

use crate::memory::vae_dtype;
use crate::source::{ModelSource, ProgressFn, Store, StoredFile, is_path_part};
use crate::text::{ClipTextModel, OutputLayer, TextEncoder, TextEncoders, Tokenizer};
use crate::unet::Unet;
use crate::vae::AutoencoderKl;
use crate::{Component, Error, FileHashes, Model, Result, Weights};

pub use tiny::load_tiny_decoder;

/// How to load a model.
#[derive(Clone)]
pub struct LoadOptions {
    /// Where it will run; by default the CPU.
    pub device: Device,
    /// What the weights are kept as, F32, F16 or BF16; by default F32. An autoencoder whose
    /// configuration has `force_upcast` is kept as F32 in place of F16, except on the CPU.
    /// There products of BF16 weights are computed in bf16, all others in f32: see [`Compute`](crate::nn::Compute).
    pub dtype: DType,
    /// Files to prefer if the model has them, such as `fp16`; by default none.
    pub variant: Option<String>,
    /// Told how downloads come on; by default none.
    pub progress: Option<ProgressFn>,
    /// Hashes of files that are already known; by default none.
    pub hashes: FileHashes,
    /// The hub that repositories are fetched from; by default none, so that only folders and
    /// embedded models load.
    #[cfg(feature = "hub")]
    pub hub: Option<crate::HubOptions>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            variant: None,
            progress: None,
            hashes: FileHashes::default(),
            #[cfg(feature = "hub")]
            hub: None,
        }
    }
}

/// What a model is: its JSON files alone are fetched and read, and checked as [`load`] does. Enough to resolve a request
/// before gigabytes of weights are at hand.
///
/// # Errors
/// Files that are missing, cannot be read or fetched, or do not fit each other.
pub fn config(source: &ModelSource, options: &LoadOptions) -> Result<ModelConfig> {
    read_config(&*source.open(options)?)
}

/// Loads a model: the configuration first, which is checked before anything large is fetched or
/// read, then the weights of each network.
///
/// # Errors
/// Files that are missing, cannot be read or fetched, are corrupt, or do not fit the configuration.
#[tracing::instrument(name = "load", skip_all, fields(model = %source))]
pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Model> {
    if !matches!(options.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::Dtype(options.dtype));
    }
    if let Some(variant) = options.variant.as_ref().filter(|name| !is_path_part(name)) {
        return Err(Error::Variant(variant.clone()));
    }
    let store = source.open(options)?;
    let config = read_config(&*store)?;
    let tokenizers = read_tokenizers(&*store, &config)?;
    let files = Files::locate(&*store, &config, options.variant.as_deref())?;

    let text = || build_text(&config, tokenizers, &files.text, options);
    let new_unet = |vb| Unet::new(vb, &config.unet);
    let unet = || build(Component::Unet, &files.unet, options, new_unet);
    let new_vae = |vb| AutoencoderKl::new(vb, &config.vae);
    let vae_options = LoadOptions {
        dtype: vae_dtype(&config.vae, options.dtype, &options.device),
        ..options.clone()
    };
    let vae = || build(Component::Vae, &files.vae, &vae_options, new_vae);
    let (text, unet, vae) = if options.device.is_cpu() {
        let span = tracing::Span::current();
        let (text, vae) = (|| span.in_scope(text), || span.in_scope(vae));
        let ((text, vae), unet) = rayon::join(|| rayon::join(text, vae), || span.in_scope(unet));
        (text?, unet?, vae?)
    } else {
        (text()?, unet()?, vae()?)
    };

    let layer = match config.is_xl() {
        true => OutputLayer::Penultimate,
        false => OutputLayer::LastNormed,
    };
    let text_warnings = text.iter().filter_map(|(_, warning)| warning.clone());
    let warnings = files.warnings.into_iter().chain(text_warnings);
    let warnings: Vec<_> = warnings.chain(unet.1).chain(vae.1).collect();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let encoders = text.into_iter().map(|(encoder, _)| encoder).collect();
    Ok(Model {
        text: TextEncoders::new(encoders, layer, options.device.clone()),
        unet: unet.0,
        vae: vae.0,
        warnings,
        unet_files: files.unet,
        other_files: [files.text.concat(), files.vae].concat(),
        hashes: options.hashes.clone(),
        unet_sha256: OnceLock::new(),
        fingerprint: OnceLock::new(),
        config,
    })
}

/// A network, and a warning about tensors it has no place for.
type Built<T> = (T, Option<String>);

#[tracing::instrument(name = "load_component", skip_all, fields(%component))]
fn build<T>(
    component: Component,
    files: &[StoredFile],
    options: &LoadOptions,
    new: impl FnOnce(VarBuilder<'static>) -> Result<T>,
) -> Result<Built<T>> {
    let weights = Weights::of_files(component, files)?;
    let network = new(weights.var_builder(options.dtype, &options.device));
    // What is missing explains better than what failed because of it.
    let report = weights.finish()?;
    Ok((network?, report.warning()))
}

fn build_text(
    config: &ModelConfig,
    tokenizers: Vec<Tokenizer>,
    files: &[Vec<StoredFile>],
    options: &LoadOptions,
) -> Result<Vec<Built<TextEncoder>>> {
    let parts = config.text_encoders.iter().zip(tokenizers).zip(files);
    let encoders = parts.map(|((encoder, tokenizer), files)| {
        let component = text_component(encoder);
        let new = |vb| ClipTextModel::new(vb, &encoder.clip, component);
        let (model, warning) = build(component, files, options, new)?;
        let encoder = TextEncoder {
            component,
            tokenizer,
            model,
        };
        Ok((encoder, warning))
    });
    encoders.collect()
}

fn text_component(encoder: &TextEncoderConfig) -> Component {
    match encoder.folder {
        "text_encoder_2" => Component::TextEncoder2,
        _ => Component::TextEncoder,
    }
}

fn read_config(store: &dyn Store) -> Result<ModelConfig> {
    // The parser knows only "absent"; why a file could not be read is kept here.
    let failure = RefCell::new(None);
    let read = |path: &str| {
        let text = store
            .find(path)
            .and_then(|file| file.map(|file| file.text()).transpose());
        text.unwrap_or_else(|error| {
            failure.borrow_mut().get_or_insert(error);
            None
        })
    };
    let parsed = ModelConfig::from_files(read);
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    parsed.map_err(|source| Error::Config {
        model: store.name(),
        source: Box::new(source),
    })
}

fn read_tokenizers(store: &dyn Store, config: &ModelConfig) -> Result<Vec<Tokenizer>> {
    let mut tokenizers: Vec<Tokenizer> = Vec::new();
    for TextEncoderConfig {
        clip,
        tokenizer_folder: folder,
        ..
    } in &config.text_encoders
    {
        let tokenizer = Tokenizer::from_files(folder, clip.max_position_embeddings, |name| {
            let file = store.find(&format!("{folder}/{name}"))?;
            file.map(|file| file.text()).transpose()
        })?;
        let error = |reason| Error::Tokenizer {
            folder: (*folder).to_owned(),
            reason,
        };
        let (largest, vocabulary) = (tokenizer.largest_id() as usize, clip.vocab_size);
        if largest >= vocabulary {
            let reason = format!("id {largest} is beyond the text encoder's {vocabulary} tokens");
            return Err(error(reason));
        }
        let length = tokenizer.max_length();
        if let Some(first) = tokenizers
            .first()
            .map(Tokenizer::max_length)
            .filter(|n| *n != length)
        {
            return Err(error(format!(
                "it gives {length} ids, the first tokenizer {first}"
            )));
        }
        tokenizers.push(tokenizer);
    }
    Ok(tokenizers)
}

/// The files of the weights, at hand.
struct Files {
    /// One element a text encoder.
    text: Vec<Vec<StoredFile>>,
    unet: Vec<StoredFile>,
    vae: Vec<StoredFile>,
    warnings: Vec<String>,
}

impl Files {
    /// Finds the weights of all networks and fetches them if need be.
    fn locate(store: &dyn Store, config: &ModelConfig, variant: Option<&str>) -> Result<Self> {
        let mut warnings = Vec::new();
        let mut locate = |component| locate_weights(store, component, variant, &mut warnings);
        let text = config
            .text_encoders
            .iter()
            .map(|encoder| locate(text_component(encoder)));
        let text = text.collect::<Result<_>>()?;
        let (unet, vae) = (locate(Component::Unet)?, locate(Component::Vae)?);
        Ok(Self {
            text,
            unet,
            vae,
            warnings,
        })
    }
}

/// The files of a component's weights, fetched if need be: one, or the shards of one.
fn locate_weights(
    store: &dyn Store,
    component: Component,
    variant: Option<&str>,
    warnings: &mut Vec<String>,
) -> Result<Vec<StoredFile>> {
    let folder = component.folder();
    // Some repositories have half-precision files only.
    let last_resort = files::weight_candidates(folder, Some("fp16"));
    let mut candidates = files::weight_candidates(folder, variant);
    for path in last_resort {
        if !candidates.contains(&path) {
            candidates.push(path);
        }
    }
    for path in &candidates {
        let Some(file) = store.find(path)? else {
            continue;
        };
        if let Some(variant) = variant.filter(|variant| !path.contains(&format!(".{variant}."))) {
            warnings.push(format!(
                "{component}: there is no `{variant}` variant, {path} is used"
            ));
        }
        return match path.ends_with(".json") {
            true => shards(store, component, &file),
            false => Ok(vec![file]),
        };
    }
    for path in &candidates {
        let pickle = path.replace(".safetensors", ".bin");
        for pickle in [pickle.replace("/model.", "/pytorch_model."), pickle] {
            if store.exists(&pickle)? {
                return Err(Error::Pickle {
                    model: store.name(),
                    file: pickle,
                });
            }
        }
    }
    Err(Error::MissingFile {
        model: store.name(),
        expected: candidates.join(" or "),
        hint: "",
    })
}

/// The files that an index of shards lists, in the order of their names.
fn shards(store: &dyn Store, component: Component, index: &StoredFile) -> Result<Vec<StoredFile>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let corrupt = |reason: String| Error::Corrupt {
        component,
        file: index.name.clone(),
        reason,
    };
    let parsed: Index =
        serde_json::from_str(&index.text()?).map_err(|error| corrupt(error.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(corrupt("it lists no files".to_owned()));
    }
    let find = |name: String| {
        if !is_path_part(&name) || !name.ends_with(".safetensors") {
            return Err(corrupt(format!(
                "`{name}` is not the name of a safetensors file beside it"
            )));
        }
        let path = format!("{}/{name}", component.folder());
        store.find(&path)?.ok_or_else(|| Error::MissingFile {
            model: store.name(),
            expected: path,
            hint: "",
        })
    };
    names.into_iter().map(find).collect()
}
