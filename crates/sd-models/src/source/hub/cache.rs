//! The cache of `huggingface_hub`: `models--org--name/{blobs,refs,snapshots,.no_exist}`.
//!
//! A blob is a file under its checksum, a snapshot a tree of links to blobs under a commit, a ref
//! the commit that a branch last was. `.no_exist` remembers what a commit does not have.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{CacheRepo, Repo, RepoType};

use super::HubError;

pub(super) struct Cache {
    root: PathBuf,
    repo: CacheRepo,
    folder: String,
    revision: String,
}

/// The right to write one blob, until it is dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file unlocks it")] File);

impl Cache {
    /// `repo` and `revision` are safe in paths.
    pub(super) fn new(root: &Path, repo: &str, revision: &str) -> Self {
        let id = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
        Self {
            root: root.to_owned(),
            folder: id.folder_name(),
            repo: hf_hub::Cache::new(root.to_owned()).repo(id),
            revision: revision.to_owned(),
        }
    }

    /// The commit that the revision is, as far as the cache knows.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return self
                .repo
                .pointer_path(&self.revision)
                .is_dir()
                .then(|| self.revision.clone());
        }
        let path = self
            .root
            .join(&self.folder)
            .join("refs")
            .join(&self.revision);
        let commit = fs::read_to_string(path).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Notes that the revision is `commit` now.
    pub(super) fn remember(&self, commit: &str) -> Result<(), HubError> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        self.repo
            .create_ref(commit)
            .map_err(HubError::cache(&self.root))
    }

    /// A file of a commit, if it is here.
    pub(super) fn get(&self, commit: &str, path: &str) -> Option<PathBuf> {
        let full = self.repo.pointer_path(commit).join(path);
        full.is_file().then_some(full)
    }

    fn absent(&self, commit: &str, path: &str) -> PathBuf {
        self.root
            .join(&self.folder)
            .join(".no_exist")
            .join(commit)
            .join(path)
    }

    pub(super) fn is_known_absent(&self, commit: &str, path: &str) -> bool {
        self.absent(commit, path).is_file()
    }

    pub(super) fn remember_absent(&self, commit: &str, path: &str) -> Result<(), HubError> {
        let marker = self.absent(commit, path);
        create_parent(&marker)
            .and_then(|()| fs::write(&marker, ""))
            .map_err(HubError::cache(&marker))
    }

    /// Where the file of checksum `etag` lies.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }

    /// Where it grows.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(&format!("{etag}.incomplete"))
    }

    /// Waits until nobody else writes the blob `etag`.
    pub(super) fn lock(&self, etag: &str) -> Result<Lock, HubError> {
        let path = self
            .root
            .join(".locks")
            .join(&self.folder)
            .join(format!("{etag}.lock"));
        let lock = || {
            create_parent(&path)?;
            create_parent(&self.blob(etag))?;
            let file = File::create(&path)?;
            if file.try_lock().is_err() {
                tracing::info!("waiting for another download of {}", path.display());
                file.lock()?;
            }
            Ok(Lock(file))
        };
        lock().map_err(HubError::cache(&path))
    }

    /// Lets `path` of `commit` be the blob `etag`.
    pub(super) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<PathBuf, HubError> {
        let full = self.repo.pointer_path(commit).join(path);
        let link = || {
            if full.is_file() {
                return Ok(full.clone());
            }
            create_parent(&full)?;
            // Left over from a blob that was deleted.
            if full.is_symlink() {
                fs::remove_file(&full)?;
            }
            // snapshots/commit/path: as many levels up as `path` has, and two.
            let up = "../".repeat(path.split('/').count() + 1);
            if symlink(Path::new(&format!("{up}blobs/{etag}")), &full).is_err() {
                fs::copy(self.blob(etag), &full)?;
            }
            Ok(full.clone())
        };
        link().map_err(HubError::cache(&full))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Elsewhere links need privileges; the caller copies instead.
#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

fn create_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Whether `text` is a full git commit, and so is safe in a path.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
