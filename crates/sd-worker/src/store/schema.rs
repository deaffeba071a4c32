//! The tables, and how a database gets them.

use rusqlite::Connection;

/// The latest version of the schema, kept in `user_version`.
pub(super) const VERSION: i64 = 1;

/// What each version adds to the one before; the first makes a database of an empty file. A row in `jobs` owns its rows
/// everywhere else. Times are microseconds since 1970.
pub(super) const MIGRATIONS: [&str; VERSION as usize] = ["
CREATE TABLE jobs (
    id            TEXT PRIMARY KEY,             -- sorts by age
    operation     TEXT NOT NULL,
    state         TEXT NOT NULL,
    model         TEXT NOT NULL,
    request       TEXT NOT NULL,                -- JSON, without input pictures
    client        TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    deadline      INTEGER,
    callback_url  TEXT,
    previews      TEXT,                         -- JSON
    labels        TEXT NOT NULL,                -- JSON
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    finished_at   INTEGER,
    step          INTEGER NOT NULL,
    total         INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    calls         INTEGER NOT NULL DEFAULT 0,   -- UNet calls, as of the checkpoint
    deaths        INTEGER NOT NULL DEFAULT 0,
    died_at       INTEGER,                      -- UNet call
    error         TEXT,                         -- JSON
    images        TEXT NOT NULL DEFAULT '[]',   -- JSON
    image_bytes   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_by_client ON jobs (client, id);
CREATE INDEX jobs_by_end ON jobs (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE labels (
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    job_id  TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    PRIMARY KEY (name, value, job_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_of_job ON labels (job_id);

CREATE TABLE submissions (
    client       TEXT NOT NULL,
    key          TEXT NOT NULL,
    body_sha256  BLOB NOT NULL,
    job_id       TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    PRIMARY KEY (client, key)
) STRICT;
CREATE INDEX submissions_of_job ON submissions (job_id);

-- Of unfinished jobs only.
CREATE TABLE requests (
    job_id   TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    request  TEXT NOT NULL                      -- JSON, with input pictures
) STRICT;
CREATE TABLE checkpoints (
    job_id    TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    snapshot  BLOB NOT NULL
) STRICT;
CREATE TABLE marks (
    job_id  TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    call    INTEGER NOT NULL
) STRICT;

-- Of finished jobs only.
CREATE TABLE images (
    job_id  TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    png     BLOB NOT NULL,
    PRIMARY KEY (job_id, number)
) STRICT;
CREATE TABLE callbacks (
    job_id  TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    tries   INTEGER NOT NULL,
    due     INTEGER NOT NULL
) STRICT;
CREATE INDEX callbacks_by_time ON callbacks (due);
"];

/// Brings the database to [`VERSION`]. Returns its version if that is later than what is known.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<Option<i64>> {
    let transaction = connection.transaction()?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = usize::try_from(found)
        .ok()
        .and_then(|found| MIGRATIONS.get(found..))
    else {
        return Ok(Some(found));
    };
    for migration in missing {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(None)
}
