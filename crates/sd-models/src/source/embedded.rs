//! Files compiled into the program.

use super::{EmbeddedModel, FileData, Store, StoredFile};
use crate::Result;

impl Store for EmbeddedModel {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn find(&self, path: &str) -> Result<Option<StoredFile>> {
        let found = self.files.iter().find(|(name, _)| *name == path);
        Ok(found.map(|(name, bytes)| StoredFile {
            name: (*name).to_owned(),
            data: FileData::Static(bytes),
        }))
    }
}
