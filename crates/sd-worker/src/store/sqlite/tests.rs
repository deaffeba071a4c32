//! The database by itself: what comes back, what survives, and what is refused.

use std::{collections::BTreeMap, fs, time::Duration};

use rusqlite::Connection;
use sd_pipeline::Request;
use time::OffsetDateTime;

use super::SqliteStore;
use crate::{
    jobs::{
        ErrorCode, Filter, Idempotency, Image, Job, JobError, JobId, Operation, PreviewKind,
        Previews, State,
    },
    store::{Checkpoint, End, Error, JobStore, NewJob, Outcome, Picture, Retention, Submitted},
};

const BODY: [u8; 32] = [7; 32];

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn new_job(client: &str) -> NewJob {
    let request = Request {
        seed: Some(u64::MAX),
        num_inference_steps: Some(4),
        ..Request::new("a red circle \u{0}\"';")
    };
    let job = Job {
        id: JobId::new(),
        operation: Operation::ImageTransform,
        state: State::Queued,
        model: "builtin".into(),
        request: request.clone(),
        client: client.into(),
        priority: -3,
        deadline: Some(now() + Duration::from_micros(1_500_001)),
        callback_url: None,
        previews: Some(Previews {
            every: 2,
            kind: PreviewKind::Tiny,
        }),
        labels: BTreeMap::from([("hive_id".into(), "h".into())]),
        created_at: now(),
        started_at: None,
        finished_at: None,
        step: 0,
        total: 4,
        attempts: 0,
        queue_position: None,
        images: vec![],
        error: None,
    };
    NewJob {
        job,
        request,
        idempotency: None,
    }
}

fn picture(index: usize, bytes: usize) -> Picture {
    Picture {
        image: Image {
            index,
            sha256: "00".into(),
            width: 8,
            height: 16,
            seed: 1 + index as u64,
        },
        png: vec![index as u8; bytes],
    }
}

fn completed(pictures: Vec<Picture>) -> End {
    End {
        outcome: Outcome::Completed(pictures),
        step: 4,
        total: 4,
        at: now() + Duration::from_secs(9),
    }
}

fn checkpoint(id: JobId, calls: usize) -> Checkpoint {
    Checkpoint {
        id,
        calls,
        step: calls,
        total: 4,
        snapshot: vec![calls as u8; 10],
    }
}

#[test]
fn a_job_comes_back_as_it_was_recorded_also_from_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let new = new_job("a");
    let id = new.job.id;
    assert_eq!(store.insert(&new).unwrap(), Submitted::New);
    assert_eq!(store.job(id).unwrap().as_ref(), Some(&new.job));
    drop(store);

    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.job(id).unwrap().as_ref(), Some(&new.job));
    assert_eq!(store.request(id).unwrap(), Some(new.request));
    assert_eq!(store.job(JobId::new()).unwrap(), None);
}

#[test]
fn the_end_of_a_job_is_recorded_once_with_its_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let new = new_job("a");
    let id = new.job.id;
    store.insert(&new).unwrap();
    assert!(store.begin(id, now()).unwrap());
    store.checkpoint(&[checkpoint(id, 2)]).unwrap();

    let end = completed(vec![picture(0, 5), picture(1, 6)]);
    let job = store.finish(id, &end).unwrap().unwrap();
    assert_eq!(
        (job.state, job.step, job.attempts),
        (State::Completed, 4, 1)
    );
    assert_eq!(job.images, [picture(0, 5).image, picture(1, 6).image]);
    assert_eq!(store.image(id, 1).unwrap(), Some(vec![1; 6]));
    assert_eq!(store.image(id, 2).unwrap(), None);
    assert_eq!(store.last_checkpoint(id).unwrap(), None);
    assert_eq!(store.request(id).unwrap(), None);

    // Whoever comes later changes nothing.
    let cancelled = End {
        outcome: Outcome::Cancelled,
        ..end.clone()
    };
    assert_eq!(store.finish(id, &cancelled).unwrap(), None);
    assert_eq!(store.finish(id, &end).unwrap(), None);
    store.checkpoint(&[checkpoint(id, 3)]).unwrap();
    assert!(!store.begin(id, now()).unwrap());
    assert_eq!(store.job(id).unwrap(), Some(job));
    assert_eq!(store.last_checkpoint(id).unwrap(), None);
}

#[test]
fn a_key_stands_for_one_submission_of_one_client() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let key = |body_sha256| {
        Some(Idempotency {
            key: "k".into(),
            body_sha256,
        })
    };
    let with_key = |client: &str, body| NewJob {
        idempotency: key(body),
        ..new_job(client)
    };
    let first = with_key("a", BODY);
    assert_eq!(store.insert(&first).unwrap(), Submitted::New);
    let before = Submitted::Before(Box::new(first.job.clone()));
    assert_eq!(store.insert(&with_key("a", BODY)).unwrap(), before);
    let submitted = |client, body| store.submitted(client, &key(body).unwrap()).unwrap();
    assert_eq!(submitted("a", BODY), before);
    assert_eq!(
        store.insert(&with_key("a", [8; 32])).unwrap(),
        Submitted::Conflict
    );
    assert_eq!(submitted("b", BODY), Submitted::New);
    assert_eq!(
        store.insert(&with_key("b", [8; 32])).unwrap(),
        Submitted::New
    );
    assert_eq!(store.list(&Filter::default()).unwrap().jobs.len(), 2);
}

#[test]
fn pages_go_from_the_newest_to_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let mut ids: Vec<_> = (0..7)
        .map(|index| {
            let mut new = new_job(if index < 5 { "a" } else { "b" });
            new.job
                .labels
                .insert("even".into(), (index % 2 == 0).to_string());
            store.insert(&new).unwrap();
            new.job.id
        })
        .collect();
    ids.reverse();
    let mut filter = Filter {
        limit: 3,
        ..Filter::default()
    };
    let mut found = vec![];
    for size in [3, 3, 1] {
        let page = store.list(&filter).unwrap();
        assert_eq!(page.jobs.len(), size);
        found.extend(page.jobs.iter().map(|job| job.id));
        filter.before = page.next;
    }
    assert_eq!((found, filter.before), (ids.clone(), None));

    let count = |filter| store.list(&filter).unwrap().jobs.len();
    let all = Filter::default;
    store.begin(ids[0], now()).unwrap();
    let state = Some(State::Running);
    assert_eq!(count(Filter { state, ..all() }), 1);
    let client = Some("b".into());
    assert_eq!(count(Filter { client, ..all() }), 2);
    let label = Some(("even".into(), "true".into()));
    assert_eq!(count(Filter { label, ..all() }), 4);
}

#[test]
fn deaths_are_counted_until_a_job_gets_past_where_it_died() {
    let folder = tempfile::tempdir().unwrap();
    let new = new_job("a");
    let id = new.job.id;
    // Each store is a process that dies.
    let process = || SqliteStore::open(folder.path()).unwrap();
    let found = |store: &SqliteStore| {
        let jobs = store.recover(now()).unwrap();
        assert_eq!(jobs.len(), 1);
        (jobs[0].deaths, jobs[0].died_at, jobs[0].calls)
    };
    {
        let store = process();
        store.insert(&new).unwrap();
        store.begin(id, now()).unwrap();
        store.checkpoint(&[checkpoint(id, 1)]).unwrap();
        store.mark(&[(id, 3)]).unwrap();
    }
    {
        let store = process();
        assert_eq!(found(&store), (1, Some(3), 1));
        // Not marked: it is somebody else who kills the worker.
        store.begin(id, now()).unwrap();
    }
    {
        let store = process();
        assert_eq!(found(&store), (1, Some(3), 1));
        store.checkpoint(&[checkpoint(id, 4)]).unwrap();
        store.mark(&[(id, 4)]).unwrap();
    }
    {
        let store = process();
        assert_eq!(found(&store), (1, Some(4), 4));
        store.mark(&[(id, 2)]).unwrap();
    }
    let store = process();
    assert_eq!(found(&store), (2, Some(2), 4));
    assert_eq!(store.last_checkpoint(id).unwrap(), Some(checkpoint(id, 4)));
    assert_eq!(store.job(id).unwrap().unwrap().attempts, 2);
    store.mark(&[(id, 2)]).unwrap();
    store.release(&[id]).unwrap();
    assert_eq!(store.job(id).unwrap().unwrap().attempts, 1);
    assert_eq!(found(&store), (2, Some(2), 4));
}

#[test]
fn a_death_in_company_makes_suspects_and_is_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let process = || SqliteStore::open(folder.path()).unwrap();
    let new = [new_job("a"), new_job("a")];
    let [first, second] = [new[0].job.id, new[1].job.id];
    let found = |store: &SqliteStore| {
        let jobs = store.recover(now()).unwrap();
        [0, 1].map(|index: usize| (jobs[index].deaths, jobs[index].died_at))
    };
    {
        let store = process();
        for new in &new {
            store.insert(new).unwrap();
            store.begin(new.job.id, now()).unwrap();
        }
        store.mark(&[(first, 2), (second, 1)]).unwrap();
    }
    for _ in 0..3 {
        let store = process();
        assert_eq!(found(&store), [(0, Some(2)), (0, Some(1))]);
        store.mark(&[(first, 2), (second, 1)]).unwrap();
    }
    {
        let store = process();
        found(&store);
        store.mark(&[(first, 2)]).unwrap();
    }
    {
        let store = process();
        assert_eq!(found(&store), [(1, Some(2)), (0, Some(1))]);
        // What it did alone is not forgotten for the company.
        store.mark(&[(first, 2), (second, 1)]).unwrap();
    }
    let store = process();
    assert_eq!(found(&store), [(1, Some(2)), (0, Some(1))]);
    store
        .checkpoint(&[checkpoint(first, 3), checkpoint(second, 1)])
        .unwrap();
    assert_eq!(found(&store), [(0, None), (0, Some(1))]);
}

#[test]
fn finished_jobs_expire_by_age_and_by_size_and_unfinished_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let mut ids = vec![];
    for second in 0..4 {
        let new = NewJob {
            idempotency: Some(Idempotency {
                key: second.to_string(),
                body_sha256: BODY,
            }),
            ..new_job("a")
        };
        store.insert(&new).unwrap();
        ids.push(new.job.id);
        if second < 3 {
            let end = End {
                at: now() + Duration::from_secs(second),
                ..completed(vec![picture(0, 1000)])
            };
            store.finish(new.job.id, &end).unwrap();
        }
    }
    let keep = |seconds, max_bytes| Retention {
        max_age: Duration::from_secs(seconds),
        max_bytes,
        callbacks: true,
    };
    let later = now() + Duration::from_secs(100);
    assert_eq!(store.expire(&keep(100, 3000), later).unwrap(), []);
    assert_eq!(store.expire(&keep(99, 3000), later).unwrap(), [ids[0]]);
    assert_eq!(store.expire(&keep(1000, 1999), later).unwrap(), [ids[1]]);
    assert_eq!(store.image(ids[1], 0).unwrap(), None);
    assert_eq!(store.expire(&keep(0, 0), later).unwrap(), [ids[2]]);
    assert!(store.job(ids[3]).unwrap().is_some());
    let key = Idempotency {
        key: "0".into(),
        body_sha256: BODY,
    };
    assert_eq!(store.submitted("a", &key).unwrap(), Submitted::New);
}

#[test]
fn callbacks_wait_in_the_database_until_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut new = new_job("a");
    new.job.callback_url = Some("https://example.com/done".into());
    let id = new.job.id;
    let store = SqliteStore::open(folder.path()).unwrap();
    let any = |_: &str| true;
    store.insert(&new).unwrap();
    assert_eq!(store.next_callback(&any).unwrap(), None);
    let error = JobError {
        code: ErrorCode::GenerationFailed,
        message: "no".into(),
    };
    let end = End {
        outcome: Outcome::Failed(error.clone()),
        ..completed(vec![])
    };
    store.finish(id, &end).unwrap();
    drop(store);

    let store = SqliteStore::open(folder.path()).unwrap();
    let callback = store.next_callback(&any).unwrap().unwrap();
    assert_eq!(callback.url, "https://example.com/done");
    assert_eq!((callback.tries, callback.due), (0, end.at));
    assert_eq!(callback.job.error, Some(error));
    let due = end.at + Duration::from_secs(10);
    store.retry_callback(id, due).unwrap();
    let callback = store.next_callback(&any).unwrap().unwrap();
    assert_eq!((callback.tries, callback.due), (1, due));
    store.drop_callback(id).unwrap();
    assert_eq!(store.next_callback(&any).unwrap(), None);
}

#[test]
fn a_callback_that_is_due_later_goes_first_when_its_host_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    for (url, due) in [("https://busy.example", 1), ("https://free.example", 2)] {
        let mut new = new_job("a");
        new.job.callback_url = Some(url.into());
        store.insert(&new).unwrap();
        let end = End {
            at: now() + Duration::from_secs(due),
            ..completed(vec![])
        };
        store.finish(new.job.id, &end).unwrap();
    }
    let next = |free: &dyn Fn(&str) -> bool| store.next_callback(free).unwrap();
    assert_eq!(next(&|_| true).unwrap().url, "https://busy.example");
    let free = next(&|url| !url.contains("busy")).unwrap();
    assert_eq!(free.url, "https://free.example");
    assert_eq!(next(&|_| false), None);
}

#[test]
fn a_job_stays_until_its_callback_is_made_unless_there_are_none_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let ids = [(); 2].map(|()| {
        let mut new = new_job("a");
        new.job.callback_url = Some("https://example.com/done".into());
        store.insert(&new).unwrap();
        let end = completed(vec![picture(0, 1000)]);
        store.finish(new.job.id, &end).unwrap();
        new.job.id
    });
    let expire = |callbacks| {
        let nothing = Retention {
            max_age: Duration::ZERO,
            max_bytes: 0,
            callbacks,
        };
        let later = now() + Duration::from_secs(100);
        store.expire(&nothing, later).unwrap()
    };
    assert_eq!(expire(true), []);
    store.drop_callback(ids[0]).unwrap();
    assert_eq!(expire(true), [ids[0]]);
    assert_eq!(expire(false), [ids[1]]);
}

#[test]
fn the_space_of_expired_pictures_goes_back_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let pages = |pragma: &str| -> i64 {
        store
            .read(|reader| reader.pragma_query_value(None, pragma, |row| row.get(0)))
            .unwrap()
    };
    let new = new_job("a");
    store.insert(&new).unwrap();
    let before = pages("page_count");
    let end = completed(vec![picture(0, 1 << 20)]);
    store.finish(new.job.id, &end).unwrap();
    assert!(pages("page_count") > before + 200);
    let nothing = Retention {
        max_age: Duration::ZERO,
        ..Retention::default()
    };
    let later = now() + Duration::from_secs(100);
    assert_eq!(store.expire(&nothing, later).unwrap(), [new.job.id]);
    assert_eq!(pages("freelist_count"), 0);
    assert!(pages("page_count") <= before);
}

#[test]
fn a_job_that_cannot_be_read_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let ids = [(); 3].map(|()| {
        let mut new = new_job("a");
        new.job.callback_url = Some("https://example.com/done".into());
        store.insert(&new).unwrap();
        new.job.id
    });
    let damage = "UPDATE jobs SET operation = 'brew_tea' WHERE id = ?1";
    let write = |sql: &str, id: JobId| {
        let writer = store.writer.lock().unwrap();
        writer.execute(sql, [id.to_string()]).unwrap()
    };
    write(damage, ids[0]);
    let unreadable = store.job(ids[0]).unwrap_err();
    assert!(matches!(unreadable, Error::Record(_)), "{unreadable}");
    let left = store.recover(now()).unwrap();
    assert_eq!(
        left.iter().map(|job| job.job.id).collect::<Vec<_>>(),
        ids[1..]
    );
    assert_eq!(store.recover(now()).unwrap(), left);

    // Also one that is found out later. Its callback cannot be made either.
    write(damage, ids[1]);
    let unreadable = store.finish(ids[1], &completed(vec![])).unwrap_err();
    assert!(unreadable.is_damage(), "{unreadable}");
    store.finish(ids[2], &completed(vec![])).unwrap().unwrap();
    assert_eq!(store.recover(now()).unwrap(), []);
    let callback = store.next_callback(&|_| true).unwrap().unwrap();
    assert_eq!(callback.job.id, ids[2]);
    let page = store.list(&Filter::default()).unwrap();
    assert_eq!(
        page.jobs.iter().map(|job| job.id).collect::<Vec<_>>(),
        ids[2..]
    );
    write(damage, ids[2]);
    assert_eq!(store.next_callback(&|_| true).unwrap(), None);
}

#[test]
fn a_full_disk_is_named_and_leaves_the_database_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let new = new_job("a");
    let id = new.job.id;
    store.insert(&new).unwrap();
    let pages: i64 = store
        .read(|reader| reader.pragma_query_value(None, "page_count", |row| row.get(0)))
        .unwrap();
    let limit = |pages: i64| {
        let writer = store.writer.lock().unwrap();
        writer
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .unwrap();
    };
    limit(pages + 10);
    let end = completed(vec![picture(0, 8000), picture(1, 1 << 20)]);
    assert!(matches!(store.finish(id, &end), Err(Error::Full)));
    assert_eq!(store.job(id).unwrap().as_ref(), Some(&new.job));
    assert_eq!(store.image(id, 0).unwrap(), None);
    limit(pages + 1000);
    assert!(store.finish(id, &end).unwrap().is_some());
}

#[test]
fn a_damaged_a_foreign_and_a_later_database_are_refused_by_name() {
    let damaged = |bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("jobs.db"), bytes).unwrap();
        SqliteStore::open(folder.path()).unwrap_err()
    };
    let error = damaged(&[b'x'; 5000]);
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("jobs.db"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(folder.path()).unwrap();
    for _ in 0..50 {
        store.insert(&new_job("a")).unwrap();
    }
    drop(store);
    let whole = fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn[4096..].fill(0xa5);
    let error = damaged(&torn);
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");

    // Any table, but the pictures: these take too long to check.
    let connection = Connection::open(&path).unwrap();
    let tables: Vec<(String, u32)> = connection
        .prepare(
            "SELECT name, rootpage FROM sqlite_schema WHERE type = 'table' AND name != 'images'",
        )
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(tables.len(), 7);
    for (table, page) in tables {
        let mut torn = whole.clone();
        torn[(page as usize - 1) * 4096..][..4096].fill(0xa5);
        let error = damaged(&torn).to_string();
        assert!(error.contains("jobs.db"), "{table}: {error}");
    }

    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = SqliteStore::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 99, .. }), "{error}");
}

#[test]
fn one_worker_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let second = SqliteStore::open(folder.path()).unwrap_err();
    assert!(matches!(second, Error::InUse { .. }), "{second}");
    drop(store);
    SqliteStore::open(folder.path()).unwrap();
}
