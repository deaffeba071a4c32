//! Models by Hugging Face repository id, kept in the cache that all Hugging Face libraries share.
//!
//! The layout of the cache comes from `hf-hub`. The transfer is our own: hf-hub 0.5 neither
//! compares a file with its checksum nor survives odd answers (it trusts an ETag as a file name,
//! appends a full body to a partial file, and panics on a redirect without a target).

mod cache;
mod client;
mod download;
mod error;
mod options;

use cache::Cache;
use client::{Answer, Client};
use download::Download;
pub use error::HubError;
pub use options::{HubOptions, Token};

use super::{FileData, ProgressFn, Store, StoredFile};
use crate::Result;

/// One revision of a repository.
pub(super) struct HubStore {
    repo: String,
    revision: String,
    cache: Cache,
    /// What the revision is, fixed when the store is opened: files that arrive later belong
    /// together.
    commit: String,
    /// None: the cache alone.
    client: Option<Client>,
}

impl HubStore {
    /// Looks the revision up: one request, none if it is a commit that the cache knows or if
    /// `options.offline`. When the hub cannot be reached or is out of order, the commit that the
    /// revision last was does as well.
    pub(super) fn open(
        options: &HubOptions,
        repo: &str,
        revision: &str,
        progress: Option<ProgressFn>,
    ) -> Result<Self, HubError> {
        let cache = Cache::new(&options.cache_dir, repo, revision);
        let cached = cache.commit();
        let store = |commit, client| Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            cache,
            commit,
            client,
        };
        if options.offline {
            let commit = cached.ok_or_else(|| HubError::Offline {
                repo: repo.to_owned(),
                revision: revision.to_owned(),
                cache_dir: options.cache_dir.clone(),
            })?;
            return Ok(store(commit, None));
        }
        let client = Client::new(options, repo, progress);
        if let Some(commit) = cached.clone().filter(|commit| commit == revision) {
            return Ok(store(commit, Some(client)));
        }
        let index = sd_config::files::MODEL_INDEX;
        match client.head(revision, index, cached.is_none()) {
            Ok(Answer::Found(remote)) => {
                let store = store(remote.commit, Some(client));
                store.cache.remember(&store.commit)?;
                Ok(store)
            }
            Ok(Answer::Absent) => Err(HubError::NotAModel {
                repo: repo.to_owned(),
                file: index.to_owned(),
            }),
            Err(error @ (HubError::Connection { .. } | HubError::Status { .. })) => match cached {
                Some(commit) => {
                    tracing::warn!("{error}; the cached files are used");
                    Ok(store(commit, None))
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

impl Store for HubStore {
    fn name(&self) -> String {
        let only = if self.client.is_none() {
            " (cached files only)"
        } else {
            ""
        };
        format!("{}@{}{only}", self.repo, self.revision)
    }

    fn find(&self, path: &str) -> Result<Option<StoredFile>> {
        let found = |full| {
            Some(StoredFile {
                name: path.to_owned(),
                data: FileData::Path(full),
            })
        };
        if let Some(full) = self.cache.get(&self.commit, path) {
            return Ok(found(full));
        }
        let Some(client) = self
            .client
            .as_ref()
            .filter(|_| !self.cache.is_known_absent(&self.commit, path))
        else {
            return Ok(None);
        };
        match client.head(&self.commit, path, true)? {
            Answer::Absent => {
                self.cache.remember_absent(&self.commit, path)?;
                Ok(None)
            }
            Answer::Found(remote) => {
                let _lock = self.cache.lock(&remote.etag)?;
                let blob = self.cache.blob(&remote.etag);
                // Another process may have fetched it while we waited, or another revision holds
                // the same file.
                if !blob.is_file() {
                    let partial = self.cache.partial(&remote.etag);
                    let download = Download {
                        client,
                        file: path,
                        commit: &self.commit,
                        remote: &remote,
                        partial: &partial,
                    };
                    download.run(&blob)?;
                }
                Ok(found(self.cache.link(&self.commit, path, &remote.etag)?))
            }
        }
    }

    fn exists(&self, path: &str) -> Result<bool> {
        if self.cache.get(&self.commit, path).is_some() {
            return Ok(true);
        }
        match &self.client {
            Some(client) => Ok(matches!(
                client.head(&self.commit, path, true)?,
                Answer::Found(_)
            )),
            None => Ok(false),
        }
    }
}
