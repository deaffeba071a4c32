//! Where a model's files come from.

mod dir;
mod embedded;
#[cfg(feature = "hub")]
mod hub;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

pub(crate) use dir::is_pickle;
#[cfg(feature = "hub")]
pub use hub::{HubError, HubOptions, Token};

use crate::{Error, LoadOptions, Result};

/// The longest text file that is read; CLIP's `tokenizer.json` has 4 MB.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A model in the diffusers layout, by name.
///
/// ```
/// use sd_models::ModelSource;
///
/// let source: ModelSource = "stabilityai/sdxl-turbo@main".parse()?;
/// assert!(matches!(source, ModelSource::Hub { revision: Some(_), .. }));
/// assert!(matches!("./sdxl".parse()?, ModelSource::Dir(_)));
/// assert!("sdxl".parse::<ModelSource>().is_err());
/// # Ok::<(), sd_models::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder.
    Dir(PathBuf),
    /// A repository of a Hugging Face hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, tag or commit; none is `main`.
        revision: Option<String>,
    },
    /// Files compiled into the program.
    Embedded(EmbeddedModel),
}

/// A model compiled into the program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedModel {
    /// What messages call it.
    pub name: &'static str,
    /// Paths in the diffusers layout, such as `unet/config.json`, and the files' bytes.
    pub files: &'static [(&'static str, &'static [u8])],
}

/// How far a download is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadProgress {
    /// Path in the repository.
    pub file: String,
    /// Bytes that have arrived, those of earlier attempts included.
    pub downloaded: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Called about once a megabyte and once at the end of each file; the download waits for it.
pub type ProgressFn = Arc<dyn Fn(&DownloadProgress) + Send + Sync>;

/// A model's files, wherever they are.
pub(crate) trait Store {
    /// The model's name in messages.
    fn name(&self) -> String;

    /// The file at `path` in the diffusers layout, fetched if need be; None if the model has no
    /// such file.
    fn find(&self, path: &str) -> Result<Option<StoredFile>>;

    /// Whether [`find`](Self::find) would find it.
    fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.find(path)?.is_some())
    }
}

/// A file that is at hand.
#[derive(Debug, Clone)]
pub(crate) struct StoredFile {
    /// Path in the diffusers layout.
    pub(crate) name: String,
    pub(crate) data: FileData,
}

#[derive(Clone)]
pub(crate) enum FileData {
    Path(PathBuf),
    Static(&'static [u8]),
}

impl ModelSource {
    /// Access to the files. For a hub this is where the revision is looked up.
    pub(crate) fn open(&self, options: &LoadOptions) -> Result<Box<dyn Store>> {
        match self {
            Self::Dir(root) => Ok(Box::new(dir::DirStore::new(root)?)),
            Self::Embedded(model) => Ok(Box::new(*model)),
            #[cfg(feature = "hub")]
            Self::Hub { repo, revision } => {
                let hub = options.hub.as_ref().ok_or_else(|| Error::HubUnavailable {
                    repo: repo.clone(),
                    reason: "the load options have no hub (HubOptions::from_env)",
                })?;
                let revision = revision.as_deref().unwrap_or("main");
                // The fields are public: not every value has gone through `from_str`.
                if !is_repo_id(repo) || !is_revision(revision) {
                    return Err(Error::Source(self.to_string()));
                }
                Ok(Box::new(hub::HubStore::open(
                    hub,
                    repo,
                    revision,
                    options.progress.clone(),
                )?))
            }
            #[cfg(not(feature = "hub"))]
            Self::Hub { repo, .. } => {
                let _ = options;
                Err(Error::HubUnavailable {
                    repo: repo.clone(),
                    reason: "this program was built without the feature `hub`",
                })
            }
        }
    }
}

impl FromStr for ModelSource {
    type Err = Error;

    /// An existing path, and anything that starts like a path, is a folder; `org/name` and
    /// `org/name@revision` are a repository.
    fn from_str(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let explicit =
            ["./", "../"].iter().any(|start| text.starts_with(start)) || matches!(text, "." | "..");
        if explicit || path.is_absolute() || path.exists() {
            return Ok(Self::Dir(path.to_owned()));
        }
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        if is_repo_id(repo) && revision.is_none_or(is_revision) {
            return Ok(Self::Hub {
                repo: repo.to_owned(),
                revision: revision.map(str::to_owned),
            });
        }
        Err(Error::Source(text.to_owned()))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "{}", path.display()),
            Self::Hub {
                repo,
                revision: None,
            } => f.write_str(repo),
            Self::Hub {
                repo,
                revision: Some(revision),
            } => write!(f, "{repo}@{revision}"),
            Self::Embedded(model) => f.write_str(model.name),
        }
    }
}

impl fmt::Debug for EmbeddedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EmbeddedModel({}, {} files)",
            self.name,
            self.files.len()
        )
    }
}

impl fmt::Debug for FileData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Static(bytes) => write!(f, "[{} bytes]", bytes.len()),
        }
    }
}

impl StoredFile {
    /// The file as text.
    pub(crate) fn text(&self) -> Result<String> {
        let (path, read) = match &self.data {
            FileData::Path(path) => (path.as_path(), read_limited(path)),
            FileData::Static(bytes) => (Path::new(&self.name), Ok(bytes.to_vec())),
        };
        let text = read.and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| std::io::ErrorKind::InvalidData.into())
        });
        text.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })
    }
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_TEXT_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(std::io::Error::other("the text is longer than 64 MiB"));
    }
    Ok(bytes)
}

/// Whether `text` is `org/name` as the hub allows it, and so is safe in a path and in a URL.
fn is_repo_id(text: &str) -> bool {
    text.split('/').count() == 2 && text.split('/').all(is_path_part)
}

/// Whether `text` is a branch, tag or commit that is safe in a path and in a URL.
fn is_revision(text: &str) -> bool {
    text.split('/').all(is_path_part)
}

/// Whether `text` is one component of a path, goes nowhere else, and needs no escaping.
pub(crate) fn is_path_part(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=128).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_nothing_or_leave_the_cache_are_refused() {
        for text in [
            "", "sdxl", "a/b/c", "a//b", "../x/..", "a/..", "a/b@", "a/b@../c", "a/b c", "a\\b",
            "a/b@x@y", "/x",
        ] {
            let parsed = text.parse::<ModelSource>();
            assert!(
                !matches!(parsed, Ok(ModelSource::Hub { .. })),
                "{text}: {parsed:?}"
            );
        }
    }

    #[test]
    fn repositories_and_folders_are_told_apart() {
        let hub = |repo: &str, revision: Option<&str>| ModelSource::Hub {
            repo: repo.into(),
            revision: revision.map(Into::into),
        };
        assert_eq!(
            "a-b/c_d.e".parse::<ModelSource>().unwrap(),
            hub("a-b/c_d.e", None)
        );
        assert_eq!(
            "a/b@refs/pr/5".parse::<ModelSource>().unwrap(),
            hub("a/b", Some("refs/pr/5"))
        );
        let dir = tempfile::tempdir().unwrap();
        for text in [dir.path().to_str().unwrap(), "./no/such", "/no/such", "src"] {
            assert_eq!(
                text.parse::<ModelSource>().unwrap(),
                ModelSource::Dir(text.into())
            );
        }
        assert_eq!(hub("a/b", Some("v1")).to_string(), "a/b@v1");
    }
}
