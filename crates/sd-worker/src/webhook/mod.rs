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
    collections::HashSet,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use time::OffsetDateTime;

use self::deliver::{Courier, Delivery};
use crate::{
    jobs::Job,
    store::{self, Callback, JobStore},
};

/// Callbacks that are made at a time.
const THREADS: usize = 4;
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

/// Where the threads that make callbacks wait for them and divide them up.
#[derive(Default)]
pub(crate) struct Desk {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// The hosts that are being called: one at a time each, so that one that does not answer holds up nobody else.
    busy: HashSet<String>,
}

impl Desk {
    /// Tells that there may be a new callback.
    pub(crate) fn ring(&self) {
        // Whoever is about to wait has either seen the callback or hears this.
        drop(self.state());
        self.bell.notify_all();
    }

    /// Ends the threads, each after what it is doing.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.bell.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes callbacks until the desk is closed.
    fn work(&self, courier: &Courier, config: &WebhookConfig, store: &dyn JobStore) {
        let mut state = self.state();
        while !state.closed {
            let free = |url: &str| !state.busy.contains(host(url));
            let mut wait = LONGEST_WAIT;
            match store.next_callback(&free) {
                Ok(Some(callback)) => {
                    let left = callback.due - OffsetDateTime::now_utc();
                    if left.is_positive() {
                        wait = left.unsigned_abs().min(LONGEST_WAIT);
                    } else {
                        let host = host(&callback.url).to_owned();
                        state.busy.insert(host.clone());
                        drop(state);
                        let made = make(&callback, courier, config, store);
                        state = self.state();
                        state.busy.remove(&host);
                        // Others may have found nothing but callbacks to this host.
                        self.bell.notify_all();
                        let Err(error) = made else {
                            continue;
                        };
                        tracing::error!("callbacks: {error}");
                        wait = STORE_RETRY;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("callbacks: {error}");
                    wait = STORE_RETRY;
                }
            }
            state = match self.bell.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// Starts the threads that make the callbacks in the store, until `desk` is closed.
pub(crate) fn spawn(
    config: WebhookConfig,
    store: Arc<dyn JobStore>,
    desk: &Arc<Desk>,
) -> io::Result<()> {
    let (courier, config) = (Arc::new(Courier::new(&config)), Arc::new(config));
    for _ in 0..THREADS {
        let (courier, config) = (Arc::clone(&courier), Arc::clone(&config));
        let (store, desk) = (Arc::clone(&store), Arc::clone(desk));
        thread::Builder::new()
            .name("webhooks".into())
            .spawn(move || desk.work(&courier, &config, &*store))?;
    }
    Ok(())
}

/// Makes a callback, and records what came of it.
fn make(
    callback: &Callback,
    courier: &Courier,
    config: &WebhookConfig,
    store: &dyn JobStore,
) -> store::Result<()> {
    let Callback {
        url, tries, job, ..
    } = callback;
    let body = (config.body)(job);
    let delivery = courier.deliver(url, job.id, &body, OffsetDateTime::now_utc());
    let retry = usize::try_from(*tries)
        .ok()
        .and_then(|tries| config.retries.get(tries));
    match (delivery, retry) {
        (Delivery::Arrived, _) => store.drop_callback(job.id),
        (Delivery::Failed(reason), Some(wait)) => {
            tracing::info!(job = %job.id, "callback failed, next try in {wait:?}: {reason}");
            // From now on: the attempt may have taken long.
            store.retry_callback(job.id, OffsetDateTime::now_utc() + *wait)
        }
        (Delivery::Failed(reason) | Delivery::Refused(reason), _) => {
            tracing::warn!(job = %job.id, "callback given up: {reason}");
            store.drop_callback(job.id)
        }
    }
}

/// The host of a URL, with its port.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(url)
}
