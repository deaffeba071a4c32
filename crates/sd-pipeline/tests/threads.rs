//! One request, one picture, whatever the number of threads. Candle reads that number from the environment, once, so each
//! number needs a process: this program starts itself again.

mod common;

use std::{env, fs, process::Command};

use common::{pictures, pipeline, request};
use sd_pipeline::Request;

const OUTPUT: &str = "SD_PIPELINE_TEST_OUTPUT";

fn main() {
    match env::var_os(OUTPUT) {
        Some(path) => fs::write(path, made()).unwrap(),
        None => compare(),
    }
}

fn made() -> Vec<u8> {
    let request = Request {
        num_images: Some(2),
        width: Some(96),
        ..request("a cat")
    };
    ["sd15", "sdxl"]
        .iter()
        .flat_map(|family| pictures(&pipeline(family), &request))
        .flatten()
        .collect()
}

fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let pictures: Vec<Vec<u8>> = ["1", "2", "3", "8"]
        .iter()
        .map(|threads| {
            let path = folder.path().join(threads);
            let mut child = Command::new(env::current_exe().unwrap());
            let status = child
                .env(OUTPUT, &path)
                .env("RAYON_NUM_THREADS", threads)
                .status()
                .unwrap();
            assert!(status.success(), "{threads} threads");
            fs::read(path).unwrap()
        })
        .collect();
    assert!(!pictures[0].is_empty());
    assert!(
        pictures.iter().all(|made| made == &pictures[0]),
        "the picture depends on the number of threads"
    );
}
