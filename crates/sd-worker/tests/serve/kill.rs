//! A worker that is killed again and again loses no job, repeats none, and draws what an undisturbed one draws.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    client::{Client, Event},
    worker::{PATIENCE, Worker},
};

const JOBS: usize = 50;
const KILLS: usize = 20;
/// Jobs that are handed in while the worker is being killed, one in each of its first lives.
const LATER: usize = 15;
const FLAGS: [&str; 6] = [
    "--max-batch",
    "4",
    "--checkpoint-steps",
    "2",
    "--max-queue",
    "50",
];
/// Steps a life lasts at least. A job that was alone when the worker died has to get past that call and to a checkpoint:
/// killed before that, it would rightly be taken for the one that kills.
const SETTLED: u64 = 3;

/// Jobs of mixed size, count, scheduler and length.
fn job(index: usize) -> Value {
    let size = |salt: usize| 64 + 32 * ((index * salt) % 3);
    let schedulers = ["ddim", "euler_ancestral", "dpmpp_2m", "heun", "pndm"];
    let mut job = json!({
        "operation": "image_generation",
        "prompt": format!("a {} star", ["red", "green", "blue"][index % 3]),
        "steps": 6 + (index * 7) % 9,
        "width": size(1),
        "height": size(5),
        "num_images": pictures(index),
        "scheduler": schedulers[index % schedulers.len()],
        "seed": index,
        "priority": index % 2,
    });
    if index.is_multiple_of(5) {
        job["previews"] = json!({"every": 3});
    }
    job
}

fn pictures(index: usize) -> usize {
    1 + usize::from(index.is_multiple_of(4))
}

#[test]
fn killed_twenty_times_it_completes_every_job_once_with_the_same_bytes() {
    let (calm, _folder) = Worker::fresh(&FLAGS);
    let undisturbed: Vec<_> = (0..JOBS).map(|index| calm.submit(&job(index))).collect();

    let folder = tempfile::tempdir().unwrap();
    let (address, over) = (Arc::new(Mutex::new(None)), Arc::new(OnceLock::new()));
    let mut paths: Vec<String> = vec![];
    let mut listeners = vec![];
    let mut worker = Worker::start(folder.path(), &FLAGS);
    for kill in 0..=KILLS {
        // Some lives end before the model is there.
        let short = kill < KILLS && kill % 7 == 6;
        *address.lock().unwrap() = (!short).then(|| worker.client.clone());
        let due = match kill {
            0 => JOBS - LATER,
            _ => usize::from(!short),
        };
        for _ in 0..due.min(JOBS - paths.len()) {
            let path = hand_in(&worker.client, paths.len());
            listeners.push(listen(&address, &path, &over));
            paths.push(path);
        }
        if kill == KILLS {
            break;
        }
        if !short {
            // A short life gets nobody past anything: whoever was in a call has to be past it before.
            let settled = if kill % 7 == 5 { 5 * SETTLED } else { SETTLED };
            wait(&worker, settled + random(16).as_millis() as u64);
            thread::sleep(random(30));
            let (_, left) = unfinished(&worker.client);
            assert_ne!(left, 0, "all jobs were done after {kill} kills");
        }
        *address.lock().unwrap() = None;
        // Dropping it is SIGKILL.
        drop(worker);
        worker = Worker::start(folder.path(), &FLAGS);
    }

    // The last life makes the steps that are left, and none again.
    let (_, left) = unfinished(&worker.client);
    let before = steps(&worker);
    for path in &paths {
        worker.finished(path);
    }
    let made = steps(&worker) - before;
    assert!(made <= left, "made {made} steps where {left} were left");

    for (index, path) in paths.iter().enumerate() {
        let (job, same) = (worker.finished(path), calm.finished(&undisturbed[index]));
        assert_eq!(
            job["status"],
            "completed",
            "job {index}: {job}\n{}",
            worker.log()
        );
        let images = job["images"].as_array().unwrap();
        assert_eq!(images.len(), pictures(index));
        for (number, image) in images.iter().enumerate() {
            assert_eq!(
                image["sha256"], same["images"][number]["sha256"],
                "job {index}"
            );
            let [found, expected] = [(&worker, path), (&calm, &undisturbed[index])]
                .map(|(worker, path)| worker.client.get(&format!("{path}/images/{number}")).body);
            assert_eq!(pixels(&found), pixels(&expected), "job {index}");
            assert!(found == expected, "job {index}: same pixels, other bytes");
        }
    }
    assert_eq!(
        list(&worker.client, "&state=completed").len(),
        JOBS,
        "jobs were repeated"
    );
    over.set(Instant::now()).unwrap();
    for (index, listener) in listeners.into_iter().enumerate() {
        let events = listener.join().unwrap();
        let steps = |event: &Event| match event.name.as_str() {
            "progress" => event.data["step"].as_u64(),
            _ => None,
        };
        let seen: Vec<_> = events.iter().filter_map(steps).collect();
        let total = job(index)["steps"].as_u64().unwrap();
        let last = events.last();
        assert_eq!(
            seen,
            (1..=total).collect::<Vec<_>>(),
            "job {index}: {last:?}"
        );
        let ends = events
            .iter()
            .filter(|event| event.name == "complete")
            .count();
        assert_eq!(ends, 1, "job {index}");
    }
}

/// Hands a job in twice under one key, as a client does that is not sure of the first time.
fn hand_in(client: &Client, index: usize) -> String {
    let client = client.with("idempotency-key", &format!("job-{index}"));
    let ids = [(); 2].map(|()| {
        let reply = client.post("/v1/jobs", &job(index));
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()["job_id"].as_str().unwrap().to_owned()
    });
    assert_eq!(ids[0], ids[1]);
    format!("/v1/jobs/{}", ids[0])
}

/// Listens to a job until its end, however often the worker goes away, or until all jobs have long been over.
fn listen(
    address: &Arc<Mutex<Option<Client>>>,
    path: &str,
    over: &Arc<OnceLock<Instant>>,
) -> JoinHandle<Vec<Event>> {
    let (address, path, over) = (Arc::clone(address), path.to_owned(), Arc::clone(over));
    thread::spawn(move || {
        let mut seen: Vec<Event> = vec![];
        while over.get().is_none_or(|over| over.elapsed() < PATIENCE) {
            let last = seen.last().map(|event| event.id.clone());
            let client = address.lock().unwrap().clone();
            let events = client.and_then(|client| client.try_listen(&path, last.as_deref()));
            seen.extend(events.into_iter().flatten());
            if seen
                .last()
                .is_some_and(|event| ["complete", "error"].contains(&event.name.as_str()))
            {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        seen
    })
}

/// Waits until the worker has made so many steps in this life, and some job is half-way.
fn wait(worker: &Worker, wanted: u64) {
    let start = Instant::now();
    while steps(worker) < wanted || unfinished(&worker.client).0 < 8 {
        assert!(start.elapsed() < PATIENCE, "no progress:\n{}", worker.log());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Steps that the worker has made in this life.
fn steps(worker: &Worker) -> u64 {
    let text = worker.client.get("/metrics").text();
    let mut lines = text.lines();
    let made = lines.find_map(|line| line.strip_prefix("sd_steps_total "));
    made.map_or(0, |made| made.parse().unwrap())
}

/// Of the unfinished jobs: the steps done, and the steps left.
fn unfinished(client: &Client) -> (u64, u64) {
    let (mut done, mut left) = (0, 0);
    for job in list(client, "") {
        if ["queued", "running"].contains(&job["status"].as_str().unwrap()) {
            let step = job["progress"]["step"].as_u64().unwrap();
            done += step;
            left += job["progress"]["total"].as_u64().unwrap() - step;
        }
    }
    (done, left)
}

fn list(client: &Client, filter: &str) -> Vec<Value> {
    let page = client.get(&format!("/v1/jobs?limit=100{filter}")).json();
    page["jobs"].as_array().unwrap().clone()
}

fn pixels(png: &[u8]) -> image::RgbImage {
    image::load_from_memory(png).unwrap().into_rgb8()
}

/// Up to so many milliseconds.
fn random(milliseconds: u64) -> Duration {
    Duration::from_millis(RandomState::new().hash_one(()) % milliseconds.max(1))
}
