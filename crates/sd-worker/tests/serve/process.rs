//! The worker as a process: its configuration, its start and its end.

use std::{fs, net::TcpListener, path::Path, process::Output, time::Duration};

use serde_json::json;

use crate::{
    assert_error, star,
    worker::{Worker, command},
};

/// A `serve` that is expected to fail at once.
fn refused(folder: &Path, flags: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = command(folder, flags).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_signal_ends_streams_saves_jobs_and_the_next_start_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Worker::start(folder.path(), &[]);
    let path = worker.submit(&star(40));
    let mut events = worker.client.listen(&path, None);
    let first: Vec<_> = events.by_ref().take(4).collect();
    worker.signal("TERM");
    let mut seen = [first, events.collect()].concat();
    assert_eq!(
        worker.ended(Duration::from_secs(20)).code(),
        Some(0),
        "{}",
        worker.log()
    );
    assert_ne!(seen.last().unwrap().name, "complete");

    let again = Worker::start(folder.path(), &[]);
    let last = seen.last().unwrap().id.clone();
    seen.extend(again.client.listen(&path, Some(&last)));
    let steps: Vec<_> = seen
        .iter()
        .filter(|event| event.name == "progress")
        .map(|event| &event.data["step"])
        .collect();
    assert_eq!(json!(steps), json!((1..=40).collect::<Vec<_>>()));
    let job = again.finished(&path);
    assert_eq!(
        (&job["status"], &job["attempts"]),
        (&json!("completed"), &json!(1)),
        "{job}"
    );
    let fresh = again.finished(&again.submit(&star(40)));
    assert_eq!(fresh["images"][0]["sha256"], job["images"][0]["sha256"]);
}

#[test]
fn readiness_follows_the_model() {
    let (worker, _folder) = Worker::fresh(&[]);
    let job = worker.submit(&star(1));
    worker.finished(&job);
    let ready = worker.reply("/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({"ready": true})));
    let models = worker.client.get("/v1/models").json();
    assert_eq!(models["object"], "list");
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["loaded"]),
        (&json!("builtin"), &json!("model"), &json!(true))
    );
    assert_eq!(model["defaults"]["width"], 128);
    let schedulers = worker.client.get("/v1/schedulers").json();
    let names: Vec<_> = schedulers["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["id"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"euler") && names.contains(&"ddim"),
        "{names:?}"
    );
}

#[test]
fn metrics_count_what_happened() {
    let (worker, _folder) = Worker::fresh(&[]);
    worker.finished(&worker.submit(&star(3)));
    worker.client.get("/nowhere");
    worker.client.send("BREW", "/health", b"");
    worker.client.send("BREW-TEA", "/health", b"");
    let reply = worker.client.get("/metrics");
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("text/plain")
    );
    let text = reply.text();
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("sd_steps_total"), 3.0);
    assert_eq!(value("sd_jobs_queued"), 0.0);
    assert_eq!(value("sd_http_errors_total{code=\"not_found\"}"), 1.0);
    assert!(
        value("sd_http_requests_total{method=\"POST\",route=\"/v1/jobs\",status=\"202\"}") == 1.0,
        "{text}"
    );
    // Whatever methods clients make up, they are one label.
    assert!(
        value("sd_http_requests_total{method=\"other\",route=\"/health\",status=\"405\"}") == 2.0,
        "{text}"
    );
    assert!(!text.contains("BREW"), "{text}");
}

#[test]
fn every_answer_has_a_name_and_keeps_the_clients() {
    let (worker, _folder) = Worker::fresh(&["--log-format", "json", "--log", "debug"]);
    let own = worker
        .client
        .with("x-request-id", "order-7")
        .get("/v1/models");
    assert_eq!(own.header("x-request-id"), Some("order-7"));
    for name in ["", "two words", &"x".repeat(65)] {
        let reply = worker.client.with("x-request-id", name).get("/nowhere");
        assert_error(&reply, 404, "not_found", None);
        assert_eq!(reply.header("x-request-id").unwrap().len(), 36);
    }
    worker.signal("TERM");
    let log = worker.whole_log();
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(log.contains("order-7"), "{log}");
}

#[test]
fn settings_that_cannot_work_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("no-keys"), "# none yet\n").unwrap();
    fs::write(folder.path().join("wrong.toml"), "[serve]\n").unwrap();
    fs::write(folder.path().join("no-secret"), "\n").unwrap();
    fs::write(folder.path().join("short-secret"), "fifteen-letters\n").unwrap();
    for (flags, code, part) in [
        (&["--listen", "0.0.0.0:0"][..], 2, "--insecure-no-auth"),
        (&["--listen", "nowhere"], 2, "--listen"),
        (&["--max-queue", "0"], 2, "--max-queue"),
        (&["--max-body", "much"], 2, "512 MiB"),
        (&["--api-key-file", "missing"], 1, "missing"),
        (&["--api-key-file", "no-keys"], 1, "at least one key"),
        (&["--config", "missing.toml"], 1, "missing.toml"),
        (&["--config", "wrong.toml"], 2, "`serve`"),
        (
            &["--model", "a=builtin", "--model", "a=builtin"],
            2,
            "`a` is given twice",
        ),
        (&["--model-root", "."], 2, "diffusers layout"),
        (&["--model", "x=./nowhere"], 1, "nowhere"),
        (&["--callbacks"], 2, "--callback-secret-file"),
        (
            &["--callbacks", "--callback-secret-file", "no-secret"],
            2,
            "16 or more",
        ),
        (
            &["--callbacks", "--callback-secret-file", "short-secret"],
            2,
            "16 or more",
        ),
        (&["--log", "sd_worker=loud"], 2, "sd_worker=loud"),
    ] {
        let (found, text) = refused(folder.path(), flags);
        assert_eq!(found, code, "{flags:?}: {text}");
        assert!(text.contains(part), "{flags:?}: {text}");
    }
}

#[test]
fn a_taken_address_and_a_taken_folder_are_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, text) = refused(folder.path(), &["--listen", &address]);
    assert!(code == 1 && text.contains(&address), "{text}");
    let _worker = Worker::start(folder.path(), &[]);
    let (code, text) = refused(folder.path(), &[]);
    assert!(code == 1 && text.contains("another worker"), "{text}");
}

#[test]
fn what_is_logged_is_told_by_the_settings_and_else_by_rust_log() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("debug.toml"), "log = \"debug\"\n").unwrap();
    let with = |rust_log: &str, flags: &[&str]| {
        let mut command = command(folder.path(), flags);
        command.env("RUST_LOG", rust_log);
        command
    };
    for (rust_log, flags, requests_are_logged) in [
        ("debug", &["--log", "info"][..], false),
        ("error", &["--config", "debug.toml"], true),
        ("debug", &[], true),
        ("", &[], false),
    ] {
        let mut worker = Worker::spawn(with(rust_log, flags));
        worker.client.get("/health");
        worker.signal("TERM");
        worker.ended(Duration::from_secs(20));
        let log = worker.whole_log();
        assert_eq!(
            log.contains("answered"),
            requests_are_logged,
            "{rust_log} {flags:?}:\n{log}"
        );
    }
    let Output { status, stderr, .. } = with("sd_worker=loud", &[]).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("RUST_LOG"), "{text}");
}

#[test]
fn the_configuration_is_printed_as_a_file_that_can_be_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sd-worker"));
        let output = command
            .arg("config")
            .args(args)
            .current_dir(folder.path())
            .env("SD_WORKER_MAX_BATCH", "3")
            .env("SD_WORKER_MAX_QUEUE", "5")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    fs::write(folder.path().join("keys"), "a:secret-key-of-a").unwrap();
    let printed = config(&["--max-queue", "9", "--api-key-file", "keys"]);
    for line in [
        "max-queue = 9",
        "max-batch = 3",
        "max-body = \"64 MiB\"",
        "api-key-file = \"keys\"",
    ] {
        assert!(
            printed.lines().any(|other| other == line),
            "{line} is not in\n{printed}"
        );
    }
    assert!(!printed.contains("secret-key-of-a"));
    fs::write(folder.path().join("worker.toml"), &printed).unwrap();
    assert_eq!(
        config(&["--config", "worker.toml", "--max-queue", "9"]),
        printed
    );
}

#[test]
fn models_are_found_in_a_root_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo-model");
    let root = folder.path().join("models");
    copy(&model, &root.join("shapes"));
    fs::create_dir(root.join("not-a-model")).unwrap();
    let worker = Worker::start(folder.path(), &["--model-root", "models"]);
    let models = worker.client.get("/v1/models").json();
    assert_eq!(
        (
            &models["data"][0]["id"],
            models["data"].as_array().unwrap().len()
        ),
        (&json!("shapes"), 1)
    );
    let mut job = star(1);
    job["model"] = "shapes".into();
    let job = worker.finished(&worker.submit(&job));
    assert_eq!(
        (&job["status"], &job["model"]),
        (&json!("completed"), &json!("shapes")),
        "{job}"
    );
    assert!(
        !worker
            .client
            .get("/v1/models")
            .text()
            .contains(folder.path().to_str().unwrap())
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[cfg(not(feature = "otel"))]
#[test]
fn a_build_without_an_exporter_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = refused(folder.path(), &["--otlp-endpoint", "http://localhost:1"]);
    assert!(code == 2 && text.contains("--features otel"), "{text}");
}

#[cfg(feature = "otel")]
#[test]
fn spans_go_to_the_collector() {
    use std::io::{Read, Write};

    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let received = std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let mut bytes = vec![];
        // The client keeps the connection: what it sends ends with the silence after it.
        let _ = stream.read_to_end(&mut bytes);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (mut worker, _folder) = Worker::fresh(&["--otlp-endpoint", &endpoint]);
    worker
        .client
        .with("x-request-id", "order-7")
        .get("/v1/models");
    worker.signal("TERM");
    assert_eq!(
        worker.ended(Duration::from_secs(20)).code(),
        Some(0),
        "{}",
        worker.log()
    );
    let received = received.join().unwrap();
    assert!(
        received.starts_with("POST /v1/traces HTTP/1.1\r\n"),
        "{received}"
    );
    for part in ["application/x-protobuf", "sd-worker", "request", "order-7"] {
        assert!(received.contains(part), "{part} is not in {received}");
    }
}
