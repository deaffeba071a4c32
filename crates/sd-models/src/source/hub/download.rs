//! Downloads that survive a broken connection and refuse a damaged file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use ureq::Body;

use super::HubError;
use super::client::{Client, Failure, Remote, header};
use crate::DownloadProgress;
use crate::sha256::Hasher;

/// How far a download runs between two reports, in bytes.
const REPORT_EVERY: u64 = 1 << 20;

/// One file on its way.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    /// Path in the repository.
    pub(super) file: &'a str,
    pub(super) commit: &'a str,
    pub(super) remote: &'a Remote,
    /// Where it grows; what is there already is continued.
    pub(super) partial: &'a Path,
}

impl Download<'_> {
    /// Fetches the file, checks it, and moves it to `target`.
    pub(super) fn run(&self, target: &Path) -> Result<(), HubError> {
        let length = || fs::metadata(self.partial).map_or(0, |metadata| metadata.len());
        let mut continued = length() > 0;
        loop {
            let mut reached = length();
            let progressed = || {
                let (before, now) = (reached, length());
                // Not less: a hub that starts anew each time makes no progress.
                reached = before.max(now);
                before < now
            };
            let client = self.client;
            let fetched = client.retry(client.retries, progressed, || self.attempt());
            let failure = match fetched.and_then(|()| self.verify()) {
                Ok(()) => return fs::rename(self.partial, target).map_err(self.failed()),
                Err(error @ (HubError::Protocol { .. } | HubError::Checksum { .. })) => error,
                Err(error) => return Err(error),
            };
            fs::remove_file(self.partial).map_err(self.failed())?;
            // The damage may have been in the part that was there before.
            if !std::mem::take(&mut continued) {
                return Err(failure);
            }
        }
    }

    /// Appends what is missing.
    fn attempt(&self) -> Result<(), Failure> {
        let open = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.partial);
        let mut out = open.map_err(self.failed())?;
        let mut start = out.metadata().map_err(self.failed())?.len();
        let size = self.remote.size;
        if size.is_some_and(|size| start > size) {
            out.set_len(0).map_err(self.failed())?;
            start = 0;
        }
        if size == Some(start) {
            return Ok(());
        }
        let response = self.client.get(self.commit, self.file, start)?;
        let range = header(&response, "content-range");
        match response.status().as_u16() {
            // The whole file, asked for or not.
            200 => {
                out.set_len(0).map_err(self.failed())?;
                start = 0;
            }
            206 if range.is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) => {}
            206 => return Err(self.protocol("is another part of the file than was asked for")),
            416 => {
                out.set_len(0).map_err(self.failed())?;
                let reason = "refuses to continue the file";
                return Err(Failure::Passing(self.client.protocol(self.file, reason)));
            }
            status => return Err(self.client.refusal(status, self.file)),
        }
        let rest = header(&response, "content-length").and_then(|rest| rest.parse::<u64>().ok());
        let total = size.or_else(|| start.checked_add(rest?));
        self.copy(response.into_body(), start, total, &mut out)
    }

    /// Appends `body`, from byte `start` of the file up to `total`.
    fn copy(
        &self,
        body: Body,
        start: u64,
        total: Option<u64>,
        out: &mut File,
    ) -> Result<(), Failure> {
        let mut body = body.into_reader();
        let mut buffer = vec![0; 1 << 16];
        let (mut downloaded, mut reported) = (start, start);
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.client.broken(self.file, error)),
            };
            downloaded = downloaded.saturating_add(read as u64);
            if total.is_some_and(|total| downloaded > total) {
                return Err(self.protocol("is longer than announced"));
            }
            out.write_all(&buffer[..read]).map_err(self.failed())?;
            if downloaded - reported >= REPORT_EVERY {
                reported = downloaded;
                self.report(downloaded, total.unwrap_or(downloaded));
            }
        }
        if let Some(total) = total.filter(|total| downloaded < *total) {
            let short = format!("{downloaded} of {total} bytes arrived");
            return Err(self.client.broken(self.file, short));
        }
        self.report(downloaded, downloaded);
        Ok(())
    }

    fn report(&self, downloaded: u64, total: u64) {
        if let Some(progress) = &self.client.progress {
            let file = self.file.to_owned();
            progress(&DownloadProgress {
                file,
                downloaded,
                total,
            });
        }
    }

    /// Compares a large file with its checksum. Of small ones the hub gives a git hash, and their
    /// size, which has been compared, has to do.
    fn verify(&self) -> Result<(), HubError> {
        let expected = &self.remote.etag;
        if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(());
        }
        let mut hasher = Hasher::default();
        let hashed = File::open(self.partial).and_then(|mut file| io::copy(&mut file, &mut hasher));
        hashed.map_err(self.failed())?;
        let found = hasher.hex();
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(HubError::Checksum {
            repo: self.client.repo.clone(),
            file: self.file.to_owned(),
            found,
            expected: expected.clone(),
        })
    }

    fn protocol(&self, reason: &str) -> Failure {
        self.client.protocol(self.file, reason).into()
    }

    /// `.map_err(self.failed())`: the partial file cannot be written.
    fn failed(&self) -> impl Fn(io::Error) -> HubError {
        HubError::cache(self.partial)
    }
}
