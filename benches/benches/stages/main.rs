//! Time of each stage, ours beside `candle-transformers` where it has the stage: `cargo bench -p sd-bench`.
//!
//! Names are `stage/model-implementation/shape/dtype`, so that `cargo bench -p sd-bench -- unet/` runs one stage.
//! `SD_BENCH_FULL=1` adds Stable Diffusion 1.5 in full size with random weights. All on the CPU.

mod clip;
mod e2e;
mod scheduler;
mod tokenize;
mod unet;
mod vae;

use std::time::Duration;

use criterion::{Criterion, criterion_group};

criterion_group! {
    name = stages;
    // Full-size stages take seconds: the fewest samples criterion allows.
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500));
    targets = tokenize::bench, clip::bench, unet::bench, vae::decode, vae::encode, scheduler::bench, e2e::bench
}

#[expect(clippy::print_stderr, reason = "what is left out must be seen")]
fn main() {
    if !sd_bench::full() {
        eprintln!("the full-size v1.5 benches are left out: SD_BENCH_FULL=1 runs them");
    }
    stages();
    Criterion::default().configure_from_args().final_summary();
}
