//! The SHA-256 of files, without reading gigabytes twice.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rayon::prelude::*;

use crate::sha256::Hasher;
use crate::source::{FileData, StoredFile};
use crate::{Error, Result};

/// Hashes of files that were read before, as long as the files stay as they were. Clones share what they know: a program
/// that loads models again and again gives the same one to every [`LoadOptions`](crate::LoadOptions).
#[derive(Debug, Clone, Default)]
pub struct FileHashes(Arc<Mutex<HashMap<FileState, String>>>);

/// What changes when a file does.
#[derive(Debug, PartialEq, Eq, Hash)]
struct FileState {
    path: PathBuf,
    length: u64,
    modified: Option<SystemTime>,
    /// Device and inode: a file renamed into place may be as old and as long as the one before.
    inode: Option<(u64, u64)>,
}

impl FileHashes {
    /// The hash of each file, 64 hexadecimal digits.
    pub(crate) fn of(&self, files: &[StoredFile]) -> Result<Vec<String>> {
        files.par_iter().map(|file| self.of_file(file)).collect()
    }

    fn of_file(&self, file: &StoredFile) -> Result<String> {
        let path = match &file.data {
            FileData::Static(bytes) => return Ok(Hasher::of(bytes)),
            FileData::Path(path) => path,
        };
        self.of_path(path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })
    }

    fn of_path(&self, path: &Path) -> io::Result<String> {
        if let Some(name) = blob_name(path) {
            return Ok(name);
        }
        let state = FileState::of(path)?;
        if let Some(known) = self.lock().get(&state) {
            return Ok(known.clone());
        }
        let mut hasher = Hasher::default();
        io::copy(&mut File::open(path)?, &mut hasher)?;
        let hash = hasher.hex();
        // Not if it was written to meanwhile.
        if FileState::of(path)? == state {
            self.lock().insert(state, hash.clone());
        }
        Ok(hash)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileState, String>> {
        // The map is valid after every single insertion.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileState {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
            inode: inode(&metadata),
        })
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// In the cache of Hugging Face a large file is a link to `blobs/` and its hash, which was checked when it was fetched.
fn blob_name(path: &Path) -> Option<String> {
    let blob = fs::read_link(path).ok()?;
    let name = blob.file_name()?.to_str()?;
    let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hash && blob.parent()?.ends_with("blobs")).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(hashes: &FileHashes) -> usize {
        hashes.lock().len()
    }

    #[test]
    fn a_file_is_read_again_only_when_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, "abc").unwrap();
        let hashes = FileHashes::default();
        let first = hashes.of_path(&path).unwrap();
        assert_eq!(
            first,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // A clone knows it, too: this would be a miss otherwise.
        let state = FileState::of(&path).unwrap();
        hashes.lock().insert(state, "from memory".into());
        assert_eq!(hashes.clone().of_path(&path).unwrap(), "from memory");

        // As long, and by a rename as old: only the inode tells.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "abd").unwrap();
        File::open(&other).unwrap().set_modified(modified).unwrap();
        fs::rename(&other, &path).unwrap();
        if cfg!(unix) {
            assert_eq!(hashes.of_path(&path).unwrap(), Hasher::of(b"abd"));
        }
        fs::write(&path, "abcd").unwrap();
        assert_eq!(hashes.of_path(&path).unwrap(), Hasher::of(b"abcd"));
    }

    #[cfg(unix)]
    #[test]
    fn blobs_are_taken_by_their_names() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let hash = "0123456789abcdef".repeat(4);
        for (blobs, name, counts) in [
            ("blobs", &*hash, true),
            ("blobs", "0123", false),
            ("files", &*hash, false),
        ] {
            let blobs = folder.path().join(blobs);
            fs::create_dir_all(&blobs).unwrap();
            fs::write(blobs.join(name), "abc").unwrap();
            let link = folder.path().join("link");
            let _ = fs::remove_file(&link);
            symlink(blobs.join(name), &link).unwrap();
            let hashes = FileHashes::default();
            let found = hashes.of_path(&link).unwrap();
            assert_eq!(found == hash, counts, "{}", link.display());
            assert_eq!(known(&hashes), usize::from(!counts));
        }
    }
}
