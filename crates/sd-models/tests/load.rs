//! Whole models from folders and from memory.

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{assert_close, cases, copy_dir, golden, safetensors, tensors};
use sd_models::text::Conditioning;
use sd_models::{Component, EmbeddedModel, Error, LoadOptions, Model, ModelSource, Result, load};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const FAMILIES: [&str; 10] = [
    "sd15",
    "sd15-inpaint",
    "sd21",
    "sd2-inpaint",
    "sd-turbo",
    "lcm",
    "sdxl",
    "sdxl-inpaint",
    "sdxl-turbo",
    "sdxl-refiner",
];
/// The first prompt of the generator, whose ids are the case `full`.
const PROMPT: &str = "a photograph of an astronaut riding a horse!";

fn open(folder: &Path) -> Result<Model> {
    load(
        &ModelSource::Dir(folder.to_owned()),
        &LoadOptions::default(),
    )
}

fn family(name: &str) -> Model {
    open(&golden(&format!("models/{name}"))).unwrap()
}

/// A copy of the tiny v1.5 to spoil.
fn copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&golden("models/sd15"), dir.path());
    dir
}

fn hidden(model: &Model) -> Vec<f32> {
    let Conditioning { hidden, .. } = model.text.encode(&[PROMPT], None).unwrap();
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_family_loads_without_a_warning() {
    for name in FAMILIES {
        let model = family(name);
        assert_eq!(model.warnings, Vec::<String>::new(), "{name}");
        assert_eq!(model.text.len(), model.config.text_encoders.len());
    }
}

#[test]
fn one_encoder_conditions_by_its_normed_last_state() {
    for name in ["sd15", "sd21", "lcm"] {
        let model = family(name);
        let golden = &cases(&golden(&format!("models/{name}/golden/text.safetensors")))["full"];
        let Conditioning {
            hidden,
            pooled,
            truncated,
        } = model.text.encode(&[PROMPT], None).unwrap();
        assert_close(name, &hidden, &golden["last"], 1e-5);
        assert!(pooled.is_none() && truncated.is_empty());
        let none_skipped = model.text.encode(&[PROMPT], Some(0)).unwrap().hidden;
        assert_close(name, &none_skipped, &hidden, 0.);
    }
}

#[test]
fn clip_skip_takes_an_earlier_state_through_the_final_norm() {
    let folder = golden("models/sd15");
    let weights = tensors(&folder.join("text_encoder/model.safetensors"));
    let parameter = |end: &str| {
        let found = weights.iter().find(|(name, _)| {
            name.trim_start_matches("text_model.") == format!("final_layer_norm.{end}")
        });
        found.unwrap().1.to_dtype(DType::F64).unwrap()
    };
    let golden = &cases(&folder.join("golden/text.safetensors"))["full"];
    let model = family("sd15");
    let layers = model.config.text_encoders[0].clip.num_hidden_layers;
    for skip in 1..=layers {
        let state = golden[&format!("hs.{}", layers - skip)]
            .to_dtype(DType::F64)
            .unwrap();
        let centred = state
            .broadcast_sub(&state.mean_keepdim(2).unwrap())
            .unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(2).unwrap();
        let normed = centred
            .broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap())
            .unwrap();
        let expected = normed
            .broadcast_mul(&parameter("weight"))
            .unwrap()
            .broadcast_add(&parameter("bias"))
            .unwrap();
        let hidden = model.text.encode(&[PROMPT], Some(skip)).unwrap().hidden;
        assert_close(&format!("skip {skip}"), &hidden, &expected, 1e-5);
    }
    let error = model.text.encode(&[PROMPT], Some(layers + 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "text_encoder: clip_skip is {}, expected at most {layers}",
            layers + 1
        )
    );
    model.text.encode(&[PROMPT], Some(usize::MAX)).unwrap_err();
}

#[test]
fn xl_conditions_by_the_penultimate_states_side_by_side() {
    for name in ["sdxl", "sdxl-turbo", "sdxl-refiner"] {
        let model = family(name);
        let files = [("text_encoder", "text"), ("text_encoder_2", "text_2")];
        let present: Vec<_> = files
            .iter()
            .filter(|(folder, _)| golden(&format!("models/{name}/{folder}")).is_dir())
            .collect();
        let cases: Vec<_> = present
            .iter()
            .map(|(_, file)| {
                cases(&golden(&format!("models/{name}/golden/{file}.safetensors")))
                    .remove("full")
                    .unwrap()
            })
            .collect();
        for skip in [None, Some(1)] {
            let states: Vec<_> = cases
                .iter()
                .map(|case| {
                    let states = case.keys().filter(|key| key.starts_with("hs.")).count();
                    case[&format!("hs.{}", states - 2 - skip.unwrap_or(0))].clone()
                })
                .collect();
            let output = model
                .text
                .encode(&vec![PROMPT; states.len()], skip)
                .unwrap();
            assert_close(
                name,
                &output.hidden,
                &Tensor::cat(&states, 2).unwrap(),
                1e-5,
            );
            assert_close(
                name,
                &output.pooled.unwrap(),
                &cases.last().unwrap()["pooled"],
                1e-5,
            );
        }
        let zeros = model.text.zeros(1).unwrap();
        let encoded = model.text.encode(&vec![""; present.len()], None).unwrap();
        assert_eq!(zeros.hidden.dims(), encoded.hidden.dims());
        assert_eq!(
            zeros.pooled.as_ref().unwrap().dims(),
            encoded.pooled.unwrap().dims()
        );
        for tensor in [zeros.hidden, zeros.pooled.unwrap()] {
            assert!(
                tensor
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
                    .iter()
                    .all(|x| *x == 0.)
            );
        }
    }
    let model = family("sdxl");
    let one_prompt = model.text.encode(&[PROMPT], None).unwrap_err();
    assert_eq!(
        one_prompt.to_string(),
        "text_encoder: the number of prompts is 1, expected 2, one an encoder"
    );
    let two = model.text.encode(&[PROMPT, "another"], None).unwrap();
    let same = model.text.encode(&[PROMPT, PROMPT], None).unwrap();
    let first = |c: &Conditioning| {
        c.hidden
            .narrow(2, 0, 8)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    assert_eq!(first(&two), first(&same), "each encoder has its own prompt");
    assert!(common::difference(&two.pooled.unwrap(), &same.pooled.unwrap()) > 1e-3);
    let long = "word ".repeat(100);
    assert_eq!(
        model
            .text
            .encode(&[&long, &long], None)
            .unwrap()
            .truncated
            .len(),
        1,
        "said once"
    );
}

#[test]
fn an_embedded_model_equals_the_folder() {
    fn collect(folder: &Path, prefix: &str, files: &mut Vec<(&'static str, &'static [u8])>) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                collect(&path, &format!("{name}/"), files);
            } else {
                files.push((name.leak(), std::fs::read(&path).unwrap().leak()));
            }
        }
    }
    let mut files = Vec::new();
    collect(&golden("models/sd15"), "", &mut files);
    let model = EmbeddedModel {
        name: "tiny",
        files: files.leak(),
    };
    let embedded = load(&ModelSource::Embedded(model), &LoadOptions::default()).unwrap();
    let folder = family("sd15");
    assert_eq!(hidden(&embedded), hidden(&folder));
    assert_eq!(
        embedded.weights_sha256().unwrap(),
        folder.weights_sha256().unwrap()
    );

    let less: Vec<_> = model
        .files
        .iter()
        .filter(|(name, _)| *name != VAE)
        .copied()
        .collect();
    let error = load(
        &ModelSource::Embedded(EmbeddedModel {
            name: "tiny",
            files: less.leak(),
        }),
        &LoadOptions::default(),
    );
    assert!(matches!(error.unwrap_err(), Error::MissingFile { model, .. } if model == "tiny"));
}

#[test]
fn the_hash_is_that_of_the_unets_file() {
    let model = family("sd15");
    let bytes = std::fs::read(golden("models/sd15").join(UNET)).unwrap();
    let expected: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(model.weights_sha256().unwrap(), expected);
    assert_eq!(model.weights_sha256().unwrap(), expected, "the second time");
}

#[test]
fn the_fingerprint_is_that_of_all_weights() {
    let fingerprint = |folder: &Path| open(folder).unwrap().fingerprint().unwrap().to_owned();
    let original = golden("models/sd15");
    let same = copy();
    assert_eq!(fingerprint(same.path()), fingerprint(&original));
    for file in ["text_encoder/model.safetensors", UNET, VAE] {
        let other = copy();
        let path = other.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        // The last weight, a little.
        *bytes.iter_mut().last().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_ne!(fingerprint(other.path()), fingerprint(&original), "{file}");
    }
}

#[test]
fn known_hashes_are_not_computed_again() {
    let folder = copy();
    let source = ModelSource::Dir(folder.path().to_owned());
    let options = LoadOptions::default();
    let hash = |options: &LoadOptions| {
        load(&source, options)
            .unwrap()
            .weights_sha256()
            .unwrap()
            .to_owned()
    };
    let first = hash(&options);
    // Other bytes behind the same length, time and inode: only a hash that is kept stays the same.
    let path = folder.path().join(UNET);
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.iter_mut().last().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert_eq!(hash(&options), first);
    assert_ne!(hash(&LoadOptions::default()), first);
}

#[test]
fn weights_load_as_half_precision() {
    let source = ModelSource::Dir(golden("models/sd15"));
    let exact = hidden(&family("sd15"));
    for dtype in [DType::F16, DType::BF16] {
        let model = load(
            &source,
            &LoadOptions {
                dtype,
                ..Default::default()
            },
        )
        .unwrap();
        let rounded = Tensor::new(hidden(&model), &Device::Cpu).unwrap();
        let apart = common::difference(
            &rounded,
            &Tensor::new(exact.as_slice(), &Device::Cpu).unwrap(),
        );
        assert!(apart > 0. && apart < 0.1, "{dtype:?}: {apart}");
    }
    let error = load(
        &source,
        &LoadOptions {
            dtype: DType::U8,
            ..Default::default()
        },
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "weights cannot be kept as U8, expected F32, F16 or BF16"
    );
}

#[test]
fn shards_equal_the_whole() {
    let dir = copy();
    let whole = hidden(&open(dir.path()).unwrap());
    let folder = dir.path().join("text_encoder");
    let mut all: Vec<_> = tensors(&folder.join("model.safetensors"))
        .into_iter()
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut map = serde_json::Map::new();
    for (i, part) in all.chunks(all.len().div_ceil(3)).enumerate() {
        let name = format!("model-0000{}-of-00003.safetensors", i + 1);
        let part: Vec<_> = part
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.clone()))
            .collect();
        std::fs::write(folder.join(&name), safetensors(&part)).unwrap();
        map.extend(
            part.iter()
                .map(|(tensor, _)| ((*tensor).to_owned(), name.as_str().into())),
        );
    }
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = folder.join("model.safetensors.index.json");
    std::fs::write(
        &index,
        serde_json::json!({ "metadata": {}, "weight_map": map }).to_string(),
    )
    .unwrap();
    assert_eq!(hidden(&open(dir.path()).unwrap()), whole);

    std::fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("no text_encoder/model-00002-of-00003.safetensors"),
        "{error}"
    );
    for name in [
        "../unet/diffusion_pytorch_model.safetensors",
        "/etc/passwd",
        "",
        "..",
        "a\\b.safetensors",
        "model.bin",
    ] {
        std::fs::write(
            &index,
            serde_json::json!({ "weight_map": { "a": name } }).to_string(),
        )
        .unwrap();
        assert!(
            matches!(open(dir.path()).unwrap_err(), Error::Corrupt { .. }),
            "{name}"
        );
    }
    for text in ["", "{}", r#"{"weight_map": {}}"#, r#"{"weight_map": 1}"#] {
        std::fs::write(&index, text).unwrap();
        assert!(
            matches!(open(dir.path()).unwrap_err(), Error::Corrupt { .. }),
            "{text}"
        );
    }
}

#[test]
fn a_variant_is_preferred_and_named_when_it_is_missing() {
    let dir = copy();
    let scaled: Vec<_> = tensors(&dir.path().join("text_encoder/model.safetensors"))
        .into_iter()
        .collect();
    let scaled: Vec<_> = scaled
        .iter()
        .map(|(name, tensor)| (name.as_str(), (tensor * 0.5).unwrap()))
        .collect();
    std::fs::write(
        dir.path().join("text_encoder/model.fp16.safetensors"),
        safetensors(&scaled),
    )
    .unwrap();
    let options = LoadOptions {
        variant: Some("fp16".into()),
        ..Default::default()
    };
    let variant = load(&ModelSource::Dir(dir.path().into()), &options).unwrap();
    assert_ne!(hidden(&variant), hidden(&open(dir.path()).unwrap()));
    assert_eq!(
        variant.warnings,
        [("unet", UNET), ("vae", VAE)]
            .map(|(part, path)| format!("{part}: there is no `fp16` variant, {path} is used"))
    );
    for bad in ["", "../x", "a/b", ".."] {
        let options = LoadOptions {
            variant: Some(bad.into()),
            ..Default::default()
        };
        let result = load(&ModelSource::Dir(dir.path().into()), &options);
        assert!(matches!(result, Err(Error::Variant(_))), "{bad}");
    }
    // Without the plain file the variant serves everybody.
    std::fs::remove_file(dir.path().join("text_encoder/model.safetensors")).unwrap();
    assert_eq!(hidden(&open(dir.path()).unwrap()), hidden(&variant));
}

#[test]
fn unexpected_tensors_are_a_warning() {
    let dir = copy();
    let path = dir.path().join(VAE);
    let all: Vec<_> = tensors(&path).into_iter().collect();
    let mut all: Vec<_> = all
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    all.push((
        "surplus",
        Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(),
    ));
    std::fs::write(&path, safetensors(&all)).unwrap();
    assert_eq!(
        open(dir.path()).unwrap().warnings,
        ["vae: unexpected tensor `surplus` is not used"]
    );
}

#[test]
fn tensors_that_do_not_fit_are_listed() {
    let dir = copy();
    let path = dir.path().join(UNET);
    let mut all: Vec<_> = tensors(&path).into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let missing = all.remove(0).0;
    let wrong: Vec<_> = all[..2].iter().map(|(name, _)| name.clone()).collect();
    for (_, tensor) in &mut all[..2] {
        *tensor = Tensor::zeros((7, 7), DType::F32, &Device::Cpu).unwrap();
    }
    let all: Vec<_> = all
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    std::fs::write(&path, safetensors(&all)).unwrap();
    let Error::Tensors(report) = open(dir.path()).unwrap_err() else {
        panic!()
    };
    assert_eq!(report.component, Component::Unet);
    assert!(
        report.missing.keys().eq([&missing]) && report.mismatched.keys().eq(&wrong),
        "{report}"
    );
}

#[test]
fn a_tokenizer_larger_than_the_encoder_is_refused() {
    let dir = copy();
    let path = dir.path().join("tokenizer/added_tokens.json");
    std::fs::write(path, r#"{"<one-too-many>": 1000000}"#).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Tokenizer { folder, .. } if folder == "tokenizer"),
        "{error}"
    );
}

#[test]
fn tokenizers_of_different_lengths_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&golden("models/sdxl"), dir.path());
    let path = dir.path().join("tokenizer_2/tokenizer_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let shorter = config.replace("\"model_max_length\": 77", "\"model_max_length\": 60");
    assert_ne!(config, shorter);
    std::fs::write(&path, shorter).unwrap();
    assert_eq!(
        open(dir.path()).unwrap_err().to_string(),
        "tokenizer_2: it gives 60 ids, the first tokenizer 77"
    );
}

#[test]
fn a_model_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Model>();
    shared::<LoadOptions>();
}

#[test]
fn folders_that_are_no_model_say_what_they_lack() {
    let message = |spoil: &dyn Fn(&Path)| {
        let dir = copy();
        spoil(dir.path());
        let error = open(dir.path()).unwrap_err();
        (
            error
                .to_string()
                .replace(dir.path().to_str().unwrap(), "DIR"),
            error,
        )
    };
    let remove =
        |file: &'static str| move |dir: &Path| std::fs::remove_file(dir.join(file)).unwrap();
    let pickle = |dir: &Path| {
        std::fs::rename(dir.join(VAE), dir.join("vae/diffusion_pytorch_model.bin")).unwrap()
    };
    let (text, error) = message(&pickle);
    assert!(matches!(error, Error::Pickle { .. }));
    assert!(
        text.starts_with(
            "DIR: vae/diffusion_pytorch_model.bin is a Python pickle, which can run any code"
        ),
        "{text}"
    );

    let clip_pickle = |dir: &Path| {
        std::fs::rename(
            dir.join("text_encoder/model.safetensors"),
            dir.join("text_encoder/pytorch_model.bin"),
        )
        .unwrap()
    };
    assert!(matches!(message(&clip_pickle).1, Error::Pickle { .. }));

    let (text, _) = message(&remove(UNET));
    assert!(
        text.starts_with(&format!("DIR: no {UNET} or unet/")),
        "{text}"
    );
    let (text, error) = message(&remove("unet/config.json"));
    assert_eq!(text, "DIR: the configuration cannot be used");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("unet/config.json: "), "{source}");
    let (text, _) = message(&remove("model_index.json"));
    assert!(
        text.starts_with(
            "DIR: no model_index.json: a model is a folder in the layout of diffusers"
        ),
        "{text}"
    );
    let (text, _) = message(&|dir| {
        std::fs::remove_file(dir.join("model_index.json")).unwrap();
        std::fs::write(dir.join("v1-5.ckpt"), "").unwrap();
    });
    assert!(
        text.starts_with("DIR: v1-5.ckpt is a Python pickle"),
        "{text}"
    );

    let (text, error) =
        message(&|dir| std::fs::write(dir.join("unet/config.json"), [0xff]).unwrap());
    assert_eq!(text, "cannot read DIR/unet/config.json");
    assert!(matches!(error, Error::Read { .. }));
    let truncated = |dir: &Path| {
        let bytes = std::fs::read(dir.join(UNET)).unwrap();
        std::fs::write(dir.join(UNET), &bytes[..bytes.len() - 1]).unwrap();
    };
    assert!(message(&truncated).0.starts_with(&format!(
        "unet: DIR/{UNET} is not a valid safetensors file: "
    )));
    assert!(matches!(
        open(Path::new("/no/such/folder")).unwrap_err(),
        Error::Read { .. }
    ));
}
