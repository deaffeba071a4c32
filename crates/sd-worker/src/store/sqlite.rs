//! Jobs in an SQLite database in write-ahead mode: one connection writes, one reads.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use time::OffsetDateTime;

use super::{Error, Result, schema};

/// The database's name in the data directory.
const FILE: &str = "jobs.db";
/// The name of the file that keeps a second worker out.
const LOCK: &str = "lock";
/// What the write-ahead log shrinks to after a large transaction.
const JOURNAL_BYTES: i64 = 64 << 20;
/// The tables that are checked at the start: without the pictures, which may take minutes.
const CHECKED: [&str; 7] = [
    "jobs",
    "labels",
    "submissions",
    "requests",
    "checkpoints",
    "marks",
    "callbacks",
];
/// Statements kept prepared per connection: there are fewer.
const STATEMENTS: usize = 64;

/// Jobs in an SQLite database. One process at a time may use it.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    /// Locked as long as it is open.
    _lock: File,
}

impl SqliteStore {
    /// Opens the database in `folder`, and makes both if need be.
    ///
    /// # Errors
    /// The folder cannot be used or belongs to another worker, or the database is damaged or of a later version.
    pub fn open(folder: &Path) -> Result<Self> {
        let lock = lock(folder)?;
        let path = folder.join(FILE);
        let open = || -> rusqlite::Result<_> {
            let mut writer = Connection::open(&path)?;
            // Must come before the first table. Deleted pictures give their space back, see `expire`.
            writer.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            writer.pragma_update(None, "journal_mode", "WAL")?;
            writer.pragma_update(None, "synchronous", "FULL")?;
            writer.pragma_update(None, "journal_size_limit", JOURNAL_BYTES)?;
            let later = schema::migrate(&mut writer)?;
            let reader = Connection::open(&path)?;
            for connection in [&writer, &reader] {
                connection.pragma_update(None, "foreign_keys", true)?;
                connection.set_prepared_statement_cache_capacity(STATEMENTS);
            }
            reader.pragma_update(None, "query_only", true)?;
            Ok((writer, reader, later))
        };
        let (writer, reader, later) = open().map_err(|error| failed(&path, error))?;
        if let Some(found) = later {
            return Err(Error::Newer {
                path,
                found,
                known: schema::VERSION,
            });
        }
        for table in CHECKED {
            let sql = format!("PRAGMA quick_check({table})");
            let damage: String = reader
                .query_row(&sql, [], |row| row.get(0))
                .map_err(|error| failed(&path, error))?;
            if damage != "ok" {
                let reason = format!("{table}: {damage}");
                return Err(Error::Corrupt { path, reason });
            }
        }
        Ok(Self {
            path,
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            _lock: lock,
        })
    }

    /// Runs `work` on the connection that reads.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&guard(&self.reader)).map_err(|error| failed(&self.path, error))
    }

    /// Runs `work` in a transaction: all of it happens, or nothing.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = guard(&self.writer);
        transact(&mut connection, work).map_err(|error| failed(&self.path, error))
    }
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// A connection whose last user panicked is sound: its transaction was rolled back.
fn guard(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock(folder: &Path) -> Result<File> {
    let error = |source| Error::Folder {
        path: folder.to_owned(),
        source,
    };
    fs::create_dir_all(folder).map_err(error)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(LOCK))
        .map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            path: folder.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

/// What an error of SQLite means to the operator.
fn failed(path: &Path, error: rusqlite::Error) -> Error {
    match &error {
        unreadable if is_unreadable(unreadable) => Error::Record(error),
        rusqlite::Error::SqliteFailure(code, reason) => match code.code {
            ErrorCode::DiskFull => Error::Full,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Error::Corrupt {
                path: path.to_owned(),
                reason: reason.clone().unwrap_or_else(|| code.to_string()),
            },
            _ => Error::Database(error),
        },
        _ => Error::Database(error),
    }
}

/// Whether a row holds what this program does not write.
fn is_unreadable(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
    )
}

/// Microseconds since 1970, as times are stored.
fn micros(time: OffsetDateTime) -> i64 {
    // A time crate's year has four digits: the product fits.
    (time.unix_timestamp_nanos() / 1000) as i64
}

/// What a column of counts holds. Counts beyond it do not occur: the largest is a number of steps or bytes.
fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
