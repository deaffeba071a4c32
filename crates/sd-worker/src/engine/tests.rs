//! The engine on the built-in model.

mod crash;
mod events;
mod fair;
mod jobs;
mod store;
mod trouble;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use sd_pipeline::{Pipeline, Request, builtin_model};

use self::store::Watched;
use super::{Checkpoints, Engine, EngineConfig, ModelEntry, pictures};
use crate::{
    jobs::{Event, EventId, Job, JobId, Operation, State, Submission},
    store::SqliteStore,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn request(steps: usize, seed: u64) -> Request {
    Request {
        num_inference_steps: Some(steps),
        width: Some(64),
        height: Some(64),
        seed: Some(seed),
        ..Request::new("a red circle on a white background")
    }
}

fn submission(client: &str, request: Request) -> Submission {
    Submission {
        operation: Operation::ImageGeneration,
        model: "builtin".into(),
        request,
        client: client.into(),
        priority: 0,
        deadline: None,
        callback_url: None,
        previews: None,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

fn model(name: &str) -> ModelEntry {
    ModelEntry {
        name: name.into(),
        builder: Pipeline::builder(builtin_model()),
    }
}

fn config() -> EngineConfig {
    EngineConfig {
        checkpoints: Checkpoints {
            calls: 2,
            interval: Duration::from_secs(3600),
        },
        ..EngineConfig::new(vec![model("builtin")])
    }
}

/// The pictures' files as they are without an engine.
fn expected(request: &Request) -> Vec<Vec<u8>> {
    let pipeline = Pipeline::builder(builtin_model()).build().unwrap();
    let mut run = pipeline.start(request).unwrap();
    while run.advance(&pipeline).unwrap().is_some() {}
    let pictures = pictures::finished(&pipeline, &run).unwrap();
    pictures.into_iter().map(|picture| picture.png).collect()
}

/// An engine on a folder, and what it tells its store.
struct Bench {
    engine: Engine,
    store: Arc<Watched>,
}

impl Bench {
    fn start(folder: &Path, config: EngineConfig) -> Self {
        let store = Arc::new(Watched::new(SqliteStore::open(folder).unwrap()));
        Self::on(store, config)
    }

    fn on(store: Arc<Watched>, config: EngineConfig) -> Self {
        let engine = Engine::start(config, Arc::clone(&store) as _).unwrap();
        Self { engine, store }
    }

    /// Holds the engine before its next call.
    fn hold(&self) -> Gate {
        let gate = Gate::default();
        let held = gate.clone();
        self.store.on_mark(move |_| held.wait());
        gate
    }

    /// Tells when the engine comes to a job's call of that number.
    fn at_call(&self, call: usize) -> Flag {
        let flag = Flag::default();
        let raised = flag.clone();
        self.store.on_mark(move |jobs| {
            if jobs[0].1 == call {
                raised.raise();
            }
        });
        flag
    }

    async fn submit(&self, submission: Submission) -> JobId {
        let submitted = self.engine.submit(submission).await.unwrap();
        assert!(!submitted.replayed);
        submitted.job.id
    }

    /// Waits for a job's end.
    async fn end(&self, id: JobId) -> Job {
        self.hear(id, None).await;
        self.engine.job(id).await.unwrap().unwrap()
    }

    /// All events from `after` on.
    async fn hear(&self, id: JobId, after: Option<EventId>) -> Vec<(EventId, Event)> {
        let events = self.engine.events(id, after).collect();
        tokio::time::timeout(PATIENCE, events)
            .await
            .expect("the job does not end")
    }

    async fn images(&self, job: &Job) -> Vec<Vec<u8>> {
        let mut images = vec![];
        for image in &job.images {
            images.push(
                self.engine
                    .image(job.id, image.index)
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        images
    }

    /// Asserts that a job ends with the pictures of its request.
    async fn ends_well(&self, id: JobId) -> Job {
        let job = self.end(id).await;
        assert_eq!((job.state, &job.error), (State::Completed, &None));
        let same = self.images(&job).await == expected(&job.request);
        assert!(same, "{id}: the pictures are not those of its request");
        job
    }

    async fn stop(self) {
        self.engine.shutdown().await;
        // The engine's thread lets go of the store a moment after it says so.
        let mut store = self.store;
        drop(self.engine);
        while let Err(shared) = Arc::try_unwrap(store) {
            store = shared;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Holds a thread until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        let (_open, timeout) = self
            .0
            .1
            .wait_timeout_while(open, PATIENCE, |open| !*open)
            .unwrap();
        assert!(!timeout.timed_out(), "nobody opened the gate");
    }
}

/// Copies a database as a killed process would leave it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["jobs.db", "jobs.db-wal"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

/// Whether something has happened.
#[derive(Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_up(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    async fn wait(&self) {
        let waiting = async {
            while !self.is_up() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("nothing happened");
    }
}
