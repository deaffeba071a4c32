//! A worker process of one test.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Reply};

/// How long anything may take on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running `sd-worker serve` on a free port of loopback. Killed when dropped.
pub(crate) struct Worker {
    process: Child,
    log: Arc<Mutex<String>>,
    pub(crate) client: Client,
}

impl Worker {
    /// Starts a worker on `folder`, and returns when it listens.
    pub(crate) fn start(folder: &Path, flags: &[&str]) -> Self {
        Self::spawn(command(folder, flags))
    }

    /// Starts a worker that logs at `info` at least, and returns when it listens.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (listening, address) = mpsc::channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let shared = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("listening") {
                    let address = line.split(|letter| "=\" ".contains(letter));
                    let address = address.filter(|part| part.parse::<SocketAddr>().is_ok());
                    address.for_each(|address| drop(listening.send(address.to_owned())));
                }
                let mut log = shared.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let address = address
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("does not listen:\n{}", log.lock().unwrap()));
        Self {
            process,
            log,
            client: Client::new(&address),
        }
    }

    /// A worker on a folder of its own.
    pub(crate) fn fresh(flags: &[&str]) -> (Self, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Self::start(folder.path(), flags), folder)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What a worker that was told to stop has logged.
    pub(crate) fn whole_log(&self) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.contains("stopped") {
                return log;
            }
            assert!(start.elapsed() < PATIENCE, "not stopped:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Hands in a job and returns its path.
    pub(crate) fn submit(&self, job: &Value) -> String {
        let reply = self.client.post("/v1/jobs", job);
        assert_eq!(reply.status, 202, "{}", reply.text());
        format!("/v1/jobs/{}", reply.json()["job_id"].as_str().unwrap())
    }

    /// Waits until the job at `path` is at its end, and returns it.
    pub(crate) fn finished(&self, path: &str) -> Value {
        self.until(path, |job| {
            ["completed", "failed", "cancelled"].contains(&job["status"].as_str().unwrap())
        })
    }

    /// Waits until the job at `path` is as it should be, and returns it.
    pub(crate) fn until(&self, path: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let reply = self.client.get(path);
            assert_eq!(reply.status, 200, "{}", reply.text());
            let job = reply.json();
            if reached(&job) {
                return job;
            }
            assert!(start.elapsed() < PATIENCE, "{job}\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asserts that the worker answers and has logged no panic.
    pub(crate) fn assert_healthy(&self) {
        let reply = self.client.get("/health");
        assert_eq!(
            (reply.status, &reply.json()["status"]),
            (200, &Value::from("healthy"))
        );
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.process.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the process to end.
    pub(crate) fn ended(&mut self, within: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < within, "still runs:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The open port's answer to `reply`, or None when nobody listens.
    pub(crate) fn reply(&self, path: &str) -> Reply {
        self.client.get(path)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `sd-worker serve` on a free port; nothing of the caller's machine matters to it.
pub(crate) fn command(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
    command
        .arg("serve")
        .args(["--device", "cpu", "--data-dir"])
        .arg(folder.join("data"));
    if !flags.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command
        .args(flags)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env("HF_HOME", folder)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}
