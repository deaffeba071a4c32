//! Signed callbacks about finished jobs.
//!
//! A callback is a POST of the job as JSON, with the headers
//!
//! - `Sd-Job-Id`: the job;
//! - `Sd-Timestamp`: seconds since 1970 when it was sent, for the receiver to refuse old ones;
//! - `Sd-Signature`: `sha256=` and, in hexadecimal, the HMAC-SHA256 of the timestamp, a dot and the body.
//!
//! Any status from 200 to 299 is an arrival. Otherwise it is sent again later, also by the next worker on the same data.

mod address;
mod deliver;

pub use address::check_url;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use time::OffsetDateTime;

use self::deliver::{Courier, Delivery};
use crate::{
    jobs::Job,
    store::{self, Callback, JobStore},
};

/// How long to wait before asking a failing store again.
const STORE_RETRY: Duration = Duration::from_secs(10);
/// The longest wait, so that the clock may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Makes the JSON body for a job.
pub type Body = Arc<dyn Fn(&Job) -> Vec<u8> + Send + Sync>;

/// Whether and how finished jobs are sent to the URL in their submission.
#[derive(Clone)]
pub struct WebhookConfig {
    /// Key of the signature.
    pub secret: Vec<u8>,
    /// Whether to allow plain HTTP.
    pub allow_http: bool,
    /// Whether to allow addresses that are not public: loopback, private networks and the like.
    pub allow_private: bool,
    /// The JSON body for a job.
    pub body: Body,
    /// Waits before the second try and those after it; when they are used up the callback is given up.
    pub retries: Vec<Duration>,
}

impl WebhookConfig {
    /// HTTPS to public addresses, tried for a day.
    pub fn new(secret: Vec<u8>, body: Body) -> Self {
        let minutes =
            [1, 5, 15, 60, 180, 360, 720].map(|minutes| Duration::from_secs(60 * minutes));
        Self {
            secret,
            allow_http: false,
            allow_private: false,
            body,
            retries: [&[Duration::from_secs(10)], minutes.as_slice()].concat(),
        }
    }
}

/// Starts the thread that makes the callbacks in the store. `wake` tells it that there may be a new one, and by its end
/// that it is no longer needed.
pub(crate) fn spawn(
    config: WebhookConfig,
    store: Arc<dyn JobStore>,
    wake: Receiver<()>,
) -> io::Result<()> {
    let courier = Courier::new(&config);
    let run = move || {
        loop {
            let wait = serve(&courier, &config, &*store).unwrap_or_else(|error| {
                tracing::error!("callbacks: {error}");
                STORE_RETRY
            });
            match wake.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    };
    thread::Builder::new()
        .name("webhooks".into())
        .spawn(run)
        .map(drop)
}

/// Makes the callback that is due, if any. Returns the time until there is one to be made.
fn serve(
    courier: &Courier,
    config: &WebhookConfig,
    store: &dyn JobStore,
) -> store::Result<Duration> {
    let Some(callback) = store.next_callback()? else {
        return Ok(LONGEST_WAIT);
    };
    let now = OffsetDateTime::now_utc();
    if callback.due > now {
        return Ok((callback.due - now).unsigned_abs().min(LONGEST_WAIT));
    }
    let Callback {
        url, tries, job, ..
    } = callback;
    let delivery = courier.deliver(&url, job.id, &(config.body)(&job), now);
    let retry = usize::try_from(tries)
        .ok()
        .and_then(|tries| config.retries.get(tries));
    match (delivery, retry) {
        (Delivery::Arrived, _) => store.drop_callback(job.id)?,
        (Delivery::Failed(reason), Some(wait)) => {
            tracing::info!(job = %job.id, "callback failed, next try in {wait:?}: {reason}");
            store.retry_callback(job.id, now + *wait)?;
        }
        (Delivery::Failed(reason) | Delivery::Refused(reason), _) => {
            tracing::warn!(job = %job.id, "callback given up: {reason}");
            store.drop_callback(job.id)?;
        }
    }
    Ok(Duration::ZERO)
}
