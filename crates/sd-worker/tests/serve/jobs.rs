//! The life of a job.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{assert_error, star, worker::Worker};

#[test]
fn a_job_is_accepted_shown_and_completed() {
    let (worker, _folder) = Worker::fresh(&[]);
    let mut body = star(3);
    body["hive_id"] = "hive".into();
    let reply = worker.client.post("/v1/jobs", &body);
    assert_eq!(reply.status, 202, "{}", reply.text());
    let accepted = reply.json();
    let path = format!("/v1/jobs/{}", accepted["job_id"].as_str().unwrap());
    assert_eq!(reply.header("location"), Some(path.as_str()));
    assert_eq!(accepted["sse_url"], format!("{path}/stream"));

    let job = worker.finished(&path);
    assert_eq!(job["status"], "completed", "{job}");
    assert_eq!(job["operation"], "image_generation");
    assert_eq!(job["model"], "builtin");
    assert_eq!(
        job["progress"],
        json!({"step": 3, "total": 3, "percent": 100.0})
    );
    assert_eq!((&job["seed"], &job["attempts"]), (&json!(7), &json!(1)));
    assert_eq!(job["request"]["num_inference_steps"], 3);
    assert_eq!(job["request"]["width"], 128);
    let image = &job["images"][0];
    assert_eq!(image["url"], format!("{path}/images/0"));
    assert_eq!(
        (&image["width"], &image["height"], &image["seed"]),
        (&json!(128), &json!(128), &json!(7))
    );
    assert_eq!(job["images"].as_array().unwrap().len(), 1);
    for time in ["created_at", "started_at", "finished_at"] {
        assert!(
            job[time].as_str().is_some_and(|time| time.ends_with('Z')),
            "{job}"
        );
    }
    assert!(
        job.get("error").is_none() && job.get("queue_position").is_none(),
        "{job}"
    );
}

#[test]
fn jobs_are_listed_newest_first_in_pages_and_by_state() {
    let (worker, _folder) = Worker::fresh(&[]);
    let mut paths: Vec<_> = (0..5).map(|_| worker.submit(&star(1))).collect();
    for path in &paths {
        worker.finished(path);
    }
    paths.reverse();
    let page = |query: &str| worker.client.get(&format!("/v1/jobs?{query}")).json();
    let names = |page: &Value| -> Vec<String> {
        let jobs = page["jobs"].as_array().unwrap().iter();
        jobs.map(|job| format!("/v1/jobs/{}", job["job_id"].as_str().unwrap()))
            .collect()
    };
    let first = page("limit=2");
    assert_eq!(names(&first), paths[..2]);
    let second = page(&format!(
        "limit=2&cursor={}",
        first["next_cursor"].as_str().unwrap()
    ));
    assert_eq!(names(&second), paths[2..4]);
    let third = page(&format!(
        "limit=2&cursor={}",
        second["next_cursor"].as_str().unwrap()
    ));
    assert_eq!(names(&third), paths[4..]);
    assert_eq!(third["next_cursor"], Value::Null);
    assert_eq!(names(&page("state=completed")), paths);
    assert_eq!(names(&page("state=queued")), [""; 0]);
}

#[test]
fn a_running_job_is_cancelled_and_cancelling_twice_changes_nothing() {
    let (worker, _folder) = Worker::fresh(&["--max-batch", "1"]);
    let long = worker.submit(&star(500));
    let waiting = worker.submit(&star(500));
    worker.until(&long, |job| job["progress"]["step"].as_u64() > Some(0));
    for path in [&waiting, &long] {
        let job = worker.client.delete(path).json();
        assert_eq!(job["status"], "cancelled", "{job}");
    }
    let cancelled = worker.client.get(&long).json();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(worker.client.delete(&long).json(), cancelled);
    let after = worker.finished(&worker.submit(&star(1)));
    assert_eq!(after["status"], "completed");
    let reply = worker.client.get(&format!("{long}/images/0"));
    assert_error(&reply, 404, "not_found", Some("index"));
}

#[test]
fn a_completed_job_stays_when_it_is_cancelled() {
    let (worker, _folder) = Worker::fresh(&[]);
    let path = worker.submit(&star(1));
    let done = worker.finished(&path);
    assert_eq!(worker.client.delete(&path).json(), done);
    assert_eq!(worker.client.get(&format!("{path}/images/0")).status, 200);
}

#[test]
fn a_repeated_submission_is_the_same_job_and_another_body_a_conflict() {
    let (worker, _folder) = Worker::fresh(&[]);
    let client = worker.client.with("idempotency-key", "order-1");
    let first = client.post("/v1/jobs", &star(1));
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = client.post("/v1/jobs", &star(1));
    assert_eq!((again.status, again.json()), (202, first.json()));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    let other = client.post("/v1/jobs", &star(2));
    assert_error(&other, 409, "idempotency_conflict", Some("Idempotency-Key"));
    let another_key = worker
        .client
        .with("idempotency-key", "order-2")
        .post("/v1/jobs", &star(1));
    assert_ne!(another_key.json(), first.json());
    for key in ["", "a b", &"k".repeat(256), "\u{e9}"] {
        let reply = worker
            .client
            .with("idempotency-key", key)
            .post("/v1/jobs", &star(1));
        assert_error(&reply, 422, "invalid_value", Some("Idempotency-Key"));
    }
    assert_eq!(
        worker.client.get("/v1/jobs").json()["jobs"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn a_full_queue_is_said_with_the_time_to_wait() {
    let (worker, _folder) = Worker::fresh(&["--max-queue", "2", "--max-batch", "1"]);
    for _ in 0..2 {
        worker.submit(&star(500));
    }
    let reply = worker.client.post("/v1/jobs", &star(1));
    assert_error(&reply, 429, "queue_full", None);
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&wait), "{wait}");
    worker.assert_healthy();
}

#[test]
fn a_deadline_that_passes_fails_the_job() {
    let (worker, _folder) = Worker::fresh(&[]);
    let mut body = star(500);
    let deadline = time::OffsetDateTime::now_utc() + Duration::from_secs(2);
    body["deadline"] = deadline
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap()
        .into();
    let job = worker.finished(&worker.submit(&body));
    assert_eq!(
        (&job["status"], &job["error"]["code"]),
        (&json!("failed"), &json!("deadline_exceeded")),
        "{job}"
    );
}

#[test]
fn the_same_job_is_the_same_picture_and_several_pictures_have_their_seeds() {
    let (worker, _folder) = Worker::fresh(&[]);
    let mut several = star(2);
    several["num_images"] = 2.into();
    let paths = [star(2), star(2), several].map(|job| worker.submit(&job));
    let [first, second, several] = paths.map(|path| worker.finished(&path)["images"].clone());
    assert_eq!(first[0]["sha256"], second[0]["sha256"]);
    assert_eq!(several[1]["seed"], 8);
    assert_ne!(several[0]["sha256"], several[1]["sha256"]);
}
