//! Pictures on their way back: in one reply, or as events.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    Json,
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{Stream, stream};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    encode::{encode, encode_preview},
    fields::{Reply, ResponseFormat},
};
use crate::{
    http::{
        ApiError, Result,
        attached::{Attached, failed, interrupted},
    },
    jobs::{Event, Job},
};

/// The reply to every request without `stream`. There are no tokens to bill, so it has no `usage`, which clients do not require.
#[derive(Serialize, ToSchema)]
pub(super) struct ImagesResponse {
    /// Seconds since 1970.
    created: i64,
    /// The pictures.
    data: Vec<Image>,
    /// Always `opaque`.
    #[schema(example = "opaque")]
    background: &'static str,
    /// `png`, `jpeg` or `webp`.
    #[schema(example = "png")]
    output_format: &'static str,
    /// `WIDTHxHEIGHT` in pixels.
    #[schema(example = "512x512")]
    size: String,
}

/// A picture of an [`ImagesResponse`].
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiImage)]
pub(super) struct Image {
    /// The picture's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    /// Where the picture is.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// The seed that makes it again.
    seed: u64,
}

/// An event of a stream: `image_generation.partial_image`, `image_generation.completed`, and the same of `image_edit`.
#[derive(Serialize, ToSchema)]
pub(super) struct ImageEvent {
    /// The event's name.
    #[schema(example = "image_generation.completed")]
    r#type: String,
    /// The picture's file.
    b64_json: String,
    /// Which preview it is, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_image_index: Option<usize>,
    /// Always `opaque`.
    background: &'static str,
    /// Seconds since 1970.
    created_at: i64,
    /// `png`, `jpeg` or `webp`.
    output_format: &'static str,
    /// Always `auto`.
    quality: &'static str,
    /// `WIDTHxHEIGHT` in pixels.
    size: String,
    /// The seed that makes the picture again.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Of completed pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// Tokens to bill, which clients require of a completed picture's event. Always 0.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = OpenAiUsage)]
struct Usage {
    input_tokens: u64,
    input_tokens_details: UsageDetails,
    output_tokens: u64,
    total_tokens: u64,
}

#[derive(Default, Serialize, ToSchema)]
#[schema(as = OpenAiUsageDetails)]
struct UsageDetails {
    image_tokens: u64,
    text_tokens: u64,
}

/// Waits for the pictures and sends them in one reply.
///
/// # Errors
/// The job failed or was cancelled.
pub(super) async fn whole(
    mut attached: Attached,
    reply: Reply,
    headers: &HeaderMap,
) -> Result<Response> {
    let job = attached.finished().await?.ok_or_else(cancelled)?;
    let mut data = Vec::with_capacity(job.images.len());
    for image in &job.images {
        let (b64_json, url) = match reply.place {
            ResponseFormat::B64Json => {
                let png = attached.image(image.index).await?;
                (
                    Some(BASE64_STANDARD.encode(encode(png, reply).await?)),
                    None,
                )
            }
            ResponseFormat::Url => (None, Some(url(headers, &job, image.index))),
        };
        data.push(Image {
            b64_json,
            url,
            seed: image.seed,
        });
    }
    Ok(Json(ImagesResponse {
        created: now(),
        data,
        background: "opaque",
        output_format: reply.format.name(),
        size: size(&job),
    })
    .into_response())
}

/// Sends events until the pictures are there. `family` is what their names begin with.
pub(super) fn events(attached: Attached, reply: Reply, family: &'static str) -> Response {
    let sender = Sender {
        attached: Some(attached),
        waiting: VecDeque::new(),
        reply,
        family,
        previews_sent: 0,
    };
    Sse::new(sender.stream())
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// The state of a stream.
struct Sender {
    /// `None` after the end.
    attached: Option<Attached>,
    /// Made and not yet sent.
    waiting: VecDeque<SseEvent>,
    reply: Reply,
    family: &'static str,
    previews_sent: usize,
}

impl Sender {
    fn stream(self) -> impl Stream<Item = Result<SseEvent, Infallible>> {
        stream::unfold(self, |mut sender| async move {
            loop {
                if let Some(event) = sender.waiting.pop_front() {
                    return Some((Ok(event), sender));
                }
                // A failure is an event too, the last one.
                if let Err(error) = sender.advance().await? {
                    sender.attached = None;
                    let event = SseEvent::default().event("error");
                    sender.waiting.extend(event.json_data(error.body()));
                }
            }
        })
    }

    /// Waits for the next thing that happens; `None` after the end.
    async fn advance(&mut self) -> Option<Result<()>> {
        let event = self.attached.as_mut()?.next().await;
        Some(match event {
            Some(Event::Preview { step, total, png }) => self.preview(step, total, &png).await,
            Some(Event::Complete(job)) => self.complete(&job).await,
            Some(Event::Error(error)) => Err(failed(&error)),
            Some(Event::Cancelled) => Err(cancelled()),
            Some(Event::Queued { .. } | Event::Progress { .. }) => Ok(()),
            None => Err(interrupted()),
        })
    }

    /// Makes an event of a preview whose turn it is.
    async fn preview(&mut self, step: usize, total: usize, png: &[u8]) -> Result<()> {
        let wanted = self.reply.partial_images.unwrap_or(0);
        let Some(attached) = &self.attached else {
            return Ok(());
        };
        if !is_due(self.previews_sent, wanted, step, total) {
            return Ok(());
        }
        let request = &attached.job.request;
        let [width, height] = [request.width, request.height]
            .map(|side| side.and_then(|side| u32::try_from(side).ok()).unwrap_or(1));
        let file = encode_preview(png.to_vec(), (width, height), self.reply).await?;
        let event = ImageEvent {
            partial_image_index: Some(self.previews_sent),
            ..self.event("partial_image", &file, format!("{width}x{height}"))
        };
        self.previews_sent += 1;
        self.push(event)
    }

    async fn complete(&mut self, job: &Job) -> Result<()> {
        let Some(mut attached) = self.attached.take() else {
            return Ok(());
        };
        for image in &job.images {
            let file = encode(attached.image(image.index).await?, self.reply).await?;
            let event = ImageEvent {
                seed: Some(image.seed),
                usage: Some(Usage::default()),
                ..self.event("completed", &file, size(job))
            };
            self.push(event)?;
        }
        Ok(())
    }

    fn event(&self, kind: &str, file: &[u8], size: String) -> ImageEvent {
        ImageEvent {
            r#type: format!("{}.{kind}", self.family),
            b64_json: BASE64_STANDARD.encode(file),
            partial_image_index: None,
            background: "opaque",
            created_at: now(),
            output_format: self.reply.format.name(),
            quality: "auto",
            size,
            seed: None,
            usage: None,
        }
    }

    fn push(&mut self, event: ImageEvent) -> Result<()> {
        let event = SseEvent::default()
            .event(&event.r#type)
            .json_data(&event)
            .map_err(|error| ApiError::internal(&error))?;
        self.waiting.push_back(event);
        Ok(())
    }
}

/// Whether the preview at `step` of `total` is the next of `wanted` ones that are spread evenly between start and end.
fn is_due(sent: usize, wanted: usize, step: usize, total: usize) -> bool {
    let turn = (sent + 1).saturating_mul(total) / (wanted + 1);
    sent < wanted && step >= turn.max(1) && step < total
}

/// Steps between two previews, so that [`is_due`] finds them.
pub(super) fn preview_interval(wanted: usize, total: usize) -> usize {
    (total / (wanted + 1)).max(1)
}

/// Where a picture is, at the host that the client asked.
fn url(headers: &HeaderMap, job: &Job, index: usize) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let path = format!("/v1/jobs/{}/images/{index}", job.id);
    match text("host") {
        Some(host) if text("x-forwarded-proto") == Some("https") => format!("https://{host}{path}"),
        Some(host) => format!("http://{host}{path}"),
        None => path,
    }
}

fn size(job: &Job) -> String {
    let image = job.images.first();
    image.map_or_else(String::new, |image| {
        format!("{}x{}", image.width, image.height)
    })
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn cancelled() -> ApiError {
    ApiError::new(
        axum::http::StatusCode::CONFLICT,
        "cancelled",
        "the job was cancelled",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_spread_over_the_steps() {
        for (wanted, total, expected) in [
            (0, 20, vec![]),
            (1, 20, vec![10]),
            (3, 20, vec![5, 10, 15]),
            (2, 10, vec![3, 6]),
            (3, 4, vec![1, 2, 3]),
            // No more than there are steps before the last.
            (3, 2, vec![1]),
            (3, 1, vec![]),
        ] {
            let every = preview_interval(wanted, total);
            let mut shown = Vec::new();
            for step in (1..=total).filter(|step| step.is_multiple_of(every)) {
                if is_due(shown.len(), wanted, step, total) {
                    shown.push(step);
                }
            }
            assert_eq!(shown, expected, "{wanted} of {total}");
        }
    }
}
