//! What listeners hear.

use tempfile::tempdir;

use super::*;
use crate::jobs::{PreviewKind, Previews};

/// The steps of the progress events.
fn steps(events: &[(EventId, Event)]) -> Vec<usize> {
    let step = |(_, event): &(EventId, Event)| match event {
        Event::Progress { step, .. } => Some(*step),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_listeners_hear_every_step_once() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let gate = bench.hold();
    let id = bench.submit(submission("a", request(12, 1))).await;
    let listeners: Vec<_> = (0..200)
        .map(|_| tokio::spawn(bench.engine.events(id, None).collect::<Vec<_>>()))
        .collect();
    gate.open();
    for listener in listeners {
        let events = listener.await.unwrap();
        assert_eq!(steps(&events), (1..=12).collect::<Vec<_>>());
        assert!(events.is_sorted_by_key(|(id, _)| *id));
        let Some((_, Event::Complete(job))) = events.last() else {
            panic!("{events:?}");
        };
        assert_eq!(job.images.len(), 1);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_replayed_also_after_the_end_and_a_restart() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let id = bench.submit(submission("a", request(5, 1))).await;
    let all = bench.hear(id, None).await;
    bench.stop().await;

    let bench = Bench::start(folder.path(), config());
    assert_eq!(steps(&bench.hear(id, None).await), [1, 2, 3, 4, 5]);
    for after in 0..all.len() {
        let (after, rest) = (all[after].0, &all[after + 1..]);
        assert_eq!(bench.hear(id, Some(after)).await, rest, "after {after}");
    }
    assert_eq!(bench.hear(id, Some("99999".parse().unwrap())).await, []);
    assert_eq!(bench.hear(JobId::new(), None).await, []);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_follow_their_steps_and_change_nothing() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    for kind in [PreviewKind::Linear, PreviewKind::Full] {
        let gate = bench.hold();
        let previews = Some(Previews { every: 2, kind });
        let job = Submission {
            previews,
            ..submission("a", request(6, 1))
        };
        let id = bench.submit(job).await;
        let listener = tokio::spawn(bench.engine.events(id, None).collect::<Vec<_>>());
        gate.open();
        let events = listener.await.unwrap();
        assert_eq!(steps(&events), [1, 2, 3, 4, 5, 6]);
        assert!(events.is_sorted_by(|a, b| a.0 < b.0 || matches!(a.1, Event::Queued { .. })));
        let mut seen = 0;
        for (_, event) in &events {
            if let Event::Preview { step, total, png } = event {
                assert!(step.is_multiple_of(2) && *total == 6);
                assert!(png.starts_with(b"\x89PNG"));
                seen += 1;
            }
        }
        // A listener may miss previews, but not all of them while a step takes longer than to hear of it.
        assert!((1..=2).contains(&seen), "{seen} previews");
        bench.ends_well(id).await;
    }
    bench.stop().await;
}
