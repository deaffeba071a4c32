//! Rows to records.

use std::{error::Error, str::FromStr};

use rusqlite::{
    Connection, OptionalExtension, Row,
    types::{FromSql, Type},
};
use sd_pipeline::Request;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use crate::{
    jobs::{Filter, Idempotency, Job, JobId, MAX_PAGE, Page},
    store::{Callback, Checkpoint, Submitted, Unfinished},
};

type Cause = Box<dyn Error + Send + Sync>;

/// The columns of [`job_row`], in its order.
macro_rules! columns {
    () => {
        "jobs.id, operation, state, model, request, jobs.client, priority, deadline, callback_url, previews, labels,
         created_at, started_at, finished_at, step, total, attempts, images, error"
    };
}

pub(super) fn job(connection: &Connection, id: JobId) -> rusqlite::Result<Option<Job>> {
    connection
        .prepare_cached(concat!("SELECT ", columns!(), " FROM jobs WHERE id = ?1"))?
        .query_row([id.to_string()], job_row)
        .optional()
}

pub(super) fn list(connection: &Connection, filter: &Filter) -> rusqlite::Result<Page> {
    let limit = match filter.limit {
        0 => MAX_PAGE,
        limit => limit.min(MAX_PAGE),
    };
    let (name, value) = filter.label.clone().unzip();
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM jobs WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR client = ?2)
           AND (?3 IS NULL OR id < ?3)
           AND (?4 IS NULL OR id IN (SELECT job_id FROM labels WHERE name = ?4 AND value = ?5))
         ORDER BY id DESC LIMIT ?6"
    );
    let mut jobs: Vec<Option<Job>> = connection
        .prepare_cached(sql)?
        .query_map(
            (
                filter.state.map(|state| state.name()),
                &filter.client,
                filter.before.map(|id| id.to_string()),
                name,
                value,
                // One more tells whether there is another page.
                super::count(limit + 1),
            ),
            readable,
        )?
        .collect::<rusqlite::Result<_>>()?;
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let jobs: Vec<_> = jobs.into_iter().flatten().collect();
    let next = jobs.last().filter(|_| more).map(|job| job.id);
    Ok(Page { jobs, next })
}

pub(super) fn submitted(
    connection: &Connection,
    client: &str,
    idempotency: &Idempotency,
) -> rusqlite::Result<Submitted> {
    let found = connection
        .prepare_cached(concat!(
            "SELECT ",
            columns!(),
            ", body_sha256 FROM submissions JOIN jobs ON job_id = jobs.id
             WHERE submissions.client = ?1 AND key = ?2"
        ))?
        .query_row((client, &idempotency.key), |row| {
            Ok((job_row(row)?, row.get::<_, Vec<u8>>("body_sha256")?))
        })
        .optional()?;
    Ok(match found {
        None => Submitted::New,
        Some((job, body)) if body == idempotency.body_sha256 => Submitted::Before(Box::new(job)),
        Some(_) => Submitted::Conflict,
    })
}

/// The unfinished jobs, each with its name, oldest first.
pub(super) fn unfinished(
    connection: &Connection,
) -> rusqlite::Result<Vec<(String, rusqlite::Result<Unfinished>)>> {
    let unfinished = |row: &Row<'_>| {
        Ok(Unfinished {
            job: job_row(row)?,
            calls: count(row.get("calls")?)?,
            deaths: row.get("deaths")?,
            died_at: row
                .get::<_, Option<i64>>("died_at")?
                .map(count)
                .transpose()?,
        })
    };
    connection
        .prepare_cached(concat!(
            "SELECT ",
            columns!(),
            ", calls, deaths, died_at FROM jobs WHERE state IN ('queued', 'running') ORDER BY id"
        ))?
        .query_map([], |row| Ok((row.get("id")?, unfinished(row))))?
        .collect()
}

pub(super) fn checkpoint(
    connection: &Connection,
    id: JobId,
) -> rusqlite::Result<Option<Checkpoint>> {
    connection
        .prepare_cached(
            "SELECT calls, step, total, snapshot FROM checkpoints JOIN jobs ON job_id = jobs.id WHERE job_id = ?1",
        )?
        .query_row([id.to_string()], |row| {
            Ok(Checkpoint {
                id,
                calls: count(row.get("calls")?)?,
                step: count(row.get("step")?)?,
                total: count(row.get("total")?)?,
                snapshot: row.get("snapshot")?,
            })
        })
        .optional()
}

pub(super) fn next_callback(
    connection: &Connection,
    free: &dyn Fn(&str) -> bool,
) -> rusqlite::Result<Option<Callback>> {
    let mut statement = connection.prepare_cached(concat!(
        "SELECT ",
        columns!(),
        ", tries, due FROM callbacks JOIN jobs ON job_id = jobs.id
         WHERE callback_url IS NOT NULL ORDER BY due"
    ))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let url: String = row.get("callback_url")?;
        if !free(&url) {
            continue;
        }
        if let Some(job) = readable(row)? {
            return Ok(Some(Callback {
                url,
                tries: row.get("tries")?,
                due: time(row.get("due")?),
                job,
            }));
        }
    }
    Ok(None)
}

/// One value of one row.
pub(super) fn value<T: FromSql>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<Option<T>> {
    connection
        .prepare_cached(sql)?
        .query_row(parameters, |row| row.get(0))
        .optional()
}

/// A job; None, and a word in the log, if its row is not what this program writes.
fn readable(row: &Row<'_>) -> rusqlite::Result<Option<Job>> {
    match job_row(row) {
        Err(error) if super::is_unreadable(&error) => {
            tracing::error!(job = row.get::<_, String>("id")?, "left out: {error}");
            Ok(None)
        }
        job => job.map(Some),
    }
}

fn job_row(row: &Row<'_>) -> rusqlite::Result<Job> {
    let maybe_time =
        |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(time));
    Ok(Job {
        id: parsed(row, "id")?,
        operation: name(row, "operation")?,
        state: parsed(row, "state")?,
        model: row.get("model")?,
        request: json(row, "request")?,
        client: row.get("client")?,
        priority: row.get("priority")?,
        deadline: maybe_time("deadline")?,
        callback_url: row.get("callback_url")?,
        previews: maybe_json(row, "previews")?,
        labels: json(row, "labels")?,
        created_at: time(row.get("created_at")?),
        started_at: maybe_time("started_at")?,
        finished_at: maybe_time("finished_at")?,
        step: count(row.get("step")?)?,
        total: count(row.get("total")?)?,
        attempts: row.get("attempts")?,
        queue_position: None,
        images: json(row, "images")?,
        error: maybe_json(row, "error")?,
    })
}

/// What an unfinished job draws.
pub(super) fn request(text: &str) -> rusqlite::Result<Request> {
    serde_json::from_str(text).map_err(|error| unreadable(error.into()))
}

fn count(value: i64) -> rusqlite::Result<usize> {
    usize::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, value))
}

/// Times are written by this program; one that is out of range stands for a damaged row, and sorts first.
fn time(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(error.into()))
}

fn maybe_json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| unreadable(error.into())))
        .transpose()
}

/// A value whose JSON is a plain string.
fn name<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(text.into()).map_err(|error| unreadable(error.into()))
}

pub(super) fn parsed<T: FromStr<Err: Into<Cause>>>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|error: T::Err| unreadable(error.into()))
}

fn unreadable(error: Cause) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error)
}
