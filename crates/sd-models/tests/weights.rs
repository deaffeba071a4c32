//! Weights: what is read from good files, and what is refused in bad ones.

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{raw_safetensors, safetensors};
use half::{bf16, f16};
use proptest::prelude::*;
use sd_models::{Component, Error, Mismatch, Weights};

const CPU: Device = Device::Cpu;

fn arange(shape: &[usize]) -> Tensor {
    let elements: usize = shape.iter().product();
    Tensor::arange(0f32, elements as f32, &CPU)
        .unwrap()
        .reshape(shape)
        .unwrap()
}

fn weights(component: Component, tensors: &[(&str, Tensor)]) -> Weights {
    Weights::from_bytes(component, "test", safetensors(tensors)).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn every_storage_type_converts_to_every_other() {
    let numbers = [1.0f32, -2.5, 0.15625, 3.0e-5, 60000.0];
    let tensor = Tensor::new(&numbers, &CPU).unwrap();
    for stored in [DType::F32, DType::F16, DType::BF16] {
        let weights = weights(Component::Unet, &[("a", tensor.to_dtype(stored).unwrap())]);
        for asked in [DType::F32, DType::F16, DType::BF16] {
            let loaded = weights.var_builder(asked, &CPU).get(5, "a").unwrap();
            assert_eq!(loaded.dtype(), asked);
            let rounded = |x: f32, dtype| match dtype {
                DType::F16 => f16::from_f32(x).to_f32(),
                DType::BF16 => bf16::from_f32(x).to_f32(),
                _ => x,
            };
            let expected = numbers.map(|x| rounded(rounded(x, stored), asked));
            assert_eq!(values(&loaded), expected, "{stored:?} as {asked:?}");
        }
    }
}

#[test]
fn mapped_shards_are_one_set() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["1", "2"].map(|name| dir.path().join(name));
    std::fs::write(&paths[0], safetensors(&[("x.a", arange(&[2, 3]))])).unwrap();
    std::fs::write(&paths[1], safetensors(&[("x.b", arange(&[4]))])).unwrap();
    let weights = Weights::open(Component::Unet, &paths).unwrap();
    let vb = weights.var_builder(DType::F32, &CPU).pp("x");
    assert_eq!(values(&vb.get((2, 3), "a").unwrap()), values(&arange(&[6])));
    assert_eq!(values(&vb.get(4, "b").unwrap()), values(&arange(&[4])));
    let report = weights.finish().unwrap();
    assert!(report.unexpected.is_empty() && report.warning().is_none());

    let twice = Weights::open(Component::Unet, &[&paths[0], &paths[0]]).unwrap_err();
    assert!(
        matches!(&twice, Error::Corrupt { reason, .. } if reason.contains("`x.a`")),
        "{twice}"
    );
}

#[test]
fn one_report_names_everything_that_does_not_fit() {
    let weights = weights(
        Component::Vae,
        &[
            ("a.weight", arange(&[2, 3])),
            ("b.weight", arange(&[4])),
            ("c.weight", arange(&[2]).to_dtype(DType::I64).unwrap()),
            ("d.weight", arange(&[2])),
            ("e.weight", arange(&[2])),
        ],
    );
    let vb = weights.var_builder(DType::F32, &CPU);
    for (layer, shape) in [
        ("a", vec![3, 2]),
        ("b", vec![4]),
        ("c", vec![2]),
        ("f", vec![1, 5]),
    ] {
        let tensor = vb.pp(layer).get(shape.as_slice(), "weight").unwrap();
        assert_eq!(
            tensor.dims(),
            shape,
            "the constructor goes on with a tensor of the right shape"
        );
        assert_eq!(values(&tensor).iter().any(|x| *x != 0.), layer == "b");
    }
    let error = weights.finish().unwrap_err();
    let Error::Tensors(report) = &error else {
        panic!("{error}")
    };
    assert_eq!(report.component, Component::Vae);
    assert_eq!(
        report.missing.clone().into_iter().collect::<Vec<_>>(),
        [("f.weight".to_owned(), vec![1, 5])]
    );
    let mismatched: Vec<_> = report
        .mismatched
        .iter()
        .map(|(name, m)| (name.as_str(), m.clone()))
        .collect();
    let a = Mismatch::Shape {
        found: vec![2, 3],
        expected: vec![3, 2],
    };
    assert_eq!(
        mismatched,
        [
            ("a.weight", a),
            (
                "c.weight",
                Mismatch::Dtype {
                    found: "I64".into()
                }
            )
        ]
    );
    assert!(report.unexpected.iter().eq(["d.weight", "e.weight"]));
    assert_eq!(
        error.to_string(),
        "vae: the weights do not fit the configuration\
         \n  `f.weight` is missing, expected [1, 5]\
         \n  `a.weight` is [2, 3], expected [3, 2]\
         \n  `c.weight` is of type I64, expected F32, F16 or BF16"
    );
    assert_eq!(
        report.warning().unwrap(),
        "vae: unexpected tensors `d.weight` and 1 more are not used"
    );
}

#[test]
fn a_report_spells_out_ten_tensors() {
    let report = |missing: usize, wrong: usize| {
        let names: Vec<_> = (0..wrong).map(|i| format!("w{i}")).collect();
        let stored: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), arange(&[2])))
            .collect();
        let weights = Weights::from_bytes(Component::Vae, "vae", safetensors(&stored)).unwrap();
        let vb = weights.var_builder(DType::F32, &CPU);
        let lost = (0..missing).map(|i| format!("m{i}"));
        for name in names.iter().cloned().chain(lost) {
            vb.get(1, &name).unwrap();
        }
        weights.finish().unwrap_err().to_string()
    };
    let text = report(8, 8);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 12, "{text}");
    assert_eq!(lines[8], "  `m7` is missing, expected [1]");
    assert_eq!(lines[10], "  `w1` is [2], expected [1]");
    assert_eq!(lines[11], "  and 6 more");
    assert_eq!(report(8, 2).lines().count(), 11);
    assert!(report(12, 1).ends_with("\n  and 3 more"));
}

#[test]
fn old_names_and_shapes_are_understood() {
    let clip = |prefix: &str| {
        let name = |name: &str| format!("{prefix}{name}");
        let (norm, ids) = (
            name("final_layer_norm.bias"),
            name("embeddings.position_ids"),
        );
        let ids_tensor = arange(&[1, 77]).to_dtype(DType::I64).unwrap();
        weights(
            Component::TextEncoder,
            &[
                (&norm, arange(&[4])),
                (&ids, ids_tensor),
                ("text_projection.weight", arange(&[2, 4])),
            ],
        )
    };
    for prefix in ["", "text_model."] {
        let weights = clip(prefix);
        let vb = weights.var_builder(DType::F32, &CPU);
        assert_eq!(
            values(&vb.pp("final_layer_norm").get(4, "bias").unwrap()),
            [0., 1., 2., 3.]
        );
        assert_eq!(
            vb.get((2, 4), "text_projection.weight").unwrap().dims(),
            [2, 4]
        );
        assert!(
            weights.finish().unwrap().unexpected.is_empty(),
            "position ids are no parameter"
        );
    }

    let layer = "encoder.mid_block.attentions.0";
    let old = ["query", "key", "value", "proj_attn"].map(|name| format!("{layer}.{name}.weight"));
    let shapes: [&[usize]; 4] = [&[3, 3], &[3, 3, 1], &[3, 3, 1, 1], &[3, 3, 1, 1]];
    let tensors: Vec<_> = old
        .iter()
        .zip(shapes)
        .map(|(name, shape)| (name.as_str(), arange(shape)))
        .collect();
    let weights = weights(Component::Vae, &tensors);
    let vb = weights.var_builder(DType::F32, &CPU).pp(layer);
    for name in ["to_q", "to_k", "to_v", "to_out.0"] {
        let tensor = vb.pp(name).get((3, 3), "weight").unwrap();
        assert_eq!(
            (tensor.dims(), values(&tensor)),
            ([3, 3].as_slice(), values(&arange(&[9]))),
            "{name}"
        );
    }
    weights.finish().unwrap();
}

#[test]
fn one_tensor_under_two_names_is_refused() {
    let bytes = safetensors(&[("text_model.a", arange(&[1])), ("a", arange(&[1]))]);
    let error = Weights::from_bytes(Component::TextEncoder, "test", bytes).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_configuration_of_absurd_size_ends_in_a_report() {
    for shape in [
        vec![usize::MAX, usize::MAX],
        vec![1 << 40],
        vec![1 << 20, 1 << 20],
    ] {
        let weights = weights(Component::Unet, &[]);
        weights
            .var_builder(DType::F32, &CPU)
            .get(shape, "a")
            .unwrap_err();
        let Error::Tensors(report) = weights.finish().unwrap_err() else {
            panic!()
        };
        assert!(report.stopped && report.missing.contains_key("a"));
    }
    let weights = weights(Component::Unet, &[]);
    let vb = weights.var_builder(DType::F32, &CPU);
    let layers = (0..)
        .take_while(|i| vb.get(1, &format!("layer.{i}")).is_ok())
        .count();
    assert!(
        layers < 100_000,
        "a configuration of {layers} layers was tried"
    );
}

#[test]
fn zero_sized_tensors_are_wrong_shaped() {
    let weights = weights(
        Component::Unet,
        &[("a", Tensor::zeros((0, 4), DType::F32, &CPU).unwrap())],
    );
    weights
        .var_builder(DType::F32, &CPU)
        .get((2, 4), "a")
        .unwrap();
    assert!(
        matches!(weights.finish().unwrap_err(), Error::Tensors(report) if report.mismatched.contains_key("a"))
    );
}

/// Loads everything that a file declares.
fn load_all(bytes: Vec<u8>) -> Result<(), Error> {
    let weights = Weights::from_bytes(Component::Unet, "test", bytes)?;
    let vb = weights.var_builder(DType::F32, &CPU);
    for name in ["a", "b"] {
        vb.get((2, 2), name).unwrap();
    }
    weights.finish().map(drop)
}

#[test]
fn hostile_headers_are_errors() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let file = |tensors: &str, data: usize| {
        raw_safetensors(format!("{{{tensors}}}").as_bytes(), &vec![0; data])
    };
    let good = tensor("F32", "[2,2]", "[0,16]");
    let b = r#""b":{"dtype":"F32","shape":[2,2],"data_offsets":"#;
    load_all(file(&format!("{good},{b}[16,32]}}"), 32)).unwrap();

    let chain: Vec<_> = (0u64..8)
        .map(|i| {
            let step = (1u64 << 61) - 1;
            format!(
                r#""{i}":{{"dtype":"U8","shape":[{step}],"data_offsets":[{},{}]}}"#,
                i * step,
                (i + 1) * step
            )
        })
        .collect();
    let length = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let bad = [
        ("empty", vec![]),
        ("shorter than its length", vec![0; 7]),
        ("no header", 0u64.to_le_bytes().to_vec()),
        ("length 2^64 - 1", length(u64::MAX)),
        ("length 2^63", length(1 << 63)),
        ("length 100 MB", length(100_000_000)),
        ("length one more than there is", length(3)),
        ("length beyond the format", length(100_000_001)),
        ("no JSON", raw_safetensors(b"{", b"")),
        ("no object", raw_safetensors(b"[]", b"")),
        ("not UTF-8", raw_safetensors(b"{\"\xff\":1}", b"")),
        ("not UTF-8 at all", raw_safetensors(&[0xff; 64], b"")),
        ("deep", raw_safetensors(&b"[".repeat(1 << 20), b"")),
        (
            "deep value",
            raw_safetensors(&[&b"{\"a\":"[..], &b"[".repeat(1 << 20)].concat(), b""),
        ),
        ("unknown type", file(&tensor("F99", "[2,2]", "[0,16]"), 16)),
        (
            "negative shape",
            file(&tensor("F32", "[-2,2]", "[0,16]"), 16),
        ),
        (
            "huge shape",
            file(&tensor("F32", "[4294967296,4294967296]", "[0,16]"), 16),
        ),
        (
            "shape beyond 64 bits",
            file(&tensor("F32", "[18446744073709551616]", "[0,16]"), 16),
        ),
        (
            "shape of 2^62 floats",
            file(&tensor("F32", "[4611686018427387904]", "[0,0]"), 0),
        ),
        (
            "shape larger than the data",
            file(&tensor("F32", "[2,3]", "[0,16]"), 16),
        ),
        (
            "shape smaller than the data",
            file(&tensor("F32", "[2]", "[0,16]"), 16),
        ),
        (
            "reversed offsets",
            file(&tensor("F32", "[2,2]", "[16,0]"), 16),
        ),
        (
            "offsets beyond the file",
            file(&tensor("F32", "[2,2]", "[16,32]"), 16),
        ),
        (
            "huge offsets",
            file(
                &tensor(
                    "F32",
                    "[2,2]",
                    "[18446744073709551600,18446744073709551615]",
                ),
                16,
            ),
        ),
        ("offsets that add up to 2^64", file(&chain.join(","), 0)),
        ("truncated data", file(&good, 15)),
        ("more data", file(&good, 17)),
        ("overlap", file(&format!("{good},{b}[0,16]}}"), 16)),
        ("half overlap", file(&format!("{good},{b}[8,24]}}"), 24)),
        ("hole", file(&format!("{good},{b}[20,36]}}"), 36)),
        (
            "missing keys",
            raw_safetensors(br#"{"a":{"dtype":"F32"}}"#, b""),
        ),
    ];
    for (what, bytes) in bad {
        match load_all(bytes) {
            Err(Error::Corrupt { file, .. }) => assert_eq!(file, "test"),
            other => panic!("{what}: {other:?}"),
        }
    }
    // A sound file of types that are no weights.
    for dtype in ["I32", "F8_E4M3", "BOOL"] {
        let bytes = if dtype == "I32" { 16 } else { 4 };
        let result = load_all(file(
            &tensor(dtype, "[2,2]", &format!("[0,{bytes}]")),
            bytes,
        ));
        assert!(
            matches!(result, Err(Error::Tensors(_))),
            "{dtype}: {result:?}"
        );
    }
}

#[test]
fn what_is_no_readable_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let open = |path: &Path| Weights::open(Component::Unet, &[path]).unwrap_err();
    assert!(matches!(open(dir.path()), Error::Read { .. }));
    assert!(matches!(
        open(&dir.path().join("absent")),
        Error::Read { .. }
    ));
    assert!(matches!(open(&empty), Error::Corrupt { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A file with a few bytes changed, removed or added either loads or is refused.
    #[test]
    fn damaged_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        more in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut bytes = safetensors(&[("a", arange(&[2, 2])), ("b", arange(&[2, 2]))]);
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        bytes.extend(more);
        let _ = load_all(bytes);
    }
}
