//! The image endpoints of OpenAI's API. Docs: `docs/openai-api.md`.
//!
//! [`fields`] says which fields there are and what they become, [`form`] reads the pictures, [`reply`] sends them back.

mod encode;
mod fields;
mod form;
mod reply;

use axum::{
    Extension,
    extract::{DefaultBodyLimit, Multipart, State, multipart::MultipartRejection},
    http::{HeaderMap, StatusCode},
    middleware::map_response,
    response::{IntoResponse, Response},
};
use sd_pipeline::Request;
use serde_json::{Map, Value};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    fields::{Asked, Fields},
    form::{EditForm, Form, VariationForm},
    reply::ImagesResponse,
};
use super::{
    ApiError, AppState, Client, EventFrame, JsonObject, Result,
    attached::{Attached, read_fields, rename_param, submission},
    error::Refusals,
    field::unsupported,
    heavy::{by_length, heavy},
    routes::jobs::{default_model, idempotency},
    submit::picture_limits,
};
use crate::jobs::{PreviewKind, Previews, Submission};

/// Fields of a request that are called otherwise here.
const RENAMED: [(&str, &str); 5] = [
    ("num_images", "n"),
    ("width", "size"),
    ("height", "size"),
    ("init_image", "image"),
    ("mask_image", "mask"),
];

/// The least of the models' default strengths.
const MIN_STRENGTH: f64 = 0.3;

/// All three.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(generations))
        .routes(routes!(edits))
        .routes(routes!(variations))
        // The length of a body is checked before it gets here.
        .layer(DefaultBodyLimit::disable())
        .layer(map_response(as_bad_request))
}

/// The request in the fields of a generation.
///
/// # Errors
/// Names the field that is missing, unknown, unsupported or wrong.
pub(super) fn read_generation(fields: Map<String, Value>) -> Result<Request> {
    Ok(read_fields::<Fields>(fields)?.generation()?.request)
}

/// Pictures of a prompt
///
/// With `stream`, the answer is events: previews as `image_generation.partial_image`, then each picture as
/// `image_generation.completed`. A client that disconnects cancels its job.
#[utoipa::path(
    post, path = "/v1/images/generations", tag = "openai", request_body = Fields,
    responses(
        (status = 200, description = "The pictures", content(
            (ImagesResponse = "application/json"), (EventFrame = "text/event-stream"),
        )),
        Refusals,
    ),
)]
async fn generations(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response> {
    let fields: Fields = read_fields(body.into_fields())?;
    answer(
        state,
        client,
        headers,
        fields.generation()?,
        "image_generation",
    )
    .await
}

/// A picture redrawn by a prompt
///
/// With a `mask`, or a picture that is transparent in part, only what is transparent is redrawn; otherwise the whole
/// picture is, as far as `strength` says. Events are called `image_edit.*`.
#[utoipa::path(
    post, path = "/v1/images/edits", tag = "openai",
    request_body(content = EditForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The pictures", content(
            (ImagesResponse = "application/json"), (EventFrame = "text/event-stream"),
        )),
        Refusals,
    ),
)]
async fn edits(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response> {
    let Form {
        fields,
        image,
        mask,
    } = Form::read(form).await?;
    let limits = picture_limits(&state.config);
    let source = heavy(move || Form::source(image, mask, &limits)).await?;
    answer(state, client, headers, fields.edit(source)?, "image_edit").await
}

/// Variations of a picture
#[utoipa::path(
    post, path = "/v1/images/variations", tag = "openai",
    request_body(content = VariationForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The pictures", content(
            (ImagesResponse = "application/json"), (EventFrame = "text/event-stream"),
        )),
        Refusals,
    ),
)]
async fn variations(
    State(state): State<AppState>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response> {
    let Form {
        fields,
        image,
        mask,
    } = Form::read(form).await?;
    if mask.is_some() {
        return Err(unsupported("mask", "belongs to edits"));
    }
    answer(
        state,
        client,
        headers,
        fields.variation(image)?,
        "image_edit",
    )
    .await
}

/// Makes a job of a request and answers with its pictures.
async fn answer(
    state: AppState,
    client: Client,
    headers: HeaderMap,
    asked: Asked,
    family: &'static str,
) -> Result<Response> {
    let Asked {
        model,
        request,
        reply,
    } = asked;
    let model = match model {
        Some(model) => model,
        None => default_model(&state)?,
    };
    let previews = reply
        .partial_images
        .filter(|&wanted| wanted > 0)
        .map(|wanted| Previews {
            every: reply::preview_interval(wanted, steps(&state, &model, &request)),
            kind: PreviewKind::Linear,
        });
    let length = [&request.init_image, &request.mask_image]
        .into_iter()
        .flatten()
        .map(|picture| picture.bytes().len())
        .sum();
    let (idempotency, headers, model, request) = by_length(length, move || {
        let idempotency = idempotency(&headers, || identity(&model, &request))?;
        Ok((idempotency, headers, model, request))
    })
    .await?;
    let submission = Submission {
        idempotency,
        previews,
        ..submission(&client, model, request)
    };
    let attached = Attached::submit(&state, submission)
        .await
        .map_err(|error| rename_param(error, &RENAMED))?;
    if reply.partial_images.is_some() {
        Ok(reply::events(attached, reply, family))
    } else {
        reply::whole(attached, reply, &headers).await
    }
}

/// Denoising steps that a request will take at least.
fn steps(state: &AppState, model: &str, request: &Request) -> usize {
    let models = state.engine.models();
    let defaults = models
        .iter()
        .find(|known| known.name == model)
        .map(|known| known.config.defaults.num_inference_steps);
    let steps = request.num_inference_steps.or(defaults).unwrap_or(1);
    match request.init_image {
        Some(_) => (steps as f64 * request.strength.unwrap_or(MIN_STRENGTH)) as usize,
        None => steps,
    }
}

/// What makes a repeated request the same. Not the body: the boundaries of a form differ each time.
fn identity(model: &str, request: &Request) -> Result<Vec<u8>> {
    serde_json::to_vec(&(model, request)).map_err(|error| ApiError::internal(&error))
}

/// OpenAI's API says 400 where ours says 422.
async fn as_bad_request(response: Response) -> Response {
    match response.extensions().get::<ApiError>() {
        Some(error) if error.status == StatusCode::UNPROCESSABLE_ENTITY => ApiError {
            status: StatusCode::BAD_REQUEST,
            ..error.clone()
        }
        .into_response(),
        _ => response,
    }
}
