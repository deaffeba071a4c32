//! Records to rows: what the engine asks of its store.

use rusqlite::{Connection, Transaction};
use sd_pipeline::Request;
use serde::Serialize;
use time::OffsetDateTime;

use super::{SqliteStore, count, failed, guard, is_unreadable, micros, read, transact};
use crate::{
    jobs::{Filter, Idempotency, Job, JobId, Page, State},
    store::{
        Callback, Checkpoint, End, JobStore, NewJob, Outcome, Result, Retention, Submitted,
        Unfinished, schema,
    },
};

/// Pages given back to the file system at once, 4 KiB each: enough for most expiries, little enough to be quick.
const VACUUM_PAGES: i64 = 65_536;

impl JobStore for SqliteStore {
    fn submitted(&self, client: &str, idempotency: &Idempotency) -> Result<Submitted> {
        self.read(|connection| read::submitted(connection, client, idempotency))
    }

    fn insert(&self, new: &NewJob) -> Result<Submitted> {
        self.write(|transaction| {
            let (job, id) = (&new.job, new.job.id.to_string());
            if let Some(idempotency) = &new.idempotency {
                match read::submitted(transaction, &job.client, idempotency)? {
                    Submitted::New => {}
                    before => return Ok(before),
                }
            }
            insert_job(transaction, job)?;
            execute(
                transaction,
                "INSERT INTO requests VALUES (?1, ?2)",
                (&id, json(&new.request)?),
            )?;
            for (name, value) in &job.labels {
                execute(
                    transaction,
                    "INSERT INTO labels VALUES (?1, ?2, ?3)",
                    (name, value, &id),
                )?;
            }
            if let Some(Idempotency { key, body_sha256 }) = &new.idempotency {
                execute(
                    transaction,
                    "INSERT INTO submissions VALUES (?1, ?2, ?3, ?4)",
                    (&job.client, key, body_sha256.as_slice(), &id),
                )?;
            }
            Ok(Submitted::New)
        })
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        self.read(|connection| read::job(connection, id))
    }

    fn list(&self, filter: &Filter) -> Result<Page> {
        self.read(|connection| read::list(connection, filter))
    }

    fn request(&self, id: JobId) -> Result<Option<Request>> {
        let sql = "SELECT request FROM requests WHERE job_id = ?1";
        self.read(|connection| {
            let text: Option<String> = read::value(connection, sql, [id.to_string()])?;
            text.map(|text| read::request(&text)).transpose()
        })
    }

    fn image(&self, id: JobId, index: usize) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT png FROM images WHERE job_id = ?1 AND number = ?2";
        self.read(|connection| read::value(connection, sql, (id.to_string(), count(index))))
    }

    fn recover(&self, now: OffsetDateTime) -> Result<Vec<Unfinished>> {
        self.write(|transaction| {
            // In company anybody may have done it: that makes a suspect, but is no death of its own.
            transaction.execute_batch(
                "UPDATE jobs SET deaths = CASE WHEN marks.call <= died_at THEN deaths ELSE 0 END
                                          + ((SELECT count(*) FROM marks) = 1),
                                 died_at = marks.call
                     FROM marks WHERE marks.job_id = jobs.id;
                 DELETE FROM marks;",
            )?;
            let mut unfinished = vec![];
            for (id, found) in read::unfinished(transaction)? {
                match found {
                    Err(error) if is_unreadable(&error) => {
                        tracing::error!(job = id, "failed, its record cannot be read: {error}");
                        let end = End {
                            outcome: Outcome::unreadable(),
                            step: 0,
                            total: 0,
                            at: now,
                        };
                        end_job(transaction, &id, &end)?;
                        drop_callback(transaction, &id)?;
                    }
                    found => unfinished.push(found?),
                }
            }
            Ok(unfinished)
        })
    }

    fn begin(&self, id: JobId, now: OffsetDateTime) -> Result<bool> {
        self.write(|transaction| {
            let changed = execute(
                transaction,
                "UPDATE jobs SET state = 'running', attempts = attempts + 1,
                                 started_at = coalesce(started_at, ?2)
                     WHERE id = ?1 AND state IN ('queued', 'running')",
                (id.to_string(), micros(now)),
            )?;
            Ok(changed == 1)
        })
    }

    fn mark(&self, jobs: &[(JobId, usize)]) -> Result<()> {
        let mut connection = guard(&self.writer);
        let mark = |connection: &mut Connection| {
            // What the operating system has survives this process: no need to wait for the disk at each step.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let marked = transact(connection, |transaction| {
                execute(transaction, "DELETE FROM marks", ())?;
                for (id, call) in jobs {
                    execute(
                        transaction,
                        // A job that was removed meanwhile needs no mark.
                        "INSERT INTO marks SELECT id, ?2 FROM jobs WHERE id = ?1",
                        (id.to_string(), count(*call)),
                    )?;
                }
                Ok(())
            });
            connection.pragma_update(None, "synchronous", "FULL")?;
            marked
        };
        mark(&mut connection).map_err(|error| failed(&self.path, error))
    }

    fn checkpoint(&self, checkpoints: &[Checkpoint]) -> Result<()> {
        self.write(|transaction| {
            for checkpoint in checkpoints {
                let id = checkpoint.id.to_string();
                let changed = execute(
                    transaction,
                    "UPDATE jobs SET step = ?2, total = ?3, calls = ?4,
                                     deaths = CASE WHEN ?4 > died_at THEN 0 ELSE deaths END,
                                     died_at = CASE WHEN ?4 > died_at THEN NULL ELSE died_at END
                         WHERE id = ?1 AND state = 'running'",
                    (
                        &id,
                        count(checkpoint.step),
                        count(checkpoint.total),
                        count(checkpoint.calls),
                    ),
                )?;
                if changed == 1 {
                    execute(
                        transaction,
                        "INSERT OR REPLACE INTO checkpoints VALUES (?1, ?2)",
                        (&id, &checkpoint.snapshot),
                    )?;
                }
            }
            Ok(())
        })
    }

    fn last_checkpoint(&self, id: JobId) -> Result<Option<Checkpoint>> {
        self.read(|connection| read::checkpoint(connection, id))
    }

    fn release(&self, jobs: &[JobId]) -> Result<()> {
        self.write(|transaction| {
            execute(transaction, "DELETE FROM marks", ())?;
            for id in jobs {
                execute(
                    transaction,
                    "UPDATE jobs SET attempts = attempts - 1 WHERE id = ?1 AND attempts > 0 AND state = 'running'",
                    [id.to_string()],
                )?;
            }
            Ok(())
        })
    }

    fn finish(&self, id: JobId, end: &End) -> Result<Option<Job>> {
        let ended = self.write(|transaction| {
            let name = id.to_string();
            if !end_job(transaction, &name, end)? {
                return Ok(None);
            }
            match read::job(transaction, id) {
                Err(error) if is_unreadable(&error) => {
                    drop_callback(transaction, &name)?;
                    Ok(Some(Err(error)))
                }
                job => Ok(job?.map(Ok)),
            }
        })?;
        ended.transpose().map_err(|error| failed(&self.path, error))
    }

    fn expire(&self, retention: &Retention, now: OffsetDateTime) -> Result<Vec<JobId>> {
        let oldest = time::Duration::try_from(retention.max_age)
            .ok()
            .and_then(|age| now.checked_sub(age))
            .map_or(i64::MIN, micros);
        let max_bytes = i64::try_from(retention.max_bytes).unwrap_or(i64::MAX);
        let removed = self.write(|transaction| {
            transaction
                .prepare_cached(
                    "DELETE FROM jobs WHERE (finished_at < ?1 OR id IN (
                         SELECT id FROM (
                             SELECT id, sum(image_bytes) OVER (ORDER BY finished_at DESC, id DESC) AS bytes
                                 FROM jobs WHERE finished_at IS NOT NULL)
                             WHERE bytes > ?2))
                         AND NOT (?3 AND EXISTS (SELECT 1 FROM callbacks WHERE job_id = jobs.id))
                     RETURNING id",
                )?
                .query_map((oldest, max_bytes, retention.callbacks), |row| {
                    read::parsed(row, "id")
                })?
                .collect::<rusqlite::Result<Vec<JobId>>>()
        })?;
        // One page a row: all of them have to be asked for.
        guard(&self.writer)
            .pragma(None, "incremental_vacuum", VACUUM_PAGES, |_| Ok(()))
            .map_err(|error| failed(&self.path, error))?;
        Ok(removed)
    }

    fn probe(&self) -> Result<()> {
        self.write(|transaction| transaction.pragma_update(None, "user_version", schema::VERSION))
    }

    fn next_callback(&self, free: &dyn Fn(&str) -> bool) -> Result<Option<Callback>> {
        self.read(|connection| read::next_callback(connection, free))
    }

    fn retry_callback(&self, id: JobId, due: OffsetDateTime) -> Result<()> {
        self.write(|transaction| {
            let sql = "UPDATE callbacks SET tries = tries + 1, due = ?2 WHERE job_id = ?1";
            execute(transaction, sql, (id.to_string(), micros(due))).map(drop)
        })
    }

    fn drop_callback(&self, id: JobId) -> Result<()> {
        self.write(|transaction| drop_callback(transaction, &id.to_string()))
    }
}

fn insert_job(transaction: &Transaction<'_>, job: &Job) -> rusqlite::Result<()> {
    execute(
        transaction,
        "INSERT INTO jobs (id, operation, state, model, request, client, priority, deadline, callback_url, previews,
                           labels, created_at, step, total)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        rusqlite::params![
            job.id.to_string(),
            job.operation.name(),
            job.state.name(),
            job.model,
            json(&job.request)?,
            job.client,
            job.priority,
            job.deadline.map(micros),
            job.callback_url,
            job.previews.as_ref().map(json).transpose()?,
            json(&job.labels)?,
            micros(job.created_at),
            count(job.step),
            count(job.total),
        ],
    )
    .map(drop)
}

/// Whether it had not come to its end before.
fn end_job(transaction: &Transaction<'_>, id: &str, end: &End) -> rusqlite::Result<bool> {
    let (state, pictures, error) = match &end.outcome {
        Outcome::Completed(pictures) => (State::Completed, pictures.as_slice(), None),
        Outcome::Failed(error) => (State::Failed, [].as_slice(), Some(json(error)?)),
        Outcome::Cancelled => (State::Cancelled, [].as_slice(), None),
    };
    let images: Vec<_> = pictures.iter().map(|picture| &picture.image).collect();
    let bytes = pictures.iter().map(|picture| picture.png.len()).sum();
    let changed = execute(
        transaction,
        "UPDATE jobs SET state = ?2, finished_at = ?3, step = ?4, total = ?5, error = ?6, images = ?7, image_bytes = ?8
             WHERE id = ?1 AND state IN ('queued', 'running')",
        (
            id,
            state.name(),
            micros(end.at),
            count(end.step),
            count(end.total),
            error,
            json(&images)?,
            count(bytes),
        ),
    )?;
    if changed == 0 {
        return Ok(false);
    }
    for picture in pictures {
        execute(
            transaction,
            "INSERT INTO images VALUES (?1, ?2, ?3)",
            (id, count(picture.image.index), &picture.png),
        )?;
    }
    for done in ["requests", "checkpoints", "marks"] {
        let sql = format!("DELETE FROM {done} WHERE job_id = ?1");
        execute(transaction, &sql, [id])?;
    }
    execute(
        transaction,
        "INSERT INTO callbacks SELECT id, 0, ?2 FROM jobs WHERE id = ?1 AND callback_url IS NOT NULL",
        (id, micros(end.at)),
    )?;
    Ok(true)
}

fn drop_callback(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    let sql = "DELETE FROM callbacks WHERE job_id = ?1";
    execute(transaction, sql, [id]).map(drop)
}

fn execute(
    transaction: &Transaction<'_>,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<usize> {
    transaction.prepare_cached(sql)?.execute(parameters)
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
