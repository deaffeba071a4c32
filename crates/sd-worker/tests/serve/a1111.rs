//! The web UI's API, byte by byte; a client from PyPI is in `tests/clients`.

use std::{fs, thread, time::Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    assert_error,
    client::Reply,
    png,
    worker::{PATIENCE, Worker},
};

const TXT2IMG: &str = "/sdapi/v1/txt2img";

fn star(fields: Value) -> Value {
    let mut body = json!({"prompt": "a red star on a white background", "steps": 2, "seed": 7, "width": 64, "height": 64});
    body.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    body
}

fn info(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_str(reply.json()["info"].as_str().unwrap()).unwrap()
}

#[test]
fn a_reply_has_its_pictures_and_says_how_they_were_made() {
    let (worker, _folder) = Worker::fresh(&[]);
    let reply = worker.client.post(
        TXT2IMG,
        &star(json!({"batch_size": 2, "unheard_of": [1], "eta": null})),
    );
    let info = info(&reply);
    let body = reply.json();
    assert_eq!(body["images"].as_array().unwrap().len(), 2);
    assert_eq!(body["parameters"]["steps"], 2);
    assert_eq!(
        (&info["seed"], &info["all_seeds"]),
        (&json!(7), &json!([7, 8]))
    );
    assert_eq!((&info["width"], &info["steps"]), (&json!(64), &json!(2)));
    assert!(
        info["sd_model_hash"]
            .as_str()
            .is_some_and(|hash| hash.len() == 10),
        "{info}"
    );

    let png = worker
        .client
        .post("/sdapi/v1/png-info", &json!({"image": body["images"][1]}))
        .json();
    assert_eq!(png["info"], info["infotexts"][1]);
    assert_eq!(png["parameters"]["Seed"], "8");
    assert!(png["items"]["sd"].is_string(), "{png}");
}

#[test]
fn a_drawn_seed_is_told_and_makes_the_picture_again() {
    let (worker, _folder) = Worker::fresh(&[]);
    let drawn = worker.client.post(TXT2IMG, &star(json!({"seed": -1})));
    let seed = info(&drawn)["seed"].clone();
    let again = worker.client.post(TXT2IMG, &star(json!({"seed": seed})));
    assert_eq!(drawn.json()["images"], again.json()["images"]);
}

#[test]
fn errors_have_the_web_uis_form() {
    let (worker, _folder) = Worker::fresh(&[]);
    for (fields, name) in [
        (json!({"restore_faces": true}), "restore_faces"),
        (json!({"steps": "many"}), "steps"),
        (json!({"cfg_scale": 101}), "cfg_scale"),
        (json!({"width": 63}), "width"),
        (json!({"sampler_name": "none"}), "sampler_name"),
        (
            json!({"alwayson_scripts": {"ControlNet": {"args": [1]}}}),
            "alwayson_scripts.ControlNet",
        ),
        (
            json!({"override_settings": {"sd_model_checkpoint": "../x"}}),
            "override_settings.sd_model_checkpoint",
        ),
        (json!({"styles": "x"}), "styles"),
        (
            json!({"negative_prompt": "x".repeat((64 << 10) + 1)}),
            "negative_prompt",
        ),
        (json!({"force_task_id": "x".repeat(201)}), "force_task_id"),
    ] {
        let reply = worker.client.post(TXT2IMG, &star(fields));
        assert_eq!(reply.status, 422, "{name}: {}", reply.text());
        let body = reply.json();
        assert_eq!(body["errors"], name, "{body}");
        assert!(
            body["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains(name)),
            "{body}"
        );
        assert!(
            body["error"].is_string() && body["body"].is_string(),
            "{body}"
        );
    }
    worker.assert_healthy();
}

#[test]
fn errors_before_a_request_is_read_have_the_web_uis_form_too() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("keys"), "alice:key-of-alice\n").unwrap();
    let flags = ["--api-key-file", "keys", "--max-body", "1 KiB"];
    let worker = Worker::start(folder.path(), &flags);
    let alice = worker.client.with("x-api-key", "key-of-alice");
    let long = star(json!({"negative_prompt": "x".repeat(2000)}));
    for (reply, status) in [
        (worker.client.post(TXT2IMG, &star(json!({}))), 401),
        (alice.get("/sdapi/v1/nowhere"), 404),
        (alice.get(TXT2IMG), 405),
        (alice.post(TXT2IMG, &long), 413),
        (alice.post("/internal/progress", &long), 413),
    ] {
        let body = reply.json();
        assert_eq!(reply.status, status, "{body}");
        let is_text = |name: &str| body[name].is_string();
        assert!(
            ["error", "detail", "body", "errors"]
                .into_iter()
                .all(is_text),
            "{status}: {body}"
        );
    }
    assert_error(&alice.get("/nowhere"), 404, "not_found", None);
}

#[test]
fn a_picture_beyond_the_limit_is_not_decoded() {
    let (worker, _folder) = Worker::fresh(&["--max-pixels", "4096"]);
    for (image, mask, field) in [
        (png(72, 64), None, "init_images"),
        (png(72, 64), Some(png(64, 64)), "init_images"),
        (png(64, 64), Some(png(72, 64)), "mask"),
        // Without pixels: the header alone tells.
        (
            png(72, 64)[..80].to_owned(),
            Some(png(64, 64)),
            "init_images",
        ),
    ] {
        let body = star(json!({"init_images": [image], "mask": mask}));
        let reply = worker.client.post("/sdapi/v1/img2img", &body);
        assert_eq!(
            (reply.status, &reply.json()["errors"]),
            (422, &json!(field)),
            "{}",
            reply.text()
        );
        assert!(reply.text().contains("4096"), "{}", reply.text());
    }
    worker.assert_healthy();
}

#[test]
fn a_reply_repeats_the_pictures_it_was_given_only_if_asked() {
    let (worker, _folder) = Worker::fresh(&[]);
    let picture = png(64, 64);
    for (asked, init_images, mask) in [
        (json!(null), json!(null), json!(null)),
        (json!(true), json!([&picture]), json!(&picture)),
    ] {
        let body = star(json!({
            "init_images": [&picture], "mask": &picture, "include_init_images": asked,
        }));
        let reply = worker.client.post("/sdapi/v1/img2img", &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let parameters = &reply.json()["parameters"];
        assert_eq!(
            (&parameters["init_images"], &parameters["mask"]),
            (&init_images, &mask)
        );
        assert_eq!(parameters["seed"], 7);
    }
}

#[test]
fn options_of_a_request_stay_only_if_it_is_accepted() {
    let (worker, _folder) = Worker::fresh(&[]);
    let skipped =
        || worker.client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"].clone();
    let lasting = json!({
        "override_settings": {"CLIP_stop_at_last_layers": 2},
        "override_settings_restore_afterwards": false,
    });
    let mut refused = lasting.clone();
    refused["width"] = json!(63);
    let reply = worker.client.post(TXT2IMG, &star(refused));
    assert_eq!(reply.status, 422, "{}", reply.text());
    assert_eq!(skipped(), 1);
    assert_eq!(
        info(&worker.client.post(TXT2IMG, &star(lasting)))["clip_skip"],
        2
    );
    assert_eq!(skipped(), 2);
}

#[test]
fn progress_follows_a_request_until_it_is_interrupted() {
    let (worker, _folder) = Worker::fresh(&[]);
    let idle = worker.client.get("/sdapi/v1/progress").json();
    assert_eq!(
        (&idle["progress"], &idle["state"]["job_count"]),
        (&json!(0.0), &json!(0))
    );
    assert_eq!(
        worker
            .client
            .send("POST", "/sdapi/v1/interrupt", b"")
            .json(),
        json!({})
    );

    let client = worker.client.clone();
    let body = star(json!({"steps": 900, "force_task_id": "mine"}));
    let request = thread::spawn(move || client.post(TXT2IMG, &body));
    let start = Instant::now();
    let running = loop {
        let progress = worker.client.get("/sdapi/v1/progress").json();
        if progress["current_image"].is_string() {
            break progress;
        }
        assert!(start.elapsed() < PATIENCE, "{progress}\n{}", worker.log());
    };
    assert_eq!(
        (
            &running["state"]["sampling_steps"],
            &running["state"]["job_count"]
        ),
        (&json!(900), &json!(1))
    );
    let share = running["progress"].as_f64().unwrap();
    assert!(share > 0.0 && share < 1.0, "{share}");
    let preview = BASE64_STANDARD
        .decode(running["current_image"].as_str().unwrap())
        .unwrap();
    image::load_from_memory(&preview).unwrap();
    let bare = worker
        .client
        .get("/sdapi/v1/progress?skip_current_image=true")
        .json();
    assert_eq!(bare["current_image"], Value::Null);

    let task = |name: &str| {
        worker
            .client
            .post("/internal/progress", &json!({"id_task": name}))
            .json()
    };
    assert_eq!(
        (&task("mine")["active"], &task("other")["active"]),
        (&json!(true), &json!(false))
    );
    worker.client.send("POST", "/sdapi/v1/interrupt", b"");
    let reply = request.join().unwrap();
    assert_eq!((reply.status, &reply.json()["images"]), (200, &json!([])));
    let ended = task("mine");
    assert_eq!(
        (&ended["active"], &ended["completed"]),
        (&json!(false), &json!(true))
    );
}

#[test]
fn options_last_and_are_each_keys_own() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs::write(&keys, "alice:alices-secret\nbob:bobs-secret\n").unwrap();
    let worker = Worker::start(folder.path(), &["--api-key-file", keys.to_str().unwrap()]);
    let client = |name: &str| {
        let pair = BASE64_STANDARD.encode(format!("anyone:{name}s-secret"));
        worker
            .client
            .with("authorization", &format!("Basic {pair}"))
    };
    let (alice, bob) = (client("alice"), client("bob"));
    let set = alice.post(
        "/sdapi/v1/options",
        &json!({"sd_model_checkpoint": "builtin", "CLIP_stop_at_last_layers": 2}),
    );
    assert_eq!((set.status, set.json()), (200, Value::Null));
    let skipped = |reply: Reply| reply.json()["CLIP_stop_at_last_layers"].clone();
    assert_eq!(skipped(alice.get("/sdapi/v1/options")), 2);
    assert_eq!(skipped(bob.get("/sdapi/v1/options")), 1);
    assert_eq!(info(&alice.post(TXT2IMG, &star(json!({}))))["clip_skip"], 2);
    assert_eq!(info(&bob.post(TXT2IMG, &star(json!({}))))["clip_skip"], 1);
    let wrong = alice.post(
        "/sdapi/v1/options",
        &json!({"sd_model_checkpoint": "other"}),
    );
    assert_eq!(
        (wrong.status, &wrong.json()["errors"]),
        (422, &json!("sd_model_checkpoint"))
    );
    assert_eq!(worker.client.get("/sdapi/v1/options").status, 401);
}

#[test]
fn every_list_is_there() {
    let (worker, _folder) = Worker::fresh(&[]);
    let list = |name: &str| {
        let reply = worker.client.get(&format!("/sdapi/v1/{name}"));
        assert_eq!(reply.status, 200, "{name}");
        reply.json()
    };
    for name in [
        "samplers",
        "schedulers",
        "sd-models",
        "upscalers",
        "latent-upscale-modes",
    ] {
        assert!(
            list(name).as_array().is_some_and(|list| !list.is_empty()),
            "{name}"
        );
    }
    for name in [
        "loras",
        "hypernetworks",
        "sd-vae",
        "face-restorers",
        "realesrgan-models",
        "prompt-styles",
    ] {
        assert_eq!(list(name), json!([]), "{name}");
    }
    assert_eq!(list("embeddings"), json!({"loaded": {}, "skipped": {}}));
    assert_eq!(list("scripts"), json!({"txt2img": [], "img2img": []}));
    assert!(list("memory")["ram"].is_object() && list("cmd-flags").is_object());
    assert_eq!(list("sd-models")[0]["model_name"], "builtin");
    assert_eq!(
        worker
            .client
            .send("POST", "/sdapi/v1/refresh-checkpoints", b"")
            .status,
        200
    );
}
