//! Why a hub did not deliver.

use std::path::PathBuf;

/// Why a model could not be fetched. Messages name the repository, the file and what to do, never
/// the access token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// There is no place for a cache.
    #[error("there is no home folder to keep downloads in: set HF_HOME")]
    NoCache,

    /// Nothing of the repository is cached and connections are forbidden.
    #[error("{repo}: revision {revision} is not in {} and offline mode is on: unset HF_HUB_OFFLINE", cache_dir.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The cache that was searched.
        cache_dir: PathBuf,
    },

    /// The hub does not let us in (401).
    #[error(
        "{repo}: access to {file} is denied: check the name, and set HF_TOKEN if the repository is private or gated"
    )]
    Unauthorized {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },

    /// The hub does not let the token's owner in (403).
    #[error(
        "{repo}: access to {file} is refused: accept the licence at {page} and set HF_TOKEN to a token that may read it"
    )]
    Forbidden {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// Where the licence is.
        page: String,
    },

    /// There is no such repository or revision.
    #[error("{repo}: the hub has no such {what}: check the name")]
    NotFound {
        /// The repository.
        repo: String,
        /// What is not there.
        what: String,
    },

    /// The repository exists and holds something else.
    #[error("{repo}: there is no {file}, so this is not a model in the layout of diffusers")]
    NotAModel {
        /// The repository.
        repo: String,
        /// The missing file.
        file: String,
    },

    /// The hub answered with an error that is not ours.
    #[error("{repo}: the hub answered {status} for {file}: try again later")]
    Status {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The HTTP status.
        status: u16,
    },

    /// The hub cannot be reached, or the connection kept breaking. What arrived is kept and
    /// continued next time.
    #[error(
        "{repo}: the connection failed at {file}: check the network, or set HF_ENDPOINT to a mirror"
    )]
    Connection {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The last failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The answer makes no sense.
    #[error("{repo}: the hub's answer for {file} {reason}: is HF_ENDPOINT right?")]
    Protocol {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },

    /// What arrived is not what the hub announced; it has been deleted.
    #[error(
        "{repo}: {file} arrived damaged and was deleted: its SHA-256 is {found}, the hub says {expected}"
    )]
    Checksum {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The checksum of what arrived, in hexadecimal.
        found: String,
        /// The checksum that was announced.
        expected: String,
    },

    /// The cache cannot be written.
    #[error("cannot write {}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl HubError {
    /// `.map_err(HubError::cache(&path))`
    pub(super) fn cache(path: &std::path::Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Cache {
            path: path.to_owned(),
            source,
        }
    }
}
