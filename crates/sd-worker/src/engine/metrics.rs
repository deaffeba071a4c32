//! The engine's metrics, all of them, for whatever recorder the program installs.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::jobs::Job;

const QUEUED: &str = "sd_jobs_queued";
const RUNNING: &str = "sd_jobs_running";
const ENDED: &str = "sd_jobs_total";
const ERRORS: &str = "sd_errors_total";
const WAIT: &str = "sd_job_wait_seconds";
const DURATION: &str = "sd_job_seconds";
const STEPS: &str = "sd_steps_total";
const BATCH: &str = "sd_unet_batch_size";
const STAGE: &str = "sd_stage_seconds";
const MODELS: &str = "sd_models_loaded";
const MEMORY: &str = "sd_memory_resident_bytes";

/// Tells the recorder what the metrics mean.
pub(super) fn describe() {
    describe_gauge!(QUEUED, "Jobs that wait");
    describe_gauge!(RUNNING, "Jobs that work has begun on");
    describe_counter!(ENDED, "Jobs that have come to their end, by state");
    describe_counter!(
        ERRORS,
        "Failures by kind: the error code of a job, or storage"
    );
    describe_histogram!(WAIT, Unit::Seconds, "From acceptance to the begin of work");
    describe_histogram!(DURATION, Unit::Seconds, "From acceptance to the end");
    describe_counter!(STEPS, "Steps made, summed over jobs");
    describe_histogram!(BATCH, "Jobs that share a UNet call");
    describe_histogram!(
        STAGE,
        Unit::Seconds,
        "Time of a stage: load, start, unet, preview, decode, checkpoint"
    );
    describe_gauge!(MODELS, "Models in memory");
    describe_gauge!(MEMORY, Unit::Bytes, "Memory of the process");
}

pub(super) fn queue(queued: usize, running: usize) {
    gauge!(QUEUED).set(queued as f64);
    gauge!(RUNNING).set(running as f64);
}

pub(super) fn waited(time: Duration) {
    histogram!(WAIT).record(time);
}

pub(super) fn ended(job: &Job) {
    counter!(ENDED, "state" => job.state.name()).increment(1);
    if let Some(error) = &job.error {
        failed(error.code.name());
    }
    if let Some(end) = job.finished_at {
        histogram!(DURATION).record((end - job.created_at).as_seconds_f64());
    }
}

pub(super) fn failed(kind: &'static str) {
    counter!(ERRORS, "kind" => kind).increment(1);
}

pub(super) fn steps(made: usize) {
    counter!(STEPS).increment(made as u64);
}

pub(super) fn batch(jobs: usize) {
    histogram!(BATCH).record(jobs as f64);
}

pub(super) fn stage(stage: &'static str, took: Duration) {
    histogram!(STAGE, "stage" => stage).record(took);
}

pub(super) fn models(loaded: usize) {
    gauge!(MODELS).set(loaded as f64);
}

/// Measures the process's memory.
pub(super) fn memory() {
    if let Some(bytes) = resident_bytes() {
        gauge!(MEMORY).set(bytes as f64);
    }
}

/// Memory of the process that is in RAM; None where `/proc` is not.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
