//! Questions to a hub, and what its answers mean.

use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::{HubError, HubOptions, ProgressFn};
use crate::source::is_path_part;

/// How many redirects within the hub are followed to a file's description.
const MAX_REDIRECTS: usize = 5;

pub(super) struct Client {
    pub(super) repo: String,
    pub(super) progress: Option<ProgressFn>,
    pub(super) retries: u32,
    endpoint: String,
    authorization: Option<String>,
    backoff: Duration,
    /// Follows no redirects: the hub's own answer describes the file, and the token is for nobody
    /// else.
    describe: Agent,
    transfer: Agent,
}

/// What the hub says of a file.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) commit: String,
    /// SHA-256 of a large file, 64 hexadecimal digits, and something else of a small one.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Answer {
    Found(Remote),
    /// The revision has no such file.
    Absent,
}

/// Why one attempt failed.
pub(super) enum Failure {
    /// May pass: a broken connection, an overloaded server.
    Passing(HubError),
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

impl Client {
    pub(super) fn new(options: &HubOptions, repo: &str, progress: Option<ProgressFn>) -> Self {
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .user_agent(concat!("sd-models/", env!("CARGO_PKG_VERSION")))
                // Lengths and checksums are those of the file as it is.
                .accept_encoding("identity")
                .timeout_connect(Some(options.timeout))
                .timeout_per_read(Some(options.timeout))
        };
        Self {
            repo: repo.to_owned(),
            endpoint: options.endpoint.clone(),
            authorization: options
                .token
                .as_ref()
                .map(|token| format!("Bearer {}", token.secret())),
            progress,
            retries: options.retries,
            backoff: options.backoff,
            describe: config().max_redirects(0).build().into(),
            transfer: config()
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .build()
                .into(),
        }
    }

    /// Asks what `file` of `revision` is. `patient`: a failure that may pass is waited for.
    pub(super) fn head(
        &self,
        revision: &str,
        file: &str,
        patient: bool,
    ) -> Result<Answer, HubError> {
        self.retry(
            if patient { self.retries } else { 0 },
            || false,
            || self.head_once(revision, file),
        )
    }

    /// Asks for `file` of `commit` from byte `start` on.
    pub(super) fn get(
        &self,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<Response<Body>, Failure> {
        let mut request = self.authorized(self.transfer.get(self.url(commit, file)));
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        self.answer(file, request.call())
    }

    fn head_once(&self, revision: &str, file: &str) -> Result<Answer, Failure> {
        let mut url = self.url(revision, file);
        for _ in 0..MAX_REDIRECTS {
            let response = self.answer(file, self.authorized(self.describe.head(&url)).call())?;
            match response.status().as_u16() {
                404 => return self.not_found(&response, file, revision),
                200..=299 => return Ok(Answer::Found(self.remote(&response, file)?)),
                300..=399 => match self.within_hub(&response) {
                    // A renamed repository.
                    Some(target) => url = target,
                    // Large files lie on another server; the description is here.
                    None => return Ok(Answer::Found(self.remote(&response, file)?)),
                },
                status => return Err(self.refusal(status, file)),
            }
        }
        Err(self.protocol(file, "is a circle of redirects").into())
    }

    /// Runs `attempt` until it succeeds, fails for good, or fails `retries` times without having
    /// `progressed`.
    pub(super) fn retry<T>(
        &self,
        retries: u32,
        mut progressed: impl FnMut() -> bool,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => error,
            };
            if progressed() {
                failures = 0;
            }
            if failures == retries {
                return Err(error);
            }
            tracing::debug!("{error}, once more");
            std::thread::sleep(self.backoff.saturating_mul(1 << failures.min(6)));
            failures += 1;
        }
    }

    fn url(&self, revision: &str, file: &str) -> String {
        format!(
            "{}/{}/resolve/{}/{file}",
            self.endpoint,
            self.repo,
            revision.replace('/', "%2F")
        )
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        }
    }

    fn answer(
        &self,
        file: &str,
        result: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failure> {
        result.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                Failure::Final(self.protocol(file, &format!("cannot be asked for ({error})")))
            }
            error => self.broken(file, error),
        })
    }

    /// The target of a redirect that stays on the hub.
    fn within_hub(&self, response: &Response<Body>) -> Option<String> {
        let location = header(response, "location")?;
        let target: Uri = location.parse().ok()?;
        let path = target.path_and_query()?;
        let hub: Uri = self.endpoint.parse().ok()?;
        let same = target
            .authority()
            .is_none_or(|authority| Some(authority) == hub.authority());
        same.then(|| {
            format!(
                "{}://{}{path}",
                hub.scheme_str().unwrap_or("https"),
                hub.authority().map_or("", |a| a.as_str())
            )
        })
    }

    fn remote(&self, response: &Response<Body>, file: &str) -> Result<Remote, HubError> {
        let commit = header(response, "x-repo-commit").filter(|commit| is_commit(commit));
        let commit = commit.ok_or_else(|| self.protocol(file, "names no commit"))?;
        let etag = header(response, "x-linked-etag").or_else(|| header(response, "etag"));
        let etag = etag
            .map(|etag| etag.trim_start_matches("W/").trim_matches('"'))
            .filter(|etag| is_path_part(etag));
        let etag = etag.ok_or_else(|| self.protocol(file, "names no checksum"))?;
        let length = if response.status().is_success() {
            header(response, "content-length")
        } else {
            None
        };
        let size = header(response, "x-linked-size")
            .or(length)
            .and_then(|size| size.parse().ok());
        Ok(Remote {
            commit: commit.to_owned(),
            etag: etag.to_owned(),
            size,
        })
    }

    fn not_found(
        &self,
        response: &Response<Body>,
        file: &str,
        revision: &str,
    ) -> Result<Answer, Failure> {
        let what = match header(response, "x-error-code") {
            Some("RepoNotFound") => "repository".to_owned(),
            Some("RevisionNotFound") => format!("revision `{revision}`"),
            _ => return Ok(Answer::Absent),
        };
        tracing::debug!("404 for {file}");
        Err(HubError::NotFound {
            repo: self.repo.clone(),
            what,
        }
        .into())
    }

    pub(super) fn refusal(&self, status: u16, file: &str) -> Failure {
        let (repo, file) = (self.repo.clone(), file.to_owned());
        match status {
            401 => Failure::Final(HubError::Unauthorized { repo, file }),
            403 => {
                let page = format!("{}/{repo}", self.endpoint);
                Failure::Final(HubError::Forbidden { repo, file, page })
            }
            408 | 429 | 500..=599 => Failure::Passing(HubError::Status { repo, file, status }),
            _ => Failure::Final(HubError::Status { repo, file, status }),
        }
    }

    pub(super) fn protocol(&self, file: &str, reason: &str) -> HubError {
        HubError::Protocol {
            repo: self.repo.clone(),
            file: file.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn broken(
        &self,
        file: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Failure {
        let (repo, file, source) = (self.repo.clone(), file.to_owned(), source.into());
        Failure::Passing(HubError::Connection { repo, file, source })
    }
}

pub(super) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
