//! What no worker should be sent: each case is refused with the right status and the name of what is wrong, and the worker
//! is as well afterwards as before.

use std::{
    fmt::Write as _,
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{assert_error, client::Reply, png, star, worker::Worker};

const LIMITS: [&str; 10] = [
    "--max-body",
    "1MiB",
    "--max-steps",
    "50",
    "--max-images",
    "4",
    "--max-pixels",
    "262144",
    "--body-timeout-seconds",
    "1",
];

/// `star` with another value of one field.
fn with(field: &str, value: impl Into<Value>) -> Value {
    let mut job = star(1);
    job[field] = value.into();
    job
}

fn without(field: &str) -> Value {
    let mut job = star(1);
    job.as_object_mut().unwrap().remove(field);
    job
}

fn transform(fields: Value) -> Value {
    let mut job = json!({"operation": "image_transform", "prompt": "a star", "steps": 4, "init_image": png(64, 64)});
    job.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    job
}

fn inpaint(fields: Value) -> Value {
    let mut job = transform(json!({"operation": "image_inpaint", "mask_image": png(64, 64)}));
    job.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    job
}

/// A PNG file of a few bytes whose header promises `width` x `height` pixels.
fn bomb(width: u32, height: u32) -> String {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&header);
    file.extend(crc32(&header).to_be_bytes());
    file.extend(b"\0\0\0\0IDAT");
    file.extend(crc32(b"IDAT").to_be_bytes());
    BASE64_STANDARD.encode(file)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| {
            (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
        })
    })
}

#[test]
fn jobs_that_cannot_be_are_refused_by_field() {
    let whole = png(64, 64);
    let truncated_png = BASE64_STANDARD.encode(&BASE64_STANDARD.decode(&whole).unwrap()[..60]);
    let long = "x".repeat(300);
    let too_long = "x".repeat((64 << 10) + 1);
    let cases: Vec<(Value, &str)> = vec![
        // What is missing or not there at all.
        (without("operation"), "operation"),
        (without("prompt"), "prompt"),
        (with("operation", "image_upscale"), "operation"),
        (with("operation", 3), "operation"),
        (with("promt", "a star"), "promt"),
        (with("Prompt", "a star"), "Prompt"),
        (with("__proto__", json!({})), "__proto__"),
        (with("webhook", "http://localhost"), "webhook"),
        // Types.
        (with("prompt", Value::Null), "prompt"),
        (with("prompt", 1), "prompt"),
        (with("prompt", json!(["a star"])), "prompt"),
        (with("negative_prompt", false), "negative_prompt"),
        (with("steps", "7"), "num_inference_steps"),
        (with("steps", 1.5), "num_inference_steps"),
        (with("width", json!({})), "width"),
        (with("seed", "7"), "seed"),
        (with("seed", -1), "seed"),
        (with("seed", 1.0e300), "seed"),
        (with("guidance_scale", "high"), "guidance_scale"),
        (with("original_size", json!([64])), "original_size"),
        (with("hires", true), "hires"),
        (with("hires", json!({"sclae": 2})), "hires"),
        (with("model", 1), "model"),
        (with("priority", "high"), "priority"),
        (with("deadline", 12), "deadline"),
        (with("previews", "yes"), "previews"),
        (with("hive_id", 5), "hive_id"),
        // Ranges and sizes.
        (with("steps", 0), "num_inference_steps"),
        (with("steps", 51), "num_inference_steps"),
        (with("steps", -1), "num_inference_steps"),
        (with("steps", u64::MAX), "num_inference_steps"),
        (with("guidance_scale", -0.5), "guidance_scale"),
        (with("guidance_scale", 101), "guidance_scale"),
        (with("guidance_rescale", 1.01), "guidance_rescale"),
        (with("eta", 2), "eta"),
        (with("clip_skip", 1000), "clip_skip"),
        (with("width", 0), "width"),
        (with("width", 65), "width"),
        (with("height", 12), "height"),
        (with("width", u64::MAX), "width"),
        (with("width", 8192), "width"),
        (with("height", 1 << 20), "width"),
        (with("num_images", 0), "num_images"),
        (with("num_images", 5), "num_images"),
        (with("scheduler", "magic"), "scheduler"),
        (with("seed_mode", "random"), "seed_mode"),
        (with("original_size", json!([64, 64])), "original_size"),
        (with("prompt_2", "a star"), "prompt_2"),
        (with("variation_strength", 2), "variation_strength"),
        (with("denoising_end", 0.5), "denoising_end"),
        (with("hires", json!({"scale": 1000})), "hires"),
        (with("hires", json!({"num_inference_steps": 51})), "hires"),
        (with("priority", 101), "priority"),
        (with("priority", i64::MIN), "priority"),
        (with("deadline", "tomorrow"), "deadline"),
        (with("deadline", "2001-01-01T00:00:00Z"), "deadline"),
        (with("previews", json!({"every": 0})), "previews"),
        (with("previews", json!({"kind": "huge"})), "previews"),
        (with("hive_id", long.as_str()), "hive_id"),
        (with("prompt", too_long.as_str()), "prompt"),
        (
            with("negative_prompt", too_long.as_str()),
            "negative_prompt",
        ),
        (with("prompt_2", too_long.as_str()), "prompt_2"),
        (
            with("negative_prompt_2", too_long.as_str()),
            "negative_prompt_2",
        ),
        (with("callback_url", "http://127.0.0.1/"), "callback_url"),
        (with("loras", json!([{"path": "/etc/passwd"}])), "loras"),
        // Pictures and masks.
        (with("init_image", whole.as_str()), "init_image"),
        (with("mask_image", whole.as_str()), "mask_image"),
        (with("strength", 0.5), "strength"),
        (transform(json!({"init_image": null})), "init_image"),
        (transform(json!({"init_image": 7})), "init_image"),
        (transform(json!({"init_image": ""})), "init_image"),
        (
            transform(json!({"init_image": "not base64!"})),
            "init_image",
        ),
        (transform(json!({"init_image": &whole[..61]})), "init_image"),
        (
            transform(json!({"init_image": truncated_png})),
            "init_image",
        ),
        (
            transform(json!({"init_image": "data:image/png;base64,"})),
            "init_image",
        ),
        (
            transform(json!({"init_image": "data:text/plain,hello"})),
            "init_image",
        ),
        (
            transform(json!({"init_image": "file:///etc/passwd"})),
            "init_image",
        ),
        (
            transform(json!({"init_image": "http://127.0.0.1/x.png"})),
            "init_image",
        ),
        (
            transform(json!({"init_image": "R0lGODlhAQABAAAAACw="})),
            "init_image",
        ),
        (
            transform(json!({"init_image": bomb(50_000, 50_000)})),
            "init_image",
        ),
        (
            transform(json!({"init_image": bomb(u32::MAX, 1)})),
            "init_image",
        ),
        (transform(json!({"init_image": bomb(0, 0)})), "init_image"),
        (transform(json!({"init_image": bomb(64, 64)})), "init_image"),
        (
            transform(json!({"init_image": png(1024, 512)})),
            "init_image",
        ),
        (transform(json!({"input_image": whole})), "input_image"),
        (transform(json!({"strength": 1.5})), "strength"),
        (transform(json!({"strength": "much"})), "strength"),
        (transform(json!({"resize_mode": "melt"})), "resize_mode"),
        (transform(json!({"mask_image": whole})), "mask_image"),
        (inpaint(json!({"mask_image": null})), "mask_image"),
        (inpaint(json!({"mask_image": "AAAA"})), "mask_image"),
        (
            inpaint(json!({"mask_image": bomb(50_000, 50_000)})),
            "mask_image",
        ),
        (inpaint(json!({"mask_polarity": "grey"})), "mask_polarity"),
        (inpaint(json!({"mask_blur": -1})), "mask_blur"),
        (inpaint(json!({"mask_blur": 1e9})), "mask_blur"),
        (
            inpaint(json!({"padding_mask_crop": -1})),
            "padding_mask_crop",
        ),
    ];
    let (worker, _folder) = Worker::fresh(&LIMITS);
    let mut wrong = String::new();
    for (body, field) in &cases {
        let reply = worker.client.post("/v1/jobs", body);
        let error = &reply.json()["error"];
        let param = error["param"].as_str().unwrap_or_default();
        let named = param == *field
            || param
                .strip_prefix(field)
                .is_some_and(|rest| rest.starts_with('.'));
        if reply.status != 422 || !named || !error["message"].is_string() {
            let shown: String = body.to_string().chars().take(200).collect();
            let _ = writeln!(
                wrong,
                "{field}: {} {} for {shown}",
                reply.status,
                reply.text()
            );
        }
    }
    assert!(wrong.is_empty(), "of {} cases:\n{wrong}", cases.len());
    assert!(cases.len() >= 60);
    assert_unharmed(&worker);
}

#[test]
fn bodies_that_are_no_job_are_refused_by_kind() {
    let (worker, _folder) = Worker::fresh(&LIMITS);
    let json = worker.client.with("content-type", "application/json");
    let post = |body: &[u8]| json.send("POST", "/v1/jobs", body);
    let deep = "[".repeat(5_000);
    for body in [
        &b""[..],
        b"{",
        b"{\"prompt\": }",
        b"{\"operation\": \"image_generation\", \"prompt\": \"\xff\"}",
        b"{} {}",
        b"NaN",
        b"{\"prompt\": \"\\ud800\"}",
        deep.as_bytes(),
    ] {
        assert_error(&post(body), 400, "invalid_json", None);
    }
    let wide = format!("{{\"prompt\": [0{}]}}", ",0".repeat(100_000));
    assert_error(&post(wide.as_bytes()), 413, "body_too_large", None);
    for body in [&b"[]"[..], b"null", b"7", b"\"prompt\""] {
        assert_error(&post(body), 422, "invalid_value", None);
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
        "json",
    ] {
        let reply = worker.client.with("content-type", kind).send(
            "POST",
            "/v1/jobs",
            star(1).to_string().as_bytes(),
        );
        assert_error(&reply, 415, "unsupported_media_type", Some("Content-Type"));
    }
    let none = worker
        .client
        .send("POST", "/v1/jobs", star(1).to_string().as_bytes());
    assert_error(&none, 415, "unsupported_media_type", Some("Content-Type"));
    assert_unharmed(&worker);
}

#[test]
fn paths_and_parameters_that_are_not_there_are_refused() {
    let (worker, _folder) = Worker::fresh(&[]);
    let job = worker.submit(&star(1));
    worker.finished(&job);
    let unknown = "/v1/jobs/0199a0c2-0000-7000-8000-000000000000";
    for (method, path, status, param) in [
        ("GET", "/".to_owned(), 404, None),
        ("GET", "/v1/job".to_owned(), 404, None),
        ("GET", "/v1/jobs/".to_owned(), 404, None),
        (
            "GET",
            "/v1/jobs/..%2f..%2fetc%2fpasswd".to_owned(),
            404,
            Some("job_id"),
        ),
        ("GET", "/v1/jobs/%ff".to_owned(), 404, None),
        ("GET", "/v1/jobs/7".to_owned(), 404, Some("job_id")),
        ("GET", unknown.to_owned(), 404, Some("job_id")),
        ("DELETE", unknown.to_owned(), 404, Some("job_id")),
        ("GET", format!("{unknown}/stream"), 404, Some("job_id")),
        ("GET", format!("{unknown}/images/0"), 404, Some("job_id")),
        ("GET", format!("{job}/images/1"), 404, Some("index")),
        ("GET", format!("{job}/images/-1"), 404, Some("index")),
        ("GET", format!("{job}/images/..%2f0"), 404, Some("index")),
        (
            "GET",
            format!("{job}/images/99999999999999999999"),
            404,
            Some("index"),
        ),
        ("PUT", job.clone(), 405, None),
        ("POST", "/v1/models".to_owned(), 405, None),
        ("DELETE", "/health".to_owned(), 405, None),
        ("GET", "/v1/jobs?limit=0".to_owned(), 422, Some("limit")),
        ("GET", "/v1/jobs?limit=101".to_owned(), 422, Some("limit")),
        ("GET", "/v1/jobs?limit=many".to_owned(), 422, Some("limit")),
        ("GET", "/v1/jobs?state=done".to_owned(), 422, Some("state")),
        ("GET", "/v1/jobs?cursor=1".to_owned(), 422, Some("cursor")),
        ("GET", "/v1/jobs?page=1".to_owned(), 422, Some("page")),
    ] {
        let reply = worker.client.send(method, &path, b"");
        let code = match status {
            404 => "not_found",
            405 => "method_not_allowed",
            _ => "invalid_value",
        };
        assert_error(&reply, status, code, param);
    }
    let after = worker
        .client
        .with("last-event-id", "yesterday")
        .get(&format!("{job}/stream"));
    assert_error(&after, 422, "invalid_value", Some("Last-Event-ID"));
    assert_unharmed(&worker);
}

#[test]
fn a_model_is_a_name_and_never_a_path() {
    let (worker, folder) = Worker::fresh(&[]);
    let here = folder.path().to_str().unwrap().to_owned();
    for name in [
        "",
        ".",
        "..",
        "../builtin",
        "builtin/../builtin",
        "./builtin",
        "builtin/",
        "/",
        "/etc/passwd",
        "..%2f..%2fetc",
        "C:\\models\\sd",
        "\\\\server\\share",
        "builtin\0",
        "BUILTIN",
        " builtin",
        "~",
        "file:///etc",
        "stabilityai/sd-turbo",
        "https://example.com/model",
        "$HOME",
        &"a".repeat(100_000),
        &here,
    ] {
        let reply = worker.client.post("/v1/jobs", &with("model", name));
        assert_error(&reply, 404, "model_not_found", Some("model"));
        assert!(!reply.text().contains("No such file"), "{}", reply.text());
    }
    assert_unharmed(&worker);
}

#[test]
fn a_body_that_is_too_long_is_refused_before_it_is_read() {
    let (worker, _folder) = Worker::fresh(&LIMITS);
    let start = Instant::now();
    let mut stream = worker.client.connect();
    let head = worker.client.head("POST", "/v1/jobs")
        + "content-type: application/json\r\ncontent-length: 1000000000000\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    let reply = Reply::try_read(stream).unwrap();
    assert_error(&reply, 413, "body_too_large", None);
    assert!(start.elapsed() < Duration::from_secs(5));

    let mut stream = worker.client.connect();
    let head = worker.client.head("POST", "/v1/jobs")
        + "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..17 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let reply = Reply::try_read(stream).unwrap();
    assert_error(&reply, 413, "body_too_large", None);
    assert_unharmed(&worker);
}

#[test]
fn whoever_dawdles_is_cut_off() {
    let flags = [&LIMITS[..], &["--header-timeout-seconds", "1"]].concat();
    let (worker, _folder) = Worker::fresh(&flags);
    let mut slow_head = worker.client.connect();
    let mut slow_body = worker.client.connect();
    slow_head
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        .unwrap();
    let head = worker.client.head("POST", "/v1/jobs")
        + "content-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    slow_body.write_all(head.as_bytes()).unwrap();
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(150));
        // Steady dripping does not help.
        let _ = slow_head.write_all(b"a");
        let _ = slow_body.write_all(b" ");
    }
    let reply = Reply::try_read(slow_body).unwrap();
    assert_error(&reply, 408, "body_timeout", None);
    let head = Reply::try_read(slow_head);
    assert!(head.is_none_or(|reply| reply.status == 408));
    assert_unharmed(&worker);
}

#[test]
fn what_is_not_http_is_dropped() {
    let (worker, _folder) = Worker::fresh(&[]);
    let endless = format!(
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    for bytes in [
        &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        endless.as_bytes(),
    ] {
        let mut stream = worker.client.connect();
        let _ = stream.write_all(bytes);
        let reply = Reply::try_read(stream);
        assert!(reply.is_none_or(|reply| (400..500).contains(&reply.status)));
    }
    assert_unharmed(&worker);
}

/// The worker answers, has logged no panic and no failure, and still draws.
fn assert_unharmed(worker: &Worker) {
    worker.assert_healthy();
    assert!(!worker.log().contains("ERROR"), "{}", worker.log());
    let job = worker.finished(&worker.submit(&star(1)));
    assert_eq!(job["status"], "completed", "{job}");
}
