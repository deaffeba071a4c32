//! Server-sent events in the API's description.

use utoipa::ToSchema;

/// A server-sent event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a stream for the documentation")]
pub(crate) struct EventFrame {
    /// Its name.
    event: String,
    /// Its number, for `Last-Event-ID`.
    #[schema(nullable = false)]
    id: Option<String>,
    /// A JSON object as text.
    data: String,
}
