//! What a job is, from its submission to its pictures. No HTTP and no SQL in here.

mod event;
mod id;
mod record;
mod submission;

pub use event::{Event, EventId};
pub use id::{InvalidJobId, JobId};
pub use record::{ErrorCode, Filter, Image, Job, JobError, MAX_PAGE, Page, State};
pub use submission::{Idempotency, Operation, PreviewKind, Previews, Submission};
