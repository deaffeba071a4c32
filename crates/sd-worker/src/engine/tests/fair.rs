//! Whose turn it is, with real runs.

use tempfile::tempdir;

use super::*;

/// The jobs of the calls, in order, without those that only began or ended.
fn calls(bench: &Bench, of: JobId) -> usize {
    let marks = bench.store.marks();
    let last = marks
        .iter()
        .rposition(|jobs| jobs.iter().any(|(id, _)| *id == of));
    marks[..last.unwrap()]
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count()
}

fn held(config: EngineConfig, folder: &Path) -> (Bench, Gate) {
    let bench = Bench::start(folder, config);
    let gate = bench.hold();
    (bench, gate)
}

fn one_at_a_time() -> EngineConfig {
    EngineConfig {
        max_batch: 1,
        ..config()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_single_job_overtakes_anothers_many() {
    let folder = tempdir().unwrap();
    let (bench, gate) = held(one_at_a_time(), folder.path());
    let mut many = vec![];
    for seed in 0..30 {
        many.push(bench.submit(submission("many", request(2, seed))).await);
    }
    let single = bench.submit(submission("one", request(4, 99))).await;
    let queued = bench.engine.job(single).await.unwrap().unwrap();
    assert!(queued.queue_position.unwrap() <= 1, "{queued:?}");
    gate.open();
    bench.ends_well(single).await;
    // Beginning, calls and ending are marked: at most three for each of its own and the other's turns.
    let waited = calls(&bench, single);
    assert!(waited <= 24, "{waited} marks for 4 steps");
    for id in many {
        assert_eq!(bench.end(id).await.state, State::Completed);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_goes_first_even_before_a_running_job() {
    let folder = tempdir().unwrap();
    let (bench, gate) = held(one_at_a_time(), folder.path());
    let low = bench.submit(submission("a", request(6, 1))).await;
    let high = Submission {
        priority: 10,
        ..submission("b", request(6, 2))
    };
    let high = bench.submit(high).await;
    gate.open();
    bench.ends_well(low).await;
    bench.ends_well(high).await;
    let marks = bench.store.marks();
    let last = |of| marks.iter().rposition(|jobs| jobs[0].0 == of).unwrap();
    let low_before = marks[..last(high)]
        .iter()
        .filter(|jobs| jobs[0].0 == low)
        .count();
    // Its begin and one call, which were picked before the other came.
    assert!(low_before <= 2, "{low_before} marks of the lower priority");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_clients_than_places_in_memory_take_turns_through_the_disk() {
    let folder = tempdir().unwrap();
    let config = EngineConfig {
        max_active: 1,
        ..one_at_a_time()
    };
    let (bench, gate) = held(config, folder.path());
    let mut ids = vec![];
    for client in ["a", "b", "c"] {
        let request = Request {
            scheduler: Some("dpmpp_2m".into()),
            ..request(7, 5)
        };
        ids.push(bench.submit(submission(client, request)).await);
    }
    gate.open();
    for id in ids {
        assert_eq!(bench.ends_well(id).await.attempts, 1);
    }
    // Four calls each, then three: every turn but the very last of a job begins with its run on disk.
    assert_eq!(bench.store.calls("last_checkpoint"), 6);
    bench.stop().await;
}
