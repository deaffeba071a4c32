//! Values as the web UI's clients write them: numbers and booleans may be text, whole numbers may have a fraction of zero,
//! and `null` is nothing.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, SchemaType, Type},
    },
};

use crate::http::field::shown;

/// A whole number.
pub(super) fn integer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    read(from, "a whole number", |value| match value {
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().and_then(without_fraction)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

/// A finite number.
pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    let parse = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    read(from, "a number", |value| {
        parse(value).filter(|number| number.is_finite())
    })
}

/// A boolean; also 0 and 1.
pub(super) fn boolean<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    read(from, "true or false", |value| {
        let [no, yes] = BOOLEANS;
        [(no, false), (yes, true)]
            .into_iter()
            .find(|(spellings, _)| spellings().contains(value))
            .map(|(_, meaning)| meaning)
    })
}

/// The spellings of false and of true.
const BOOLEANS: [fn() -> [Value; 5]; 2] = [
    || {
        [
            json!(false),
            json!(0),
            json!("0"),
            json!("false"),
            json!("False"),
        ]
    },
    || {
        [
            json!(true),
            json!(1),
            json!("1"),
            json!("true"),
            json!("True"),
        ]
    },
];

/// What [`integer`] reads, in the API's description.
pub(super) struct Integer;

/// What [`number`] reads, in the API's description.
pub(super) struct Number;

/// What [`boolean`] reads, in the API's description.
pub(super) struct Boolean;

impl ToSchema for Integer {
    fn name() -> Cow<'static, str> {
        "A1111Integer".into()
    }
}

impl ToSchema for Number {
    fn name() -> Cow<'static, str> {
        "A1111Number".into()
    }
}

impl ToSchema for Boolean {
    fn name() -> Cow<'static, str> {
        "A1111Boolean".into()
    }
}

impl PartialSchema for Integer {
    fn schema() -> RefOr<Schema> {
        text_or(Type::Integer, "^[+-]?[0-9]{1,18}$")
    }
}

impl PartialSchema for Number {
    fn schema() -> RefOr<Schema> {
        let pattern = r"^[+-]?([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?$";
        text_or(Type::Number, pattern)
    }
}

impl PartialSchema for Boolean {
    fn schema() -> RefOr<Schema> {
        let spellings = BOOLEANS.into_iter().flat_map(|spellings| spellings());
        ObjectBuilder::new()
            .schema_type(SchemaType::AnyValue)
            .enum_values(Some(spellings.chain([Value::Null])))
            .into()
    }
}

/// A number, a text of this pattern, or null.
fn text_or(number: Type, pattern: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(vec![number, Type::String, Type::Null]))
        .pattern(Some(pattern))
        .into()
}

fn read<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &str,
    parse: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, D::Error> {
    let Some(value) = Option::<Value>::deserialize(from)? else {
        return Ok(None);
    };
    parse(&value).map(Some).ok_or_else(|| {
        let found = shown(&value.to_string());
        D::Error::custom(format!("got {found}, expected {expected}"))
    })
}

fn without_fraction(number: f64) -> Option<i64> {
    // Every whole number up to this one is a f64 of its own.
    const EXACT: f64 = (1_u64 << 53) as f64;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_booleans_may_be_text() {
        for (value, expected) in [
            (json!(3), Some(3)),
            (json!(-1.0), Some(-1)),
            (json!("20"), Some(20)),
            (json!(null), None),
        ] {
            assert_eq!(integer(&value).unwrap(), expected, "{value}");
        }
        for (value, expected) in [
            (json!(7), Some(7.0)),
            (json!("7.5"), Some(7.5)),
            (json!(null), None),
        ] {
            assert_eq!(number(&value).unwrap(), expected, "{value}");
        }
        for (value, expected) in [
            (json!(true), Some(true)),
            (json!("True"), Some(true)),
            (json!(0), Some(false)),
            (json!(null), None),
        ] {
            assert_eq!(boolean(&value).unwrap(), expected, "{value}");
        }
    }

    #[test]
    fn other_values_are_refused_and_shown_in_part() {
        for value in [
            json!(1.5),
            json!("x"),
            json!([1]),
            json!(true),
            json!(1e300),
            json!(""),
        ] {
            assert!(integer(&value).is_err(), "{value}");
        }
        for value in [json!("nan"), json!("inf"), json!({}), json!(false)] {
            assert!(number(&value).is_err(), "{value}");
        }
        for value in [json!(2), json!("yes"), json!([])] {
            assert!(boolean(&value).is_err(), "{value}");
        }
        let error = integer(&json!("x".repeat(1000))).unwrap_err().to_string();
        assert!(error.len() < 100, "{error}");
    }
}
