//! The body of `POST /v1/jobs`: its fields, what becomes of them, and its schema.

use std::{collections::BTreeMap, fmt::Display, num::NonZeroUsize};

use sd_pipeline::Request;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};

use super::{
    ApiError, Result,
    extract::unknown_field,
    field::{label, unsupported},
};
use crate::jobs::{Operation, PreviewKind, Previews};

/// Fields by name; every one of them may be null, except where an operation needs it.
const FIELDS: &str = include_str!("job_request.json");
/// Fields that need a picture.
const PICTURE_FIELDS: [&str; 4] = ["init_image", "input_image", "strength", "resize_mode"];
/// Fields that need a mask.
const MASK_FIELDS: [&str; 5] = [
    "mask_image",
    "mask_polarity",
    "mask_blur",
    "padding_mask_crop",
    "overlay",
];

/// A job as `POST /v1/jobs` describes it.
#[derive(Debug)]
pub(super) struct JobRequest {
    pub(super) operation: Operation,
    /// None: the default model.
    pub(super) model: Option<String>,
    pub(super) request: Request,
    pub(super) priority: i32,
    pub(super) deadline: Option<OffsetDateTime>,
    pub(super) callback_url: Option<String>,
    pub(super) previews: Option<Previews>,
    pub(super) labels: BTreeMap<String, String>,
}

impl JobRequest {
    /// Reads the object: takes out what is the job's, and leaves the rest to be the picture's [`Request`].
    ///
    /// # Errors
    /// 422 with the field's name: it is unknown, of the wrong type, or does not belong to the operation.
    pub(super) fn read(mut fields: Map<String, Value>) -> Result<Self> {
        let operation: Operation = take(&mut fields, "operation")?.ok_or_else(|| {
            ApiError::invalid(
                "operation",
                "operation: expected image_generation, image_transform or image_inpaint",
            )
        })?;
        rename(&mut fields, "steps", "num_inference_steps")?;
        rename(&mut fields, "input_image", "init_image")?;
        belongs(operation, &fields)?;
        if take::<Vec<Value>>(&mut fields, "loras")?.is_some_and(|loras| !loras.is_empty()) {
            return Err(unsupported("loras", "this worker has none to apply"));
        }
        let mut labels = BTreeMap::new();
        for name in ["hive_id", "worker_id"] {
            if let Some(text) = take(&mut fields, name)? {
                labels.insert(name.to_owned(), label(name, text)?);
            }
        }
        Ok(Self {
            operation,
            model: take(&mut fields, "model")?,
            priority: take(&mut fields, "priority")?.unwrap_or(0),
            deadline: deadline(take(&mut fields, "deadline")?)?,
            callback_url: take(&mut fields, "callback_url")?,
            previews: take::<PreviewsRequest>(&mut fields, "previews")?.map(Previews::from),
            labels,
            request: request(fields)?,
        })
    }
}

/// `previews` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PreviewsRequest {
    #[serde(default = "every_five_steps")]
    every: NonZeroUsize,
    #[serde(default)]
    kind: PreviewKind,
}

fn every_five_steps() -> NonZeroUsize {
    const { NonZeroUsize::new(5).expect("is not zero") }
}

impl From<PreviewsRequest> for Previews {
    fn from(PreviewsRequest { every, kind }: PreviewsRequest) -> Self {
        Self {
            every: every.get(),
            kind,
        }
    }
}

/// A field of the job; null is the same as none.
fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &'static str,
) -> Result<Option<T>> {
    fields
        .remove(name)
        .map_or(Ok(None), Option::<T>::deserialize)
        .map_err(|error| wrong(name, error))
}

/// Moves a field to its proper name.
fn rename(fields: &mut Map<String, Value>, alias: &'static str, name: &'static str) -> Result<()> {
    if let Some(value) = fields.remove(alias) {
        if fields.contains_key(name) {
            return Err(wrong(
                alias,
                format!("is another name of {name}, expected one of them"),
            ));
        }
        fields.insert(name.to_owned(), value);
    }
    Ok(())
}

/// Whether the pictures are there that the operation needs, and no others.
fn belongs(operation: Operation, fields: &Map<String, Value>) -> Result<()> {
    let given = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    let (picture, mask) = match operation {
        Operation::ImageGeneration => (false, false),
        Operation::ImageTransform => (true, false),
        Operation::ImageInpaint => (true, true),
    };
    for (allowed, names) in [(picture, &PICTURE_FIELDS[..]), (mask, &MASK_FIELDS)] {
        if let Some(name) = names.iter().find(|name| !allowed && given(name)) {
            return Err(unsupported(name, "does not belong to this operation"));
        }
    }
    for (needed, name) in [(picture, "init_image"), (mask, "mask_image")] {
        if needed && !given(name) {
            return Err(ApiError::invalid(
                name,
                format!("{name}: this operation needs it"),
            ));
        }
    }
    Ok(())
}

fn deadline(text: Option<String>) -> Result<Option<OffsetDateTime>> {
    let Some(text) = text else { return Ok(None) };
    let deadline = OffsetDateTime::parse(&text, &Rfc3339).map_err(|error| {
        wrong(
            "deadline",
            format!("expected RFC 3339, such as 2030-01-31T12:00:00Z: {error}"),
        )
    })?;
    Ok(Some(deadline))
}

/// Everything else is the picture's.
fn request(fields: Map<String, Value>) -> Result<Request> {
    let fields = Value::Object(fields);
    Request::deserialize(&fields).map_err(|error| {
        let message = error.to_string();
        // serde_json does not say which key is wrong: read each alone.
        let culprit = fields
            .as_object()
            .into_iter()
            .flatten()
            .find_map(|(field, value)| {
                let alone = json!({ "prompt": "", field: value });
                let error = Request::deserialize(&alone).err()?;
                Some(wrong(field, error))
            });
        let missing = || {
            wrong(
                unknown_field(&message).as_deref().unwrap_or("prompt"),
                &message,
            )
        };
        culprit.unwrap_or_else(missing)
    })
}

fn wrong(field: &str, problem: impl Display) -> ApiError {
    ApiError::invalid(field, format!("{field}: {problem}"))
}

impl PartialSchema for JobRequest {
    fn schema() -> RefOr<Schema> {
        let operations = [
            (
                "image_generation",
                "A picture of text.",
                &["prompt"][..],
                &[&PICTURE_FIELDS[..], &MASK_FIELDS][..],
            ),
            (
                "image_transform",
                "A picture of text and a picture. Needs `init_image`, or `input_image` in its place.",
                &["prompt"],
                &[&MASK_FIELDS],
            ),
            (
                "image_inpaint",
                "A part of a picture painted anew.",
                &["prompt", "init_image", "mask_image"],
                &[&["input_image"]],
            ),
        ];
        let variants = operations.map(|(name, description, required, without)| {
            operation(name, description, required, &without.concat())
        });
        let schema = json!({ "oneOf": variants });
        serde_json::from_value(schema).expect("the schema is this file's")
    }
}

impl ToSchema for JobRequest {}

/// The schema of one operation: all fields but those that do not belong to it.
fn operation(name: &str, description: &str, required: &[&str], without: &[&str]) -> Value {
    let mut fields: Map<String, Value> =
        serde_json::from_str(FIELDS).expect("the fields are this crate's");
    fields.retain(|field, _| !without.contains(&field.as_str()));
    for (field, schema) in &mut fields {
        if !required.contains(&field.as_str()) {
            let kind = schema["type"].take();
            schema["type"] = json!([kind, "null"]);
            if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
                values.push(Value::Null);
            }
        }
    }
    fields.insert(
        "operation".to_owned(),
        json!({ "type": "string", "enum": [name] }),
    );
    let required = [&["operation"], required].concat();
    json!({
        "type": "object",
        "title": name,
        "description": description,
        "required": required,
        "properties": fields,
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<JobRequest> {
        match value {
            Value::Object(fields) => JobRequest::read(fields),
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn the_schema_has_every_field_of_a_request_and_no_other() {
        let Value::Object(mut expected) = serde_json::to_value(Request::default()).unwrap() else {
            panic!("not an object");
        };
        for own in [
            "model",
            "steps",
            "input_image",
            "priority",
            "deadline",
            "callback_url",
            "previews",
            "loras",
            "hive_id",
            "worker_id",
        ] {
            expected.insert(own.to_owned(), Value::Null);
        }
        let fields: Map<String, Value> = serde_json::from_str(FIELDS).unwrap();
        let names = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&fields), names(&expected));
    }

    #[test]
    fn the_schema_loses_nothing_on_its_way() {
        let shown = serde_json::to_value(JobRequest::schema()).unwrap();
        let inpaint = &shown["oneOf"][2];
        assert_eq!(
            inpaint,
            &operation(
                "image_inpaint",
                "A part of a picture painted anew.",
                &["prompt", "init_image", "mask_image"],
                &["input_image"]
            )
        );
        assert!(shown["oneOf"][0]["properties"]["mask_image"].is_null());
    }

    #[test]
    fn older_names_are_read_and_recorded() {
        let job = read(json!({
            "operation": "image_generation", "prompt": "a star", "steps": 7, "hive_id": "h", "worker_id": "w",
            "loras": [], "seed": null, "previews": {},
        }))
        .unwrap();
        assert_eq!(job.request.num_inference_steps, Some(7));
        assert_eq!(job.labels["hive_id"], "h");
        assert_eq!(
            job.previews,
            Some(Previews {
                every: 5,
                kind: PreviewKind::Linear
            })
        );
        let job = read(
            json!({"operation": "image_transform", "prompt": "a star", "input_image": "AAAA"}),
        )
        .unwrap();
        assert_eq!(job.request.init_image.unwrap().bytes(), [0, 0, 0]);
    }

    #[test]
    fn the_wrong_field_is_named() {
        let generation = |field: &str, value: Value| json!({"operation": "image_generation", "prompt": "a star", field: value});
        for (body, field) in [
            (json!({"prompt": "a star"}), "operation"),
            (
                json!({"operation": "image_upscale", "prompt": "a star"}),
                "operation",
            ),
            (json!({"operation": "image_generation"}), "prompt"),
            (generation("prompt", json!(1)), "prompt"),
            (generation("stpes", json!(1)), "stpes"),
            (generation("steps", json!("7")), "num_inference_steps"),
            (generation("width", json!(-8)), "width"),
            (generation("width", json!(1e300)), "width"),
            (generation("mask_image", json!("AAAA")), "mask_image"),
            (generation("init_image", json!("AAAA")), "init_image"),
            (generation("strength", json!(0.5)), "strength"),
            (
                generation("loras", json!([{"path": "/etc/passwd"}])),
                "loras",
            ),
            (generation("priority", json!("high")), "priority"),
            (generation("deadline", json!("tomorrow")), "deadline"),
            (generation("previews", json!({"every": 0})), "previews"),
            (generation("previews", json!({"evry": 1})), "previews"),
            (
                json!({"operation": "image_transform", "prompt": ""}),
                "init_image",
            ),
            (
                json!({"operation": "image_transform", "prompt": "", "init_image": "!"}),
                "init_image",
            ),
            (
                json!({"operation": "image_transform", "prompt": "", "init_image": "", "input_image": ""}),
                "input_image",
            ),
            (
                json!({"operation": "image_inpaint", "prompt": "", "init_image": "AAAA"}),
                "mask_image",
            ),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param.as_deref()),
                (422, Some(field)),
                "{body}"
            );
        }
    }
}
