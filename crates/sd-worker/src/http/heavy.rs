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

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn heavy_work_is_done_in_two_places() {
        static BUSY: AtomicUsize = AtomicUsize::new(0);
        let work = || {
            let busy = BUSY.fetch_add(1, Ordering::SeqCst) + 1;
            thread::sleep(Duration::from_millis(20));
            BUSY.fetch_sub(1, Ordering::SeqCst);
            Ok(busy)
        };
        let most = join_all((0..6).map(|_| heavy(work))).await;
        assert_eq!(most.into_iter().map(Result::unwrap).max(), Some(2));
    }

    #[tokio::test]
    async fn work_that_panics_is_a_failure_and_leaves_its_place() {
        for _ in 0..3 {
            let error = heavy(|| -> Result<()> { panic!("on purpose") }).await;
            assert_eq!(error.unwrap_err().status, 500);
        }
    }
}
