//! A job's events: live, late and after an interruption.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::{client::Event, star, worker::Worker};

fn steps(events: &[Event]) -> Vec<u64> {
    let progress = events.iter().filter(|event| event.name == "progress");
    progress
        .map(|event| event.data["step"].as_u64().unwrap())
        .collect()
}

#[test]
fn every_step_comes_once_and_the_picture_last() {
    let (worker, _folder) = Worker::fresh(&[]);
    let path = worker.submit(&star(4));
    let events: Vec<_> = worker.client.listen(&path, None).collect();
    assert_eq!(steps(&events), [1, 2, 3, 4]);
    let progress = events
        .iter()
        .find(|event| event.name == "progress")
        .unwrap();
    assert_eq!(
        progress.data,
        json!({"type": "progress", "step": 1, "total": 4, "percent": 25.0})
    );
    let complete = events.last().unwrap();
    assert_eq!(complete.name, "complete");
    let picture = worker.client.get(&format!("{path}/images/0"));
    assert_eq!(
        BASE64_STANDARD
            .decode(complete.data["image"].as_str().unwrap())
            .unwrap(),
        picture.body
    );
    assert_eq!(
        (&complete.data["seed"], &complete.data["format"]),
        (&json!(7), &json!("png"))
    );
    assert_eq!(
        complete.data["images"],
        worker.client.get(&path).json()["images"]
    );
    let ids: Vec<u64> = events
        .iter()
        .map(|event| event.id.parse().unwrap())
        .collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    for event in &events {
        assert_eq!(event.data["type"], event.name);
    }
}

#[test]
fn a_listener_that_comes_late_or_again_misses_nothing() {
    let (worker, _folder) = Worker::fresh(&[]);
    let path = worker.submit(&star(6));
    let mut live = worker.client.listen(&path, None);
    let mut seen: Vec<_> = live
        .by_ref()
        .take_while(|event| event.data["step"] != 3)
        .collect();
    drop(live);
    // The event of step 3 was read, so it counts as seen.
    let last = (seen.last().unwrap().id.parse::<u64>().unwrap() + 2).to_string();
    seen.extend(worker.client.listen(&path, Some(&last)));
    assert_eq!(steps(&seen), [1, 2, 4, 5, 6]);
    assert_eq!(seen.last().unwrap().name, "complete");

    let late: Vec<_> = worker.client.listen(&path, None).collect();
    assert_eq!(steps(&late), [1, 2, 3, 4, 5, 6]);
    let end = &late.last().unwrap().id;
    let nothing_more = worker
        .client
        .with("last-event-id", end)
        .get(&format!("{path}/stream"));
    assert_eq!((nothing_more.status, nothing_more.body.len()), (204, 0));
}

#[test]
fn previews_are_pictures_on_the_way() {
    let (worker, _folder) = Worker::fresh(&[]);
    let mut body = star(4);
    body["previews"] = json!({"every": 2});
    let events: Vec<_> = worker.client.listen(&worker.submit(&body), None).collect();
    let preview = events
        .iter()
        .find(|event| event.name == "preview")
        .expect("a preview");
    assert_eq!(
        (&preview.data["step"], &preview.data["format"]),
        (&json!(2), &json!("png"))
    );
    let png = BASE64_STANDARD
        .decode(preview.data["image"].as_str().unwrap())
        .unwrap();
    let picture = image::load_from_memory(&png).unwrap();
    assert!(picture.width() > 0 && picture.width() == picture.height());
    assert_eq!(steps(&events), [1, 2, 3, 4]);
}

#[test]
fn a_cancelled_job_ends_its_streams() {
    let (worker, _folder) = Worker::fresh(&[]);
    let path = worker.submit(&star(500));
    let listeners = [(); 3].map(|()| worker.client.listen(&path, None));
    worker.until(&path, |job| job["progress"]["step"].as_u64() > Some(0));
    worker.client.delete(&path);
    for listener in listeners {
        let last = listener.last().unwrap();
        assert_eq!(
            (last.name.as_str(), &last.data["code"]),
            ("error", &json!("cancelled"))
        );
    }
}

#[test]
fn a_waiting_job_tells_its_place() {
    let (worker, _folder) = Worker::fresh(&["--max-batch", "1"]);
    let long = worker.submit(&star(500));
    worker.until(&long, |job| job["status"] == "running");
    let mut last = star(1);
    last["priority"] = (-1).into();
    let waiting = worker.submit(&last);
    let first = worker.client.listen(&waiting, None).next().unwrap();
    assert_eq!(first.name, "queued");
    assert!(first.data["position"].is_u64(), "{first:?}");
    worker.client.delete(&long);
    assert_eq!(worker.finished(&waiting)["status"], "completed");
}
