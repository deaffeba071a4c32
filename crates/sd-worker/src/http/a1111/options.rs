//! The web UI's options, as far as this worker has them.

use axum::{Extension, Json, extract::State};
use serde_json::{Map, Value, json};

use super::{
    error::{Refusals, WebUiError},
    session::Sessions,
};
use crate::{
    engine::ModelInfo,
    http::{
        ApiError, AppState, Client, JsonObject, Result,
        field::{shown, unsupported},
    },
};

/// Digits of a model's short hash.
const HASH: usize = 10;

/// Options that a request may override and a client may set for its later requests. Options of the web UI that do not
/// change pictures are ignored, the others are refused by name unless they ask for what happens here anyway.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Overrides {
    /// `sd_model_checkpoint`: a model's title, name or hash.
    pub model: Option<String>,
    /// `CLIP_stop_at_last_layers` less 1: last layers of the text encoder to leave out.
    pub clip_skip: Option<usize>,
}

impl Overrides {
    /// Reads an object of options; `prefix` stands before their names in errors.
    ///
    /// # Errors
    /// Names the first option that this worker does not have.
    pub(super) fn read(prefix: &str, options: Option<&Map<String, Value>>) -> Result<Self> {
        let mut read = Self::default();
        for (name, value) in options.into_iter().flatten() {
            let wrong = |expected: &str| {
                let found = shown(&value.to_string());
                unsupported(
                    &format!("{prefix}{}", shown(name)),
                    &format!("got {found}, expected {expected}"),
                )
            };
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("sd_model_checkpoint", Value::String(title)) => read.model = Some(title.clone()),
                ("sd_model_checkpoint", _) => return Err(wrong("a model's title")),
                ("CLIP_stop_at_last_layers", value) => {
                    let layers = value.as_f64().filter(|layers| layers.fract() == 0.0);
                    read.clip_skip = match layers {
                        Some(layers @ 1.0..=12.0) => Some(layers as usize - 1),
                        _ => return Err(wrong("1 to 12")),
                    };
                }
                ("sd_vae", Value::String(vae))
                    if ["Automatic", "None", ""].contains(&vae.as_str()) => {}
                ("sd_vae", _) => return Err(wrong("Automatic: a model comes with its own")),
                ("randn_source", value) if value == "CPU" => {}
                ("randn_source", _) => return Err(wrong("CPU")),
                ("samples_format", value) if value == "png" => {}
                ("samples_format", _) => return Err(wrong("png")),
                ("eta_noise_seed_delta", value) if value.as_f64() == Some(0.0) => {}
                (name, _) if is_cosmetic(name) => {}
                _ => return Err(wrong("nothing: this worker has no such option")),
            }
        }
        Ok(read)
    }

    /// These, and `earlier` ones where these have none.
    pub(super) fn or(self, earlier: &Self) -> Self {
        Self {
            model: self.model.or_else(|| earlier.model.clone()),
            clip_skip: self.clip_skip.or(earlier.clip_skip),
        }
    }

    /// `GET options`. Read again, they are these.
    pub(super) fn show(&self, models: &[ModelInfo]) -> Value {
        let model = match &self.model {
            Some(name) => models.iter().find(|model| &model.name == name),
            None => models.first(),
        };
        json!({
            "sd_model_checkpoint": model.map(title),
            "sd_checkpoint_hash": model.and_then(|model| model.sha256.clone()),
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": self.clip_skip.unwrap_or(0) + 1,
            "randn_source": "CPU",
            "samples_format": "png",
            "eta_noise_seed_delta": 0,
        })
    }
}

/// Options about files, the display and the browser.
fn is_cosmetic(name: &str) -> bool {
    const STARTS: [&str; 10] = [
        "save_",
        "samples_",
        "grid_",
        "outdir_",
        "live_preview",
        "show_",
        "return_",
        "directories_",
        "memmon_",
        "ui_",
    ];
    const NAMES: [&str; 4] = [
        "enable_pnginfo",
        "sd_checkpoint_hash",
        "sd_checkpoints_limit",
        "sd_checkpoint_cache",
    ];
    STARTS.iter().any(|start| name.starts_with(start)) || NAMES.contains(&name)
}

/// What the web UI calls a model: its name, with its hash once that is known.
pub(super) fn title(model: &ModelInfo) -> String {
    match short_hash(model) {
        Some(hash) => format!("{} [{hash}]", model.name),
        None => model.name.clone(),
    }
}

/// The first digits of a model's hash.
pub(super) fn short_hash(model: &ModelInfo) -> Option<&str> {
    model.sha256.as_deref()?.get(..HASH)
}

/// The name of the model with this title, name or hash.
///
/// # Errors
/// There is none.
pub(super) fn model_name(field: &str, text: &str, models: &[ModelInfo]) -> Result<String> {
    let bare = text
        .strip_suffix(']')
        .and_then(|text| text.rsplit_once(" ["))
        .map_or(text, |(name, _)| name);
    models
        .iter()
        .find(|model| model.name == text || model.name == bare)
        .or_else(|| {
            models.iter().find(|model| {
                let hash = model.sha256.as_deref();
                short_hash(model) == Some(text) || hash == Some(text)
            })
        })
        .map(|model| model.name.clone())
        .ok_or_else(|| {
            let known: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
            ApiError::invalid(
                field,
                format!(
                    "{field}: got {}, expected one of {}",
                    shown(text),
                    known.join(", ")
                ),
            )
        })
}

/// The client's options
#[utoipa::path(
    get, path = "/sdapi/v1/options", tag = "a1111",
    responses(
        (status = 200, description = "Options by name", body = Value),
        (status = 401, description = "No or a wrong key", body = WebUiError),
    ),
)]
pub(super) async fn get_options(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
) -> Json<Value> {
    Json(sessions.options(&client).show(&state.engine.models()))
}

/// Sets options for the client's later requests
///
/// `sd_model_checkpoint` and `CLIP_stop_at_last_layers`. They last until the worker ends.
#[utoipa::path(
    post, path = "/sdapi/v1/options", tag = "a1111", request_body = Object,
    responses(
        (status = 200, description = "Done", body = Value),
        Refusals,
    ),
)]
pub(super) async fn set_options(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    Extension(sessions): Extension<Sessions>,
    JsonObject { fields, .. }: JsonObject,
) -> Result<Json<Value>> {
    let options = Overrides::read("", Some(&fields))?;
    let model = options
        .model
        .as_deref()
        .map(|title| model_name("sd_model_checkpoint", title, &state.engine.models()))
        .transpose()?;
    sessions.set(&client, Overrides { model, ..options });
    Ok(Json(Value::Null))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sd_pipeline::{ModelConfig, Version};

    use super::*;

    fn models() -> Vec<ModelInfo> {
        let model = |name: &str, sha256: Option<&str>| ModelInfo {
            name: name.into(),
            loaded: sha256.is_some(),
            config: Arc::new(ModelConfig::preset(Version::V1_5)),
            sha256: sha256.map(str::to_owned),
        };
        vec![
            model("builtin", Some("0123456789abcdef")),
            model("my [own]", None),
        ]
    }

    #[test]
    fn a_model_is_found_by_title_name_and_hash() {
        for text in [
            "builtin",
            "builtin [0123456789]",
            "builtin [old]",
            "0123456789",
            "0123456789abcdef",
        ] {
            assert_eq!(
                model_name("f", text, &models()).unwrap(),
                "builtin",
                "{text}"
            );
        }
        assert_eq!(model_name("f", "my [own]", &models()).unwrap(), "my [own]");
        for text in ["", "Builtin", "../builtin", "012345678"] {
            assert_eq!(
                model_name("f", text, &models())
                    .unwrap_err()
                    .param
                    .as_deref(),
                Some("f"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_shown_can_be_set() {
        let set = Overrides {
            model: Some("my [own]".into()),
            clip_skip: Some(1),
        };
        for options in [Overrides::default(), set.clone()] {
            let shown = options.show(&models());
            let read = Overrides::read("", shown.as_object()).unwrap();
            let model = model_name("f", read.model.as_deref().unwrap(), &models()).unwrap();
            assert_eq!(model, options.model.clone().unwrap_or("builtin".into()));
            assert_eq!(read.clip_skip.unwrap_or(0), options.clip_skip.unwrap_or(0));
        }
        assert_eq!(set.show(&models())["sd_model_checkpoint"], "my [own]");
    }

    #[test]
    fn later_options_win() {
        let earlier = Overrides {
            model: Some("a".into()),
            clip_skip: Some(2),
        };
        let later = Overrides {
            model: Some("b".into()),
            clip_skip: None,
        };
        assert_eq!(
            later.or(&earlier),
            Overrides {
                model: Some("b".into()),
                clip_skip: Some(2)
            }
        );
    }

    #[test]
    fn options_about_files_pass_and_others_do_not() {
        let read = |options: Value| Overrides::read("o.", options.as_object());
        assert!(
            read(json!({"save_images_add_number": false, "live_previews_enable": true})).is_ok()
        );
        for (options, field) in [
            (
                json!({"CLIP_stop_at_last_layers": 13}),
                "o.CLIP_stop_at_last_layers",
            ),
            (
                json!({"CLIP_stop_at_last_layers": "x"}),
                "o.CLIP_stop_at_last_layers",
            ),
            (json!({"sd_model_checkpoint": 3}), "o.sd_model_checkpoint"),
            (json!({"token_merging_ratio": 0.5}), "o.token_merging_ratio"),
            (json!({"randn_source": "GPU"}), "o.randn_source"),
        ] {
            assert_eq!(read(options).unwrap_err().param.as_deref(), Some(field));
        }
    }
}
