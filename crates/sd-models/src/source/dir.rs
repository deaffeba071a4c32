//! A folder on disk.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{FileData, Store, StoredFile};
use crate::{Error, Result};

/// Extensions of files written by Python's pickle.
const PICKLES: [&str; 4] = ["ckpt", "pt", "pth", "bin"];

const HINT: &str = ": a model is a folder in the layout of diffusers, \
    a single-file checkpoint has to be converted";

pub(super) struct DirStore {
    root: PathBuf,
}

impl DirStore {
    /// # Errors
    /// `root` is no folder, or lacks the table of contents and holds a single-file checkpoint
    /// instead.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let read = |source| Error::Read {
            path: root.to_owned(),
            source,
        };
        let metadata = root.metadata().map_err(read)?;
        let index = sd_config::files::MODEL_INDEX;
        if metadata.is_dir() && root.join(index).is_file() {
            return Ok(Self {
                root: root.to_owned(),
            });
        }
        let files = match metadata.is_dir() {
            true => {
                let entries = root.read_dir().map_err(read)?;
                entries.flatten().map(|entry| entry.path()).collect()
            }
            false => vec![root.to_owned()],
        };
        let model = root.display().to_string();
        let pickle = files.iter().find(|path| is_pickle(path));
        if let Some(name) = pickle.and_then(|path| path.file_name()) {
            let file = name.display().to_string();
            return Err(Error::Pickle { model, file });
        }
        Err(Error::MissingFile {
            model,
            expected: index.to_owned(),
            hint: HINT,
        })
    }
}

pub(crate) fn is_pickle(path: &Path) -> bool {
    let extension = path.extension();
    extension.is_some_and(|found| {
        PICKLES
            .iter()
            .any(|known| found.eq_ignore_ascii_case(known))
    })
}

impl Store for DirStore {
    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn find(&self, path: &str) -> Result<Option<StoredFile>> {
        let full = self.root.join(path);
        match full.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(Some(StoredFile {
                name: path.to_owned(),
                data: FileData::Path(full),
            })),
            Ok(_) => Ok(None),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(source) => Err(Error::Read { path: full, source }),
        }
    }
}
