//! What is left of an engine that dies, and what the next one makes of it.

use std::sync::OnceLock;

use tempfile::tempdir;
use time::OffsetDateTime;

use super::*;
use crate::{engine::SubmitError, jobs::ErrorCode, store::JobStore};

#[tokio::test(flavor = "multi_thread")]
async fn killed_jobs_resume_at_their_checkpoint_with_the_same_bytes() {
    let (folder, killed) = (tempdir().unwrap(), tempdir().unwrap());
    let bench = Bench::start(folder.path(), config());
    let gate = bench.hold();
    let (from, to) = (folder.path().to_owned(), killed.path().to_owned());
    let copied = Flag::default();
    let raised = copied.clone();
    bench.store.on_checkpoint(move |checkpoints| {
        if checkpoints[0].calls >= 4 && !raised.is_up() {
            copy(&from, &to);
            raised.raise();
        }
    });
    let mut ids = vec![];
    for scheduler in ["euler_ancestral", "dpmpp_2m"] {
        let request = Request {
            scheduler: Some(scheduler.into()),
            num_images: Some(2),
            ..request(8, 3)
        };
        ids.push(bench.submit(submission("a", request)).await);
    }
    // One that never began.
    let third = Request {
        width: Some(128),
        ..request(2, 4)
    };
    ids.push(bench.submit(submission("a", third)).await);
    gate.open();
    copied.wait().await;
    bench.stop().await;

    let bench = Bench::start(killed.path(), config());
    for (id, attempts) in ids.into_iter().zip([2, 2, 1]) {
        let after = Some(EventId::progress(3));
        let events = bench.hear(id, after).await;
        let job = bench.ends_well(id).await;
        assert_eq!(job.attempts, attempts);
        let resumed = job.total.saturating_sub(3);
        let progress = |(_, event): &&(EventId, Event)| matches!(event, Event::Progress { .. });
        assert_eq!(events.iter().filter(progress).count(), resumed);
    }
    let first = bench.store.marks();
    let calls = first.iter().flatten().map(|(_, call)| *call);
    assert!(
        calls.filter(|call| *call == 3).count() == 0,
        "work was repeated"
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_keeps_every_step_and_counts_no_attempt() {
    let folder = tempdir().unwrap();
    let seldom = || EngineConfig {
        checkpoints: Checkpoints {
            calls: 1000,
            interval: Duration::from_secs(3600),
        },
        ..config()
    };
    let bench = Bench::start(folder.path(), seldom());
    let third = bench.at_call(3);
    let id = bench.submit(submission("a", request(40, 1))).await;
    third.wait().await;
    bench.stop().await;

    let bench = Bench::start(folder.path(), seldom());
    let job = bench.engine.job(id).await.unwrap().unwrap();
    assert!(job.step >= 3, "{}", job.step);
    let job = bench.ends_well(id).await;
    assert_eq!(job.attempts, 1);
    let first_call = bench
        .store
        .marks()
        .iter()
        .flatten()
        .map(|mark| mark.1)
        .find(|call| *call > 0);
    assert!(first_call >= Some(3), "{first_call:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_the_worker_twice_alone_is_parked_and_its_company_is_not() {
    let folders = [(); 4].map(|()| tempdir().unwrap());
    let start = |life: usize| Bench::start(folders[life].path(), config());
    // Copies the database when `poison` is about to make its fourth call: that call is what kills.
    let poison = Arc::new(OnceLock::new());
    let dies = |bench: &Bench, life: usize, gate: Gate| {
        let poison = Arc::clone(&poison);
        let dead = Flag::default();
        let raised = dead.clone();
        let (from, to) = (
            folders[life].path().to_owned(),
            folders[life + 1].path().to_owned(),
        );
        bench.store.on_mark(move |jobs| {
            gate.wait();
            let killed = poison.get().is_some_and(|id| jobs.contains(&(*id, 3)));
            if killed && !raised.is_up() {
                copy(&from, &to);
                raised.raise();
            }
        });
        dead
    };

    let (bench, gate) = (start(0), Gate::default());
    let dead = dies(&bench, 0, gate.clone());
    let company = bench.submit(submission("a", request(10, 1))).await;
    let id = bench.submit(submission("a", request(10, 2))).await;
    let innocent = bench.submit(submission("b", request(10, 3))).await;
    poison.set(id).unwrap();
    gate.open();
    dead.wait().await;
    bench.stop().await;

    // All three were in the call, and each is tried alone now: that is no one's death yet.
    for life in [1, 2] {
        let bench = start(life);
        let dead = dies(&bench, life, gate.clone());
        dead.wait().await;
        let marks = bench.store.marks();
        let alone = marks.iter().take_while(|jobs| !jobs.contains(&(id, 3)));
        assert!(alone.clone().all(|jobs| jobs.len() == 1), "{marks:?}");
        bench.stop().await;
    }

    let bench = start(3);
    let job = bench.end(id).await;
    let error = job.error.unwrap();
    assert_eq!(error.code, ErrorCode::Poisoned);
    assert!(error.message.contains("died 2 times"), "{error}");
    assert_eq!(job.attempts, 3);
    bench.ends_well(company).await;
    bench.ends_well(innocent).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_something_long_is_no_death() {
    let (folder, left) = (tempdir().unwrap(), tempdir().unwrap());
    let config = || EngineConfig {
        stop_limit: Duration::from_millis(50),
        ..config()
    };
    let bench = Bench::start(folder.path(), config());
    // It stands for the loading of a large model.
    let (gate, busy) = (Gate::default(), Flag::default());
    let (held, raised) = (gate.clone(), busy.clone());
    bench.store.before("last_checkpoint", move || {
        raised.raise();
        held.wait();
        Ok(())
    });
    let id = bench.submit(submission("a", request(3, 1))).await;
    busy.wait().await;
    let stopped = tokio::time::timeout(PATIENCE / 4, bench.engine.shutdown());
    stopped.await.expect("waits for what takes long");
    copy(folder.path(), left.path());
    gate.open();
    bench.stop().await;

    for folder in [folder, left] {
        let unfinished = SqliteStore::open(folder.path())
            .unwrap()
            .recover(OffsetDateTime::now_utc())
            .unwrap();
        assert_eq!((unfinished[0].deaths, unfinished[0].died_at), (0, None));
        let bench = Bench::start(folder.path(), config());
        assert_eq!(bench.ends_well(id).await.attempts, 1);
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_broken_engine_is_known() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    bench.store.on_mark(|_| panic!("on request"));
    let id = bench.submit(submission("a", request(3, 1))).await;
    let ended = tokio::time::timeout(PATIENCE, bench.engine.ended());
    ended.await.expect("nobody is told");
    assert!(!bench.engine.ready().ready);
    let late = bench.engine.submit(submission("a", request(3, 1))).await;
    assert!(matches!(late, Err(SubmitError::ShuttingDown)), "{late:?}");
    bench.stop().await;

    let bench = Bench::start(folder.path(), config());
    assert_eq!(bench.ends_well(id).await.attempts, 2);
    bench.stop().await;
}
