//! Work on large bodies and pictures, away from the threads that talk to clients.

use tokio::sync::Semaphore;

use super::{ApiError, Result};

/// Bodies up to this many bytes are worked on where they are.
const LIGHT: usize = 1 << 20;
/// Heavy work at a time: each takes many times the length of its body in memory. The rest waits.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Does what takes long, or much memory, on a thread of its own.
///
/// # Errors
/// Those of the work; 500 if it panics.
pub(super) async fn heavy<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let place = PLACES
        .acquire()
        .await
        .map_err(|error| ApiError::internal(&error))?;
    // The place is free when the work is done, not when the client stops waiting for it.
    tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    })
    .await
    .map_err(|error| ApiError::internal(&error))?
}

/// Does what takes as long as a body of `length` bytes is: [`heavy`] if that is long.
///
/// # Errors
/// As [`heavy`].
pub(super) async fn by_length<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if length > LIGHT {
        heavy(work).await
    } else {
        work()
    }
}
