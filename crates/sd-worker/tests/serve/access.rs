//! Who may use the worker, and from where.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    assert_error, star,
    worker::{PATIENCE, Worker},
};

const KEYS: &str = "alice:key-of-alice\nbob:key-of-bob\n";

fn with_keys(flags: &[&str]) -> (Worker, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys"), KEYS).unwrap();
    let flags = [&["--api-key-file", "keys"], flags].concat();
    (Worker::start(folder.path(), &flags), folder)
}

#[test]
fn without_a_known_key_only_probes_and_documentation_answer() {
    let (worker, _folder) = with_keys(&[]);
    for path in ["/health", "/ready", "/docs", "/openapi.json"] {
        assert_ne!(worker.client.get(path).status, 401, "{path}");
    }
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    for (name, value) in [
        ("x-none", ""),
        ("authorization", "Bearer"),
        ("authorization", "Bearer wrong"),
        ("authorization", "Bearer key-of-alicE"),
        ("authorization", "Bearer key-of-alice-and-more"),
        ("authorization", "Bearer alice:key-of-alice"),
        ("authorization", "key-of-alice"),
        ("authorization", "Digest key-of-alice"),
        ("authorization", "Basic key-of-alice"),
        ("authorization", &basic("alice:wrong")),
        ("x-api-key", ""),
        ("x-api-key", "key-of"),
    ] {
        let client = worker.client.with(name, value);
        for path in ["/v1/jobs", "/v1/models", "/metrics", "/nowhere"] {
            let reply = client.get(path);
            assert_error(&reply, 401, "invalid_api_key", None);
            assert_eq!(reply.all("www-authenticate").len(), 2);
        }
        assert_eq!(
            client.post("/v1/jobs", &star(1)).status,
            401,
            "{name}: {value}"
        );
    }
    for (name, value) in [
        ("authorization", "Bearer key-of-alice"),
        ("x-api-key", "key-of-bob"),
        ("authorization", &basic("anyone:key-of-bob")),
    ] {
        assert_eq!(
            worker.client.with(name, value).get("/v1/models").status,
            200,
            "{value}"
        );
    }
    worker.signal("TERM");
    let log = worker.whole_log();
    assert!(!log.contains("key-of-"), "{log}");
}

#[test]
fn clients_do_not_see_each_others_jobs() {
    let (worker, _folder) = with_keys(&[]);
    let alice = worker.client.with("x-api-key", "key-of-alice");
    let bob = worker.client.with("x-api-key", "key-of-bob");
    let job = alice.post("/v1/jobs", &star(900)).json();
    let path = format!("/v1/jobs/{}", job["job_id"].as_str().unwrap());
    assert_eq!(alice.get(&path).status, 200);
    for path in [
        path.clone(),
        format!("{path}/stream"),
        format!("{path}/images/0"),
    ] {
        assert_error(&bob.get(&path), 404, "not_found", Some("job_id"));
    }
    let step = || {
        alice.get(&path).json()["progress"]["step"]
            .as_u64()
            .unwrap()
    };
    let until = |least: u64| {
        let start = Instant::now();
        while step() < least {
            assert!(start.elapsed() < PATIENCE, "{}", worker.log());
            thread::sleep(Duration::from_millis(20));
        }
    };
    until(1);
    assert_eq!(bob.delete(&path).status, 404);
    // It is not cancelled: it goes on beyond the step at which a cancelled job stops.
    until(step() + 3);
    assert_eq!(alice.get(&path).json()["status"], "running");
    assert_eq!(
        bob.get("/v1/jobs").json()["jobs"].as_array().unwrap().len(),
        0
    );
    assert_eq!(
        alice.get("/v1/jobs").json()["jobs"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(alice.delete(&path).json()["status"], "cancelled");
}

#[test]
fn a_page_of_another_site_cannot_reach_a_local_worker() {
    let (worker, _folder) = Worker::fresh(&[]);
    let own = format!("http://{}", worker.client.address());
    assert_eq!(
        worker.client.with("origin", &own).get("/v1/models").status,
        200
    );
    for origin in [
        "https://evil.example",
        "null",
        "http://localhost:1",
        &own.replace("http", "ftp://"),
    ] {
        let reply = worker
            .client
            .with("origin", origin)
            .post("/v1/jobs", &star(1));
        assert_error(&reply, 403, "origin_not_allowed", Some("Origin"));
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
    for host in [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.example",
        "192.168.0.1",
    ] {
        let reply = worker.client.with("host", host).get("/v1/models");
        assert_error(&reply, 403, "host_not_allowed", Some("Host"));
    }
    for host in ["localhost", "LocalHost:80", "127.0.0.1:7860", "[::1]:7860"] {
        assert_eq!(
            worker.client.with("host", host).get("/health").status,
            200,
            "{host}"
        );
    }
}

#[test]
fn origins_and_hosts_can_be_allowed() {
    let (worker, _folder) = with_keys(&[
        "--cors-origin",
        "https://app.example",
        "--allowed-host",
        "worker.example",
    ]);
    let page = worker
        .client
        .with("origin", "https://app.example")
        .with("host", "worker.example:443");
    let preflight = page
        .with("access-control-request-method", "POST")
        .with(
            "access-control-request-headers",
            "authorization,content-type",
        )
        .send("OPTIONS", "/v1/jobs", b"");
    assert_eq!(preflight.status, 200);
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    let reply = page.with("x-api-key", "key-of-bob").get("/v1/models");
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert_eq!(
        page.with("origin", "https://other.example")
            .get("/health")
            .status,
        403
    );
}

#[test]
fn prompts_are_not_in_the_log() {
    let (mut worker, _folder) = Worker::fresh(&[]);
    let wish = "a very private wish";
    let job =
        |prompt: Value| json!({"operation": "image_generation", "prompt": prompt, "steps": 1});
    worker.finished(&worker.submit(&job(json!(wish))));
    let openai = |prompt: Value| json!({"prompt": prompt, "steps": 1});
    let a1111 = |prompt: Value| json!({"prompt": prompt, "steps": 1, "negative_prompt": wish});
    // Of a wrong type, and refused for what is in it or around it.
    let long = format!("{wish}{}", "x".repeat(64 << 10));
    for (path, body, status) in [
        ("/v1/jobs", job(json!([wish])), 422),
        ("/v1/jobs", job(json!(long)), 422),
        ("/v1/images/generations", openai(json!(wish)), 200),
        ("/v1/images/generations", openai(json!([wish])), 400),
        ("/v1/images/generations", openai(json!(long)), 400),
        ("/sdapi/v1/txt2img", a1111(json!(wish)), 200),
        ("/sdapi/v1/txt2img", a1111(json!([wish])), 422),
        ("/sdapi/v1/txt2img", a1111(json!(long)), 422),
        (
            "/sdapi/v1/txt2img",
            a1111(json!(format!("{wish} <lora:x:1>"))),
            422,
        ),
    ] {
        let reply = worker.client.post(path, &body);
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    worker.signal("TERM");
    worker.ended(PATIENCE);
    let log = worker.whole_log();
    assert!(!log.contains("private wish"), "{log}");
}
