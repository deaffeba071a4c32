//! OpenAI's image endpoints, byte by byte; OpenAI's own client is in `tests/clients`.

use std::{
    io::{Cursor, Write},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use image::{ImageFormat, RgbaImage};
use serde_json::{Value, json};

use crate::{
    assert_error,
    client::{Client, Reply},
    worker::Worker,
};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const BOUNDARY: &str = "a-boundary";

fn star(fields: Value) -> Value {
    let mut body = json!({"prompt": "a red star on a white background", "num_inference_steps": 2, "seed": 7, "size": "64x64"});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    body
}

fn decoded(b64_json: &Value) -> RgbaImage {
    let file = BASE64_STANDARD.decode(b64_json.as_str().unwrap()).unwrap();
    image::load_from_memory(&file).unwrap().into_rgba8()
}

fn png(picture: &RgbaImage) -> Vec<u8> {
    let mut file = Cursor::new(vec![]);
    picture.write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

/// Sends a form; a part with a file's bytes has a file name.
fn post_form(
    client: &Client,
    path: &str,
    texts: &[(&str, &str)],
    files: &[(&str, &[u8])],
) -> Reply {
    let mut body = vec![];
    for (name, text) in texts {
        write!(
            body,
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n"
        )
        .unwrap();
    }
    for (name, file) in files {
        write!(
            body,
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n"
        )
        .unwrap();
        body.extend(*file);
        body.extend(b"\r\n");
    }
    write!(body, "--{BOUNDARY}--\r\n").unwrap();
    client
        .with(
            "content-type",
            &format!("multipart/form-data; boundary={BOUNDARY}"),
        )
        .send("POST", path, &body)
}

/// The events of an answer: (name, data).
fn events(reply: &Reply) -> Vec<(String, Value)> {
    let events = reply.text();
    events
        .split("\n\n")
        .filter_map(|event| {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            let data = serde_json::from_str(field("data: ")?).unwrap();
            Some((field("event: ")?.to_owned(), data))
        })
        .collect()
}

#[test]
fn pictures_come_back_and_are_those_of_the_job_api() {
    let (worker, _folder) = Worker::fresh(&[]);
    let reply = worker.client.post(GENERATIONS, &star(json!({"n": 2})));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(
        (&body["size"], &body["output_format"], &body["background"]),
        (&json!("64x64"), &json!("png"), &json!("opaque"))
    );
    assert!(
        body["created"].is_u64() && body.get("usage").is_none(),
        "{body}"
    );
    assert_eq!(body["data"][1]["seed"], 8);

    let jobs = worker.client.get("/v1/jobs").json();
    let job = jobs["jobs"][0]["job_id"].as_str().unwrap().to_owned();
    let stored = worker.client.get(&format!("/v1/jobs/{job}/images/1")).body;
    let sent = BASE64_STANDARD
        .decode(body["data"][1]["b64_json"].as_str().unwrap())
        .unwrap();
    assert!(stored == sent);
    assert_eq!(decoded(&body["data"][0]["b64_json"]).dimensions(), (64, 64));
}

#[test]
fn an_address_is_absolute_and_serves_the_picture() {
    let (worker, _folder) = Worker::fresh(&[]);
    let body = worker
        .client
        .post(GENERATIONS, &star(json!({"response_format": "url"})))
        .json();
    let url = body["data"][0]["url"].as_str().unwrap();
    let path = url
        .strip_prefix(&format!("http://{}", worker.client.address()))
        .unwrap();
    let reply = worker.client.get(path);
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("image/png"))
    );
}

#[test]
fn a_stream_has_its_previews_and_the_same_picture() {
    let (worker, _folder) = Worker::fresh(&[]);
    let steps = json!({"num_inference_steps": 9, "stream": true, "partial_images": 2});
    let reply = worker.client.post(GENERATIONS, &star(steps));
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("text/event-stream"))
    );
    let events = events(&reply);
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let partial = "image_generation.partial_image";
    assert_eq!(names, [partial, partial, "image_generation.completed"]);
    for (index, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["type"], *name);
        assert_eq!(
            data["partial_image_index"].as_u64(),
            (index < 2).then_some(index as u64)
        );
        assert_eq!(decoded(&data["b64_json"]).dimensions(), (64, 64));
        assert_eq!(data["size"], "64x64");
        assert_eq!(
            data["usage"]["total_tokens"].as_u64(),
            (index == 2).then_some(0)
        );
    }
    assert_ne!(events[0].1["b64_json"], events[1].1["b64_json"]);
    let whole = worker
        .client
        .post(GENERATIONS, &star(json!({"num_inference_steps": 9})))
        .json();
    assert_eq!(events[2].1["b64_json"], whole["data"][0]["b64_json"]);
}

#[test]
fn an_edit_repaints_where_the_mask_is_transparent() {
    let (worker, _folder) = Worker::fresh(&[]);
    let red = png(&RgbaImage::from_pixel(
        64,
        64,
        image::Rgba([255, 0, 0, 255]),
    ));
    let mask = RgbaImage::from_fn(64, 64, |x, _| {
        image::Rgba([0, 0, 0, if x < 32 { 255 } else { 0 }])
    });
    let texts = [
        ("prompt", "a blue square"),
        ("steps", "2"),
        ("seed", "7"),
        ("n", "1"),
    ];
    let reply = post_form(
        &worker.client,
        EDITS,
        &texts,
        &[("image", &red), ("mask", &png(&mask))],
    );
    assert_eq!(reply.status, 200, "{}", reply.text());
    let picture = decoded(&reply.json()["data"][0]["b64_json"]);
    // Every pixel passes through the autoencoder: the kept half is near to what it was.
    let mean = |left: u32| {
        let sum: [u32; 3] = (0..64 * 32).fold([0; 3], |sum, index| {
            let pixel = picture.get_pixel(left + index % 32, index / 32);
            std::array::from_fn(|channel| sum[channel] + u32::from(pixel[channel]))
        });
        sum.map(|sum| sum / (64 * 32))
    };
    let [kept, repainted] = [mean(0), mean(32)];
    let distance = |colour: [u32; 3]| colour[0].abs_diff(255) + colour[1] + colour[2];
    assert!(
        2 * distance(kept) < distance(repainted),
        "{kept:?} {repainted:?}"
    );
    let job = worker.client.get("/v1/jobs").json()["jobs"][0].clone();
    assert_eq!(job["operation"], "image_inpaint");
}

#[test]
fn forms_are_refused_by_part() {
    let (worker, _folder) = Worker::fresh(&[]);
    let red = png(&RgbaImage::from_pixel(
        64,
        64,
        image::Rgba([255, 0, 0, 255]),
    ));
    let small = png(&RgbaImage::from_pixel(32, 32, image::Rgba([0; 4])));
    let prompt = ("prompt", "x");
    type Form<'a> = (Vec<(&'a str, &'a str)>, Vec<(&'a str, &'a [u8])>, &'a str);
    let forms: [Form<'_>; 8] = [
        (vec![prompt], vec![], "image"),
        (vec![], vec![("image", &red)], "prompt"),
        (
            vec![prompt],
            vec![("image", &red), ("image[]", &red)],
            "image",
        ),
        (vec![prompt], vec![("image", b"no picture")], "image"),
        (
            vec![prompt],
            vec![("image", &red), ("mask", &small)],
            "mask",
        ),
        (vec![prompt, ("n", "x")], vec![("image", &red)], "n"),
        (
            vec![prompt, ("markup", "x")],
            vec![("image", &red)],
            "markup",
        ),
        (
            vec![prompt, ("input_fidelity", "high")],
            vec![("image", &red)],
            "input_fidelity",
        ),
    ];
    for (texts, files, param) in forms {
        let reply = post_form(&worker.client, EDITS, &texts, &files);
        assert_eq!(reply.status, 400, "{param}: {}", reply.text());
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text());
    }
    let reply = worker.client.post(EDITS, &star(json!({})));
    assert_error(&reply, 415, "unsupported_media_type", Some("Content-Type"));
    worker.assert_healthy();
}

#[test]
fn a_picture_beyond_the_limit_is_not_decoded() {
    let (worker, _folder) = Worker::fresh(&["--max-pixels", "4096"]);
    let of = |width: u32| png(&RgbaImage::from_pixel(width, 64, image::Rgba([0; 4])));
    let (fits, large) = (of(64), of(72));
    for (files, param) in [
        (vec![("image", &large[..])], "image"),
        (vec![("image", &large[..]), ("mask", &large[..])], "image"),
        (vec![("image", &fits[..]), ("mask", &large[..])], "mask"),
        // Without pixels: the header alone tells.
        (vec![("image", &large[..60])], "image"),
    ] {
        let reply = post_form(&worker.client, EDITS, &[("prompt", "x")], &files);
        assert_error(&reply, 400, "invalid_value", Some(param));
        assert!(reply.text().contains("4096"), "{}", reply.text());
    }
    worker.assert_healthy();
}

#[test]
fn wrong_fields_are_400_and_an_unknown_model_is_404() {
    let (worker, _folder) = Worker::fresh(&[]);
    for (fields, code, param) in [
        (
            json!({"quality": "high"}),
            "unsupported_parameter",
            "quality",
        ),
        (json!({"sede": 3}), "unsupported_parameter", "sede"),
        (
            json!({"prompt": "x".repeat((64 << 10) + 1)}),
            "invalid_value",
            "prompt",
        ),
        (json!({"n": 11}), "invalid_value", "n"),
        (json!({"n": "many"}), "invalid_value", "n"),
        (json!({"size": "63x64"}), "invalid_value", "size"),
        (json!({"scheduler": "x"}), "invalid_value", "scheduler"),
        (
            json!({"guidance_scale": 101}),
            "invalid_value",
            "guidance_scale",
        ),
    ] {
        let reply = worker.client.post(GENERATIONS, &star(fields));
        assert_error(&reply, 400, code, Some(param));
    }
    let reply = worker
        .client
        .post(GENERATIONS, &star(json!({"model": "../x"})));
    assert_error(&reply, 404, "model_not_found", Some("model"));
}

#[test]
fn a_client_that_leaves_cancels_its_job_unless_it_has_a_key() {
    let (worker, _folder) = Worker::fresh(&[]);
    let body = star(json!({"num_inference_steps": 900})).to_string();
    let kept = star(json!({"num_inference_steps": 3, "seed": 1}));
    let leave = |client: &Client, body: &str| {
        let client = client.with("content-type", "application/json");
        let mut stream = client.connect();
        let head = client.head("POST", GENERATIONS);
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        thread::sleep(Duration::from_millis(500));
    };
    leave(&worker.client, &body);
    let newest = || {
        let jobs = worker.client.get("/v1/jobs").json();
        format!("/v1/jobs/{}", jobs["jobs"][0]["job_id"].as_str().unwrap())
    };
    assert_eq!(worker.finished(&newest())["status"], "cancelled");

    let client = worker.client.with("idempotency-key", "mine");
    leave(&client, &kept.to_string());
    let path = newest();
    assert_eq!(worker.finished(&path)["status"], "completed");
    let again = client.post(GENERATIONS, &kept);
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(newest(), path, "no second job");
    let other = client.post(GENERATIONS, &star(json!({"seed": 2})));
    assert_error(&other, 409, "idempotency_conflict", Some("Idempotency-Key"));
}
