//! A store that fails, for a while or for good.

use tempfile::tempdir;

use super::*;
use crate::{
    engine::{SubmitError, batch::tests::UNSAVED},
    jobs::ErrorCode,
    store::Error,
};

/// What only a look at the row can find out.
fn damage() -> Error {
    Error::Record(rusqlite::Error::InvalidQuery)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_while_the_store_fails() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let methods = ["job", "begin", "last_checkpoint", "request"];
    for method in methods {
        bench.store.fail(method, 1, || Error::Abandoned);
    }
    let id = bench.submit(submission("a", request(3, 1))).await;
    let job = bench.ends_well(id).await;
    assert_eq!(job.attempts, 1);
    assert!(methods.iter().all(|method| bench.store.calls(method) > 1));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_read_does_not_block_the_queue() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    for (method, times) in [("job", 1), ("request", 1), ("begin", 1)] {
        bench.store.fail(method, times, damage);
        let id = bench.submit(submission("a", request(3, 1))).await;
        bench.hear(id, None).await;
        let job = bench.engine.job(id).await.unwrap().unwrap();
        assert_eq!(job.error.unwrap().code, ErrorCode::Internal, "{method}");
    }
    // Not even its end can be recorded: nobody waits for it.
    bench.store.fail("finish", 1, damage);
    let lost = bench.submit(submission("a", request(1, 1))).await;
    assert!(
        bench
            .hear(lost, None)
            .await
            .iter()
            .all(|(_, event)| !matches!(event, Event::Complete(_)))
    );
    let next = bench.submit(submission("a", request(3, 1))).await;
    bench.ends_well(next).await;
    assert_eq!(bench.engine.stats().running, 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_read_counts_as_none() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let fifth = bench.at_call(5);
    let id = bench.submit(submission("a", request(40, 1))).await;
    fifth.wait().await;
    bench.stop().await;

    let store = Watched::new(SqliteStore::open(folder.path()).unwrap());
    store.fail("last_checkpoint", 1, damage);
    let bench = Bench::on(Arc::new(store), config());
    bench.ends_well(id).await;
    // All calls are made again, and counted from the first.
    let marks = bench.store.marks();
    let mut calls: Vec<_> = marks.iter().flatten().map(|(_, call)| *call).collect();
    calls.dedup();
    assert_eq!(calls, (0..=40).collect::<Vec<_>>());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_saved_stays_in_memory() {
    let folder = tempdir().unwrap();
    let config = EngineConfig {
        max_batch: 1,
        max_active: 1,
        ..config()
    };
    let bench = Bench::start(folder.path(), config);
    let gate = bench.hold();
    let stays = Request {
        prompt: UNSAVED.into(),
        ..request(12, 1)
    };
    let stays = bench.submit(submission("a", stays)).await;
    let other = bench.submit(submission("b", request(12, 1))).await;
    gate.open();
    bench.ends_well(stays).await;
    bench.ends_well(other).await;
    let marks = bench.store.marks();
    let first_calls = marks.iter().filter(|jobs| jobs[0] == (stays, 1)).count();
    assert_eq!(first_calls, 1, "work was repeated");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_wait_for_a_full_disk() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    bench.store.fail("finish", 2, || Error::Full);
    let id = bench.submit(submission("a", request(1, 1))).await;
    bench.ends_well(id).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_is_not_recorded_makes_the_worker_unready_until_writing_works() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let id = bench.submit(submission("a", request(1, 1))).await;
    bench.ends_well(id).await;
    bench.store.fail("insert", 1, || Error::Full);
    bench.store.fail("probe", 1, || Error::Full);
    let refused = bench.engine.submit(submission("a", request(1, 1))).await;
    let full = matches!(refused, Err(SubmitError::Store(Error::Full)));
    assert!(full, "{refused:?}");
    let reason = bench.engine.ready().reason;
    assert_eq!(reason.as_deref(), Some("the disk is full"));
    let ready = async {
        while !bench.engine.ready().ready {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready)
        .await
        .expect("stays unready");
    assert_eq!(bench.store.calls("probe"), 2);
    let id = bench.submit(submission("a", request(1, 1))).await;
    bench.ends_well(id).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_just_being_recorded_is_heard() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let (begin, end) = (Gate::default(), Gate::default());
    let ending = Flag::default();
    let (held, raised, until) = (begin.clone(), ending.clone(), end.clone());
    // The engine is about to begin the job when somebody else ends it, and goes on before that is all over.
    bench.store.before("begin", move || {
        raised.raise();
        held.wait();
        Ok(())
    });
    bench.store.before("finished", move || {
        until.wait();
        Ok(())
    });
    let id = bench.submit(submission("a", request(3, 1))).await;
    let events = tokio::spawn(bench.engine.events(id, None).collect::<Vec<_>>());
    ending.wait().await;
    let engine = bench.engine.clone();
    let cancel = tokio::spawn(async move { engine.cancel(id).await });
    let recorded = async {
        while bench.store.calls("finished") == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recorded).await.unwrap();
    begin.open();
    // The engine has dropped the job when it has nothing to do any more.
    while bench.engine.stats().queued > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    end.open();
    cancel.await.unwrap().unwrap();
    let events = events.await.unwrap();
    assert_eq!(
        events.last().map(|(_, event)| event),
        Some(&Event::Cancelled)
    );
    bench.stop().await;
}
