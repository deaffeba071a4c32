//! What goes wrong with the database.

use std::{io, path::PathBuf};

/// [`std::result::Result`] with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store. After any of them the database is as before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data directory cannot be made or used.
    #[error("data directory {}: cannot be used", path.display())]
    Folder {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another worker uses the directory.
    #[error("data directory {}: another worker is using it", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is no database, or a damaged one.
    #[error("database {}: damaged ({reason}); move it away to start with an empty one", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The database was written by a later version of this program.
    #[error("database {}: has schema {found}, this version knows up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The latest schema known.
        known: i64,
    },
    /// There is no space left.
    #[error("the disk is full, nothing was recorded")]
    Full,
    /// Anything else that the database reports.
    #[error("the database failed")]
    Database(#[source] rusqlite::Error),
    /// A row holds what this program does not write.
    #[error("a record cannot be read")]
    Record(#[source] rusqlite::Error),
    /// The thread that asked the database is gone.
    #[error("the database request was abandoned")]
    Abandoned,
}

impl Error {
    /// Whether what was asked for is damaged. Any other failure may pass.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Record(_))
    }
}
