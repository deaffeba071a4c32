//! The line of settings under a picture's prompt, and the texts of a PNG file that it is kept in.

use std::io::Cursor;

use png::{Decoder, Limits};
use serde_json::{Map, Value};

/// Most bytes that the texts of one file may take when they are unpacked.
const MAX_TEXT: usize = 4 << 20;
/// Most bytes that reading a file may take.
const MAX_MEMORY: usize = 64 << 20;
/// The text with the settings.
pub(super) const PARAMETERS: &str = "parameters";

/// The texts of a PNG file that come before its pixels, with their keywords. `None`: it is no PNG file.
pub(super) fn texts(file: &[u8]) -> Option<Vec<(String, String)>> {
    let decoder = Decoder::new_with_limits(Cursor::new(file), Limits { bytes: MAX_MEMORY });
    let reader = decoder.read_info().ok()?;
    let info = reader.info();
    let mut texts: Vec<_> = info
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()))
        .collect();
    let mut left = MAX_TEXT;
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        if chunk.decompress_text_with_limit(left).is_ok()
            && let Ok(text) = chunk.get_text()
        {
            left = left.saturating_sub(text.len());
            texts.push((chunk.keyword, text));
        }
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        if chunk.decompress_text_with_limit(left).is_ok()
            && let Ok(text) = chunk.get_text()
        {
            left = left.saturating_sub(text.len());
            texts.push((chunk.keyword, text));
        }
    }
    Some(texts)
}

/// The settings of a `parameters` text by name, all as text, with `Prompt`, `Negative prompt`, and `Size-1` and `Size-2`
/// for the two sides, as the web UI reads it.
///
/// The last line holds the settings, `Steps: 20, Sampler: Euler a, ...`; a value with a comma, colon or quote is a JSON
/// string. What stands before it is the prompt, then the negative one.
pub(super) fn parse(text: &str) -> Map<String, Value> {
    let text = text.trim();
    let (prompts, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let (prompts, settings) = match settings(last) {
        Some(settings) => (prompts, settings),
        None => (text, Vec::new()),
    };
    let (prompt, negative) = match prompts.split_once("Negative prompt:") {
        Some((prompt, negative)) => (prompt.trim(), negative.trim()),
        None => (prompts.trim(), ""),
    };
    let mut parsed = Map::new();
    parsed.insert("Prompt".into(), prompt.into());
    parsed.insert("Negative prompt".into(), negative.into());
    for (name, value) in settings {
        let sides = value.split_once('x').filter(|(width, height)| {
            [width, height]
                .iter()
                .all(|side| !side.is_empty() && side.bytes().all(|digit| digit.is_ascii_digit()))
        });
        match sides {
            Some((width, height)) => {
                parsed.insert(format!("{name}-1"), width.into());
                parsed.insert(format!("{name}-2"), height.into());
            }
            None => {
                parsed.insert(name, value.into());
            }
        }
    }
    parsed
}

/// `Name: value, Name: "quoted, value"`; `None` for a line that is something else, or has fewer than three settings, as a
/// prompt may.
fn settings(line: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (name, after) = rest.split_once(':')?;
        if name.trim().is_empty() {
            return None;
        }
        let after = after.trim_start();
        let (value, next) = if after.starts_with('"') {
            let mut json = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = json.next()?.ok()?;
            (value, after.get(json.byte_offset()..)?)
        } else {
            let end = after.find(',').unwrap_or(after.len());
            (after[..end].trim().to_owned(), &after[end..])
        };
        settings.push((name.trim().to_owned(), value));
        rest = next.trim_start_matches([',', ' ']);
    }
    (settings.len() >= 3).then_some(settings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_come_back_by_name() {
        let text = "a cat, 1:2\nsecond line\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Size: 512x768, Model: \"a, \\\"b\\\": c\", Seed: 1";
        assert_eq!(
            Value::Object(parse(text)),
            json!({
                "Prompt": "a cat, 1:2\nsecond line", "Negative prompt": "dog", "Steps": "20", "Sampler": "Euler a",
                "Size-1": "512", "Size-2": "768", "Model": "a, \"b\": c", "Seed": "1",
            })
        );
    }

    #[test]
    fn a_text_without_settings_is_a_prompt() {
        for text in [
            "",
            "a cat",
            "a: b",
            "portrait: of a cat, \"quoted",
            "a\nb: \"x",
            ":,:,:\n",
        ] {
            assert_eq!(parse(text)["Prompt"], text.trim(), "{text}");
        }
    }

    #[test]
    fn texts_of_the_workers_pictures_are_found() {
        let image = image::RgbImage::new(2, 2);
        let file = crate::png::encode(
            &image,
            &[("parameters", "caf\u{e9}"), ("sd", "{\"\u{8d64}\": 1}")],
        )
        .unwrap();
        let found = texts(&file).unwrap();
        assert_eq!(
            found,
            [
                ("parameters".into(), "caf\u{e9}".into()),
                ("sd".into(), "{\"\u{8d64}\": 1}".into())
            ]
        );
        assert_eq!(texts(b"no picture"), None);
        assert_eq!(texts(&file[..20]), None);
    }
}
