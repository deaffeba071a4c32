//! JSON text to structs, with errors that name file, key and value.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Longest value an error shows, in characters.
const SHOWN: usize = 80;

/// A JSON file of a model, by its path in the model's folder; all errors name it.
#[derive(Clone, Copy)]
pub(crate) struct File<'a>(pub(crate) &'a str);

impl File<'_> {
    /// The top-level object of the text. The `NaN` and `Infinity` that Python writes become null.
    pub(crate) fn object(self, text: &str) -> Result<Map<String, Value>> {
        serde_json::from_str(text)
            .or_else(|error| serde_json::from_str(&without_python_numbers(text)).map_err(|_| error))
            .map_err(|error| self.not_json(error))
    }

    /// An object as a struct whose every field has a default; unknown keys are ignored.
    pub(crate) fn read<T: DeserializeOwned>(self, map: Map<String, Value>) -> Result<T> {
        let culprits = map.clone();
        serde_json::from_value(Value::Object(map)).map_err(|error| {
            // serde's message names no key: the one that fails on its own is meant.
            for (key, value) in culprits {
                let alone = Map::from_iter([(key.clone(), value.clone())]);
                if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
                    return self.invalid(&key, value, error.to_string());
                }
            }
            self.not_json(error)
        })
    }

    /// Refuses a key whose value is none of those that `allowed` lists for it.
    pub(crate) fn only(self, map: &Map<String, Value>, allowed: &[(&str, &[Value])]) -> Result<()> {
        for (key, values) in allowed {
            if let Some(value) = map.get(*key)
                && !values.iter().any(|allowed| same(allowed, value))
            {
                let list: Vec<_> = values.iter().map(Value::to_string).collect();
                return Err(self.invalid(
                    key,
                    value,
                    format!("only {} is supported", list.join(" or ")),
                ));
            }
        }
        Ok(())
    }

    /// The error for a value, which it shows as JSON.
    pub(crate) fn invalid(
        self,
        key: &str,
        value: impl Serialize,
        expected: impl Into<String>,
    ) -> Error {
        let mut value = serde_json::to_string(&value).unwrap_or_default();
        if let Some((at, _)) = value.char_indices().nth(SHOWN) {
            value.truncate(at);
            value.push_str("...");
        }
        Error::Value {
            file: self.0.to_owned(),
            key: key.to_owned(),
            value,
            expected: expected.into(),
        }
    }

    fn not_json(self, source: serde_json::Error) -> Error {
        Error::Json {
            file: self.0.to_owned(),
            source,
        }
    }
}

/// For flags that published files set to null, which Python takes for false.
pub(crate) fn null_is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(false))
}

/// Equality that takes 1 and 1.0 for the same number, as Python does.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Python's numbers that JSON has not, outside of strings, replaced by null.
fn without_python_numbers(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(first) = rest.chars().next() {
        let number = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|number| rest.starts_with(number));
        let taken = match number {
            Some(number) if !in_string => {
                plain.push_str("null");
                number.len()
            }
            _ => {
                // A backslash takes the next character with it, so that an escaped quote does not
                // end the string.
                let escaped = if in_string && first == '\\' {
                    rest.chars().nth(1)
                } else {
                    None
                };
                in_string ^= first == '"';
                plain.push(first);
                plain.extend(escaped);
                first.len_utf8() + escaped.map_or(0, char::len_utf8)
            }
        };
        rest = &rest[taken..];
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_numbers_become_null_outside_of_strings_only() {
        let text = r#"{"a": -Infinity, "b": [NaN, Infinity], "c": "NaN \" NaN", "NaN": "\\"}"#;
        let map = File("f").object(text).unwrap();
        let expected = r#"{"a": null, "b": [null, null], "c": "NaN \" NaN", "NaN": "\\"}"#;
        assert_eq!(
            Value::Object(map),
            serde_json::from_str::<Value>(expected).unwrap()
        );
    }

    #[test]
    fn a_long_value_is_shortened() {
        let Error::Value { value, .. } = File("f").invalid("k", "é".repeat(500), "expected")
        else {
            panic!()
        };
        assert_eq!(value.chars().count(), SHOWN + 3);
    }
}
