//! What a picture takes in memory, predicted and measured: the most that was resident in this process (Linux' `VmHWM`).
//!
//! ```sh
//! cargo run --release -p sd-bench --example peak_memory -- /tmp/sd15 f16 512
//! cargo run --release -p sd-bench --example peak_memory -- /tmp/sdxl f32 1024 tiled
//! ```
//!
//! One step and, where the model guides, two UNet samples: more steps take no more.

#![allow(clippy::print_stdout, reason = "this is what the program is for")]

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

use sd_pipeline::{DType, Pipeline, Request};

/// As the worker has it.
#[global_allocator]
static MEMORY: sd_ops::Recycler = sd_ops::Recycler::new();

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, dtype, side, tiled) = match arguments.as_slice() {
        [model, dtype, side] => (model, dtype, side, false),
        [model, dtype, side, tiled] if tiled == "tiled" => (model, dtype, side, true),
        _ => return Err("expected a model, f32, f16 or bf16, pixels, and tiled or nothing".into()),
    };
    let dtype = match dtype.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => return Err(format!("{other}: expected f32, f16 or bf16").into()),
    };
    let side: usize = side.parse()?;
    let start = Instant::now();
    let pipeline = Pipeline::builder(model.parse()?).dtype(dtype).build()?;
    println!("loaded   {:8.2} GB after {:.0?}", peak()?, start.elapsed());

    let request = Request {
        width: Some(side),
        height: Some(side),
        num_inference_steps: Some(1),
        scheduler: Some("euler".into()),
        seed: Some(1),
        vae_tiling: Some(tiled),
        ..Request::new("a lighthouse at dusk")
    };
    let estimate = pipeline.predict_memory(&pipeline.resolve(&request)?)?;
    println!(
        "predicted{:8.2} GB: {estimate:?}",
        gigabytes(estimate.peak())
    );
    pipeline.generate(&request, |_| {
        println!(
            "denoised {:8.2} GB after {:.0?}",
            peak().unwrap_or(0.),
            start.elapsed()
        );
        ControlFlow::Continue(())
    })?;
    println!("measured {:8.2} GB after {:.0?}", peak()?, start.elapsed());
    Ok(())
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// The most that was resident, in gigabytes.
fn peak() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .ok_or("no VmHWM")?;
    Ok(gigabytes(kib.parse::<u64>()? * 1024))
}
