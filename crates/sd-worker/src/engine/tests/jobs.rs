//! One job's life.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use sd_pipeline::MemoryEstimate;
use tempfile::tempdir;
use time::OffsetDateTime;

use super::*;
use crate::{
    engine::{SubmitError, batch::tests::PANICS},
    jobs::{ErrorCode, Filter, Idempotency, PreviewKind, Previews},
    webhook::WebhookConfig,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_becomes_the_pictures_of_its_request() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let request = Request {
        num_images: Some(2),
        scheduler: Some("euler_ancestral".into()),
        seed: None,
        ..request(3, 0)
    };
    let id = bench.submit(submission("a", request)).await;
    let job = bench.ends_well(id).await;
    assert_eq!((job.step, job.total, job.attempts), (3, 3, 1));
    assert_eq!(job.images.len(), 2);
    assert_eq!(job.images[1].seed, job.seed() + 1);
    assert_eq!((job.images[0].width, job.images[0].height), (64, 64));
    assert!(job.created_at <= job.started_at.unwrap());
    assert!(job.started_at <= job.finished_at);
    assert!(bench.engine.ready().ready);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn different_requests_share_calls_and_keep_their_bytes() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let gate = bench.hold();
    let mut ids = vec![];
    for (steps, scheduler, guidance) in [
        (2, "ddim", 7.5),
        (4, "euler", 1.0),
        (3, "heun", 3.0),
        (3, "euler_ancestral", 5.0),
    ] {
        let request = Request {
            scheduler: Some(scheduler.into()),
            guidance_scale: Some(guidance),
            ..request(steps, steps as u64)
        };
        ids.push(bench.submit(submission(scheduler, request)).await);
    }
    gate.open();
    for id in ids {
        bench.ends_well(id).await;
    }
    let stats = bench.engine.stats();
    assert_eq!(stats.max_batch_seen, 4);
    assert_eq!(stats.steps, 12);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_shared_call_fails_its_job_alone() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let gate = bench.hold();
    let before = bench.submit(submission("a", request(4, 1))).await;
    let bad = Request {
        prompt: PANICS.into(),
        ..request(4, 2)
    };
    let bad = bench.submit(submission("b", bad)).await;
    let after = bench.submit(submission("c", request(4, 3))).await;
    gate.open();
    let job = bench.end(bad).await;
    assert_eq!(job.state, State::Failed);
    let error = job.error.unwrap();
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(error.message.contains("panicked"), "{error}");
    bench.ends_well(before).await;
    bench.ends_well(after).await;
    assert_eq!(bench.engine.stats().max_batch_seen, 3);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_makes_no_further_step() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let third = bench.at_call(3);
    let id = bench.submit(submission("a", request(500, 1))).await;
    third.wait().await;
    let job = bench.engine.cancel(id).await.unwrap().unwrap();
    assert_eq!(job.state, State::Cancelled);
    let calls = |marks: Vec<Vec<(JobId, usize)>>| marks.iter().flatten().map(|mark| mark.1).max();
    let at_cancel = calls(bench.store.marks()).unwrap();
    let events = bench.hear(id, None).await;
    assert_eq!(events.last().unwrap().1, Event::Cancelled);
    // A second job shows that the engine has gone on to something else.
    let next = bench.submit(submission("a", request(1, 1))).await;
    bench.ends_well(next).await;
    let last = calls(bench.store.marks()).unwrap();
    assert!(
        last <= at_cancel + 1,
        "cancelled at call {at_cancel}, made {last}"
    );
    // Cancelling is idempotent, and too late for a finished job.
    assert_eq!(bench.engine.cancel(id).await.unwrap(), Some(job));
    let done = bench.engine.cancel(next).await.unwrap().unwrap();
    assert_eq!(done.state, State::Completed);
    assert_eq!(bench.engine.cancel(JobId::new()).await.unwrap(), None);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_past_its_deadline_fails_running_or_queued() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(
        folder.path(),
        EngineConfig {
            max_batch: 1,
            ..config()
        },
    );
    let mut jobs = vec![];
    for client in ["a", "a"] {
        let deadline = OffsetDateTime::now_utc() + Duration::from_millis(300);
        let late = Submission {
            deadline: Some(deadline),
            ..submission(client, request(900, 1))
        };
        jobs.push(bench.submit(late).await);
    }
    for id in jobs {
        let job = bench.end(id).await;
        assert_eq!(job.error.unwrap().code, ErrorCode::DeadlineExceeded);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back_and_knows_its_jobs_again() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(
        folder.path(),
        EngineConfig {
            max_queue: 2,
            ..config()
        },
    );
    let gate = bench.hold();
    let with_key = |body| Submission {
        idempotency: Some(Idempotency {
            key: "k".into(),
            body_sha256: [body; 32],
        }),
        ..submission("a", request(1, 1))
    };
    let first = bench.submit(with_key(1)).await;
    let second = bench.submit(submission("b", request(1, 2))).await;
    let third = bench.engine.submit(submission("c", request(1, 3))).await;
    let Err(SubmitError::QueueFull { retry_after }) = third else {
        panic!("{third:?}");
    };
    assert!(retry_after >= Duration::from_secs(1));
    let again = bench.engine.submit(with_key(1)).await.unwrap();
    assert_eq!((again.job.id, again.replayed), (first, true));
    let other = bench.engine.submit(with_key(2)).await;
    assert!(matches!(other, Err(SubmitError::IdempotencyConflict)));
    assert_eq!(
        bench.engine.stats().queued + bench.engine.stats().running,
        2
    );
    gate.open();
    bench.ends_well(first).await;
    bench.ends_well(second).await;
    let third = bench.submit(submission("c", request(1, 3))).await;
    bench.ends_well(third).await;
    let page = bench.engine.list(Filter::default()).await.unwrap();
    assert_eq!(page.jobs.len(), 3);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_that_cannot_work_are_refused_by_field() {
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config());
    let valid = submission("a", request(1, 1));
    let refused = async |change: &dyn Fn(&mut Submission)| {
        let mut submission = valid.clone();
        change(&mut submission);
        bench.engine.submit(submission).await.unwrap_err()
    };
    let error = refused(&|job| job.model = "../etc".into()).await;
    assert!(matches!(error, SubmitError::UnknownModel { .. }), "{error}");
    let error = refused(&|job| job.request.width = Some(65)).await;
    assert!(error.to_string().starts_with("width"), "{error}");
    let error = refused(&|job| job.priority = 101).await;
    assert!(error.to_string().starts_with("priority"), "{error}");
    let error = refused(&|job| job.deadline = Some(OffsetDateTime::UNIX_EPOCH)).await;
    assert!(error.to_string().starts_with("deadline"), "{error}");
    let error = refused(&|job| job.callback_url = Some("https://example.com".into())).await;
    assert!(error.to_string().starts_with("callback_url"), "{error}");
    let every = 0;
    let kind = PreviewKind::Linear;
    let error = refused(&|job| job.previews = Some(Previews { every, kind })).await;
    assert!(error.to_string().starts_with("previews"), "{error}");
    let page = bench.engine.list(Filter::default()).await.unwrap();
    assert_eq!(page.jobs, []);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_take_turns_under_a_budget() {
    let folder = tempdir().unwrap();
    let models = vec![model("builtin"), model("other")];
    let config = EngineConfig {
        models,
        model_memory: Some(0),
        ..config()
    };
    let bench = Bench::start(folder.path(), config);
    let gate = Gate::default();
    let (held, engine) = (gate.clone(), bench.engine.clone());
    let peak = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&peak);
    bench.store.on_mark(move |_| {
        held.wait();
        let loaded = engine.models().iter().filter(|model| model.loaded).count();
        seen.fetch_max(loaded, Ordering::SeqCst);
    });
    let mut ids = vec![];
    for name in ["builtin", "other", "builtin"] {
        let job = Submission {
            model: name.into(),
            ..submission(name, request(3, 1))
        };
        ids.push(bench.submit(job).await);
    }
    gate.open();
    for id in ids {
        bench.ends_well(id).await;
    }
    assert_eq!(peak.load(Ordering::SeqCst), 1);
    // It holds the engine.
    bench.store.on_mark(|_| {});
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_held_against_the_limit_of_memory_when_it_is_handed_in() {
    let sized = |side, vae_tiling| Request {
        width: Some(side),
        height: Some(side),
        vae_tiling,
        ..request(1, 1)
    };
    let builder = model("builtin").builder;
    let (config_of, memory) = (builder.config().unwrap(), builder.model_memory().unwrap());
    let peak = |tiling| {
        let job = sized(512, Some(tiling)).resolve(&config_of).unwrap();
        MemoryEstimate::new(&memory, &config_of, &job).peak()
    };
    let limit = peak(true).midpoint(peak(false));
    let limited = ModelEntry {
        name: "builtin".into(),
        builder: builder.max_memory(limit),
    };
    let folder = tempdir().unwrap();
    let config = EngineConfig {
        models: vec![limited],
        ..config()
    };
    let bench = Bench::start(folder.path(), config);

    let id = bench.submit(submission("a", sized(512, None))).await;
    assert_eq!(bench.end(id).await.request.vae_tiling, Some(true));
    bench.ends_well(id).await;
    let refused = bench.engine.submit(submission("a", sized(2048, None)));
    let error = refused.await.unwrap_err();
    let memory = matches!(
        error,
        SubmitError::Request(sd_pipeline::Error::Memory { .. })
    );
    assert!(memory, "{error}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_is_called_back() {
    const RETRY: Duration = Duration::from_millis(200);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/done", listener.local_addr().unwrap());
    let receiver = thread::spawn(move || {
        // The first attempt fails.
        let (stream, _) = listener.accept().unwrap();
        thread::sleep(RETRY);
        let failed = Instant::now();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        // Time passes for the next attempt from the end of this one.
        assert!(failed.elapsed() >= RETRY);
        let mut text = String::new();
        while !text.ends_with("\"completed\"") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        text
    });
    let folder = tempdir().unwrap();
    let body = Arc::new(|job: &Job| serde_json::to_vec(&job.state).unwrap());
    let webhooks = WebhookConfig {
        allow_http: true,
        allow_private: true,
        retries: vec![RETRY],
        ..WebhookConfig::new(b"key".to_vec(), body)
    };
    let config = EngineConfig {
        webhooks: Some(webhooks),
        ..config()
    };
    let bench = Bench::start(folder.path(), config);
    let job = Submission {
        callback_url: Some(url),
        ..submission("a", request(1, 1))
    };
    let id = bench.submit(job).await;
    bench.ends_well(id).await;
    let text = tokio::task::spawn_blocking(|| receiver.join().unwrap())
        .await
        .unwrap();
    assert!(
        text.to_lowercase().contains(&format!("sd-job-id: {id}")),
        "{text}"
    );
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_answer_holds_up_nobody_else() {
    let [slow, quick] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let url = |listener: &TcpListener| format!("http://{}/", listener.local_addr().unwrap());
    let body = Arc::new(|_: &Job| vec![]);
    let config = EngineConfig {
        webhooks: Some(WebhookConfig {
            allow_http: true,
            allow_private: true,
            retries: vec![],
            ..WebhookConfig::new(b"key".to_vec(), body)
        }),
        ..config()
    };
    let folder = tempdir().unwrap();
    let bench = Bench::start(folder.path(), config);
    for listener in [&slow, &slow, &quick] {
        let job = Submission {
            callback_url: Some(url(listener)),
            ..submission("a", request(1, 1))
        };
        let id = bench.submit(job).await;
        bench.ends_well(id).await;
    }
    let hear = |listener: TcpListener| {
        tokio::task::spawn_blocking(move || (listener.accept().unwrap().0, listener))
    };
    let (held, slow) = hear(slow).await.unwrap();
    let called = tokio::time::timeout(PATIENCE, hear(quick));
    drop(called.await.expect("waits for another host").unwrap());
    // One at a time: the second comes when the first is over.
    slow.set_nonblocking(true).unwrap();
    assert!(slow.accept().is_err(), "two calls to one host");
    slow.set_nonblocking(false).unwrap();
    drop(held);
    let second = tokio::time::timeout(PATIENCE, hear(slow));
    drop(second.await.expect("is never called").unwrap());
    bench.stop().await;
}
