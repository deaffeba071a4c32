//! The tokenizer against transformers 5.

mod common;

use std::path::{Path, PathBuf};

use common::{golden, json};
use proptest::prelude::*;
use sd_models::text::Tokenizer;
use sd_models::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// The real CLIP vocabulary with these special-token files.
fn clip(config: &Value, special: &Value) -> Tokenizer {
    let folder = golden("tokenizer");
    Tokenizer::from_files("tokenizer", 77, |name| {
        let read = |name: &str| Ok(Some(std::fs::read_to_string(folder.join(name)).unwrap()));
        match name {
            "vocab.json" => read("clip-vocab.json"),
            "merges.txt" => read("clip-merges.txt"),
            "tokenizer_config.json" => Ok(Some(config.to_string())),
            "special_tokens_map.json" => Ok(Some(special.to_string())),
            _ => Ok(None),
        }
    })
    .unwrap()
}

fn of_folder(folder: &Path) -> Result<Tokenizer> {
    Tokenizer::from_files("tokenizer", 77, |name| {
        Ok(std::fs::read_to_string(folder.join(name)).ok())
    })
}

/// A pair of special-token files as published repositories have them, and what they make of some texts.
#[derive(Deserialize)]
struct Style {
    tokenizer_config: Value,
    special_tokens_map: Value,
    cases: Vec<StyleCase>,
}

#[derive(Deserialize)]
struct StyleCase {
    text: String,
    ids: Vec<u32>,
}

impl Style {
    fn tokenizer(&self) -> Tokenizer {
        clip(&self.tokenizer_config, &self.special_tokens_map)
    }
}

#[test]
fn ids_equal_those_of_transformers() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids_pad_eos: Vec<u32>,
        ids_pad_bang: Vec<u32>,
    }
    let cases: Vec<Case> = json(&golden("tokenizer/cases.json"));
    let styles: Vec<Style> = json(&golden("tokenizer/styles.json"));
    assert!(cases.len() >= 50);
    // The cases are of XL's style, with a table of added tokens.
    let padded = |pad: &str| {
        let of_style = |style: &&Style| {
            style.tokenizer_config.get("added_tokens_decoder").is_some()
                && style.tokenizer_config["pad_token"] == pad
        };
        styles.iter().find(of_style).unwrap().tokenizer()
    };
    let (eos, bang) = (padded("<|endoftext|>"), padded("!"));
    for Case {
        text,
        ids_pad_eos,
        ids_pad_bang,
    } in cases
    {
        assert_eq!(eos.encode(&text).unwrap().ids, ids_pad_eos, "{text:?}");
        assert_eq!(bang.encode(&text).unwrap().ids, ids_pad_bang, "{text:?}");
    }
}

#[test]
fn special_token_files_are_read_as_transformers_does() {
    let styles: Vec<Style> = json(&golden("tokenizer/styles.json"));
    assert!(styles.len() >= 6);
    for style in styles {
        let tokenizer = style.tokenizer();
        for StyleCase { text, ids } in &style.cases {
            assert_eq!(
                tokenizer.encode(text).unwrap().ids,
                *ids,
                "{text:?} with {}",
                style.tokenizer_config
            );
        }
    }
}

#[test]
fn tokenizer_json_and_vocabulary_files_are_equivalent() {
    let folder = golden("models/sd15/tokenizer");
    let from_files = of_folder(&folder).unwrap();
    let vocab: Value = json(&folder.join("vocab.json"));
    let merges = std::fs::read_to_string(folder.join("merges.txt")).unwrap();
    let lines: Vec<_> = merges.lines().skip(1).collect();
    let pairs: Vec<Vec<_>> = lines.iter().map(|line| line.split(' ').collect()).collect();
    for merges in [json!(lines), json!(pairs)] {
        let whole = json!({ "model": { "type": "BPE", "vocab": vocab, "merges": merges }, "added_tokens": [] });
        let from_json = Tokenizer::from_files("tokenizer", 77, |name| match name {
            "tokenizer.json" => Ok(Some(whole.to_string())),
            "tokenizer_config.json" => Ok(Some(r#"{"model_max_length": 77}"#.to_owned())),
            _ => Ok(None),
        })
        .unwrap();
        for text in [
            "",
            "A photo of a cat, 3 dogs!",
            "¡gatos! 猫 ".repeat(30).as_str(),
        ] {
            assert_eq!(
                from_json.encode(text).unwrap(),
                from_files.encode(text).unwrap()
            );
        }
    }
}

#[test]
fn what_is_cut_off_is_reported_in_the_users_words() {
    let tokenizer = clip(&json!({}), &json!({}));
    let words = |n: usize| vec!["cat"; n].join(" ");
    for n in [0, 1, 74, 75] {
        let tokens = tokenizer.encode(&words(n)).unwrap();
        assert_eq!(
            (tokens.ids.len(), tokens.truncated),
            (77, None),
            "{n} words"
        );
    }
    let long = format!("{} \u{c9}  and Two MORE", words(74));
    let tokens = tokenizer.encode(&long).unwrap();
    assert_eq!(tokens.truncated.as_deref(), Some("and Two MORE"));
    assert_eq!((tokens.ids[0], tokens.ids[76]), (49406, 49407));
    // The cut is inside a character of several tokens.
    let emoji = format!("{} \u{1f9a9}\u{1f9a9}", words(74));
    assert!(
        tokenizer
            .encode(&emoji)
            .unwrap()
            .truncated
            .is_some_and(|cut| "\u{1f9a9}\u{1f9a9}".ends_with(&cut))
    );
}

#[test]
fn the_encoder_limits_the_length() {
    let folder = golden("models/sd15/tokenizer");
    let read = |limit: &'static str| {
        let folder = folder.clone();
        move |name: &str| match name {
            "tokenizer_config.json" => Ok(Some(format!(r#"{{"model_max_length": {limit}}}"#))),
            _ => Ok(std::fs::read_to_string(folder.join(name)).ok()),
        }
    };
    let length = |limit, positions| {
        Tokenizer::from_files("t", positions, read(limit)).map(|t| t.max_length())
    };
    assert_eq!(length("77", 32).unwrap(), 32);
    assert_eq!(length("16", 77).unwrap(), 16);
    assert_eq!(length("1e30", 77).unwrap(), 77);
    for limit in ["1", "0", "-5"] {
        assert!(
            matches!(length(limit, 77), Err(Error::Tokenizer { .. })),
            "{limit}"
        );
    }
}

#[test]
fn bad_files_are_errors() {
    let good: PathBuf = golden("models/sd15/tokenizer");
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str, text: &str| {
        common::copy_dir(&good, dir.path());
        std::fs::write(dir.path().join(name), text).unwrap();
        let error = of_folder(dir.path()).map(drop).expect_err(text);
        std::fs::remove_file(dir.path().join(name)).unwrap();
        assert!(
            matches!(error, Error::Tokenizer { .. }),
            "{name} {text}: {error}"
        );
    };
    with("vocab.json", "{");
    with("vocab.json", r#"{"a": -1}"#);
    with("vocab.json", r#"{"a": 4294967296}"#);
    with("vocab.json", r#"{"a": 0}"#);
    with("merges.txt", "#version: 0.2\na b c\n");
    with("merges.txt", "#version: 0.2\nnothere nothere\n");
    with("tokenizer_config.json", r#"{"mask_token": 5}"#);
    with("tokenizer_config.json", r#"{"model_max_length": "many"}"#);
    with(
        "tokenizer_config.json",
        r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#,
    );
    with(
        "tokenizer_config.json",
        r#"{"added_tokens_decoder": {"7": {"content": " ", "lstrip": true}}}"#,
    );
    with("special_tokens_map.json", r#"{"pad_token": ["!"]}"#);
    with(
        "tokenizer.json",
        r#"{"model": {"type": "WordPiece", "vocab": {}}}"#,
    );
    with(
        "tokenizer.json",
        r#"{"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#,
    );
    std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
    let error = of_folder(dir.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokenizer: no tokenizer.json, and no merges.txt"
    );
}

/// Text of few characters, so that tokens overlap: spaces, and letters that normalising joins and parts.
fn overlapping_text(parts: usize) -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a", "A", "b", " ", "\n", "\u{301}", "\u{130}", "\u{e9}",
    ]);
    prop::collection::vec(part, 0..parts).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_added_tokens_encode_any_text_or_are_refused(
        tokens in prop::collection::btree_map(0_u32..1200, (overlapping_text(4), any::<[bool; 5]>()), 1..6),
        texts in prop::collection::vec(overlapping_text(12), 5),
    ) {
        let tokens: serde_json::Map<_, _> = tokens
            .into_iter()
            .map(|(id, (content, [single_word, lstrip, rstrip, normalized, special]))| {
                let token = json!({
                    "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
                    "normalized": normalized, "special": special,
                });
                (id.to_string(), token)
            })
            .collect();
        let config = json!({ "added_tokens_decoder": tokens }).to_string();
        let folder = golden("models/sd15/tokenizer");
        let tokenizer = Tokenizer::from_files("tokenizer", 77, |name| match name {
            "tokenizer_config.json" => Ok(Some(config.clone())),
            _ => Ok(std::fs::read_to_string(folder.join(name)).ok()),
        });
        if let Ok(tokenizer) = tokenizer {
            for text in texts {
                prop_assert_eq!(tokenizer.encode(&text).unwrap().ids.len(), 77);
            }
        }
    }
}
