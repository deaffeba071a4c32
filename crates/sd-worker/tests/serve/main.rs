//! The service as a client meets it: the real binary over real sockets, with the built-in model.

mod a1111;
mod access;
mod bad_input;
mod client;
mod documents;
mod images;
mod jobs;
mod kill;
mod openai;
mod process;
mod stream;
mod worker;

use std::io::Cursor;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use client::Reply;
use serde_json::{Value, json};

/// A job of `steps` steps whose picture is the same every time.
fn star(steps: usize) -> Value {
    json!({
        "operation": "image_generation",
        "prompt": "a red star on a white background",
        "steps": steps,
        "seed": 7,
    })
}

/// The PNG file of a white picture, in base64.
fn png(width: u32, height: u32) -> String {
    let mut file = Cursor::new(vec![]);
    image::RgbImage::from_pixel(width, height, image::Rgb([255; 3]))
        .write_to(&mut file, image::ImageFormat::Png)
        .unwrap();
    BASE64_STANDARD.encode(file.into_inner())
}

/// The reply is an error of that status and code, in the one form of errors, and blames `param`.
fn assert_error(reply: &Reply, status: u16, code: &str, param: Option<&str>) {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let body = reply.json();
    let error = &body["error"];
    assert_eq!(error["code"], code, "{body}");
    assert_eq!(error["param"].as_str(), param, "{body}");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{body}"
    );
    assert!(error["type"].is_string(), "{body}");
    assert_eq!(body.as_object().map(|body| body.len()), Some(1), "{body}");
}
