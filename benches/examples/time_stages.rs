//! Times a model's stages on demand, for a script that times other programs in turn: see `benches/peers`.
//!
//! ```sh
//! cargo run --release -p sd-bench --example time_stages -- /tmp/sd15 f32
//! ```
//!
//! Every line of standard input is a stage, its batch and the side of its latents, such as `unet 2 64`, `vae_decode 1 64`,
//! `vae_encode 1 64` or `clip 2 0`, and perhaps a file to write the result to. Every answer is a line of JSON: the seconds that
//! it took, and those of all cores together.

#![allow(clippy::print_stdout, reason = "this is what the program is for")]

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use sd_models::text::ClipTextModel;
use sd_models::unet::UnetInput;
use sd_models::{Component, LoadOptions, Model, Weights};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// As the worker has it.
#[global_allocator]
static MEMORY: sd_ops::Recycler = sd_ops::Recycler::new();

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, dtype] = arguments.as_slice() else {
        return Err("expected a model and f32, f16 or bf16".into());
    };
    let dtype = match dtype.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => return Err(format!("{other}: expected f32, f16 or bf16").into()),
    };
    let start = Instant::now();
    let options = LoadOptions {
        dtype,
        ..LoadOptions::default()
    };
    let model = sd_models::load(&folder.parse()?, &options)?;
    println!("{{\"load\": {}}}", start.elapsed().as_secs_f64());
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let (&[stage, batch, side], file) = words.split_at_checked(3).map_or_else(
            || Err("expected a stage, a batch and a side"),
            |(words, file)| {
                let words = <&[&str; 3]>::try_from(words).map_err(|_| "three words")?;
                Ok((words, file.first()))
            },
        )?;
        let inputs = Inputs::new(
            &model,
            folder,
            dtype,
            stage,
            [batch.parse()?, side.parse()?],
        )?;
        let (start, cpu) = (Instant::now(), cpu_seconds()?);
        let result = inputs.run(&model)?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
        println!("{{\"seconds\": {seconds}, \"cpu\": {cpu}}}");
        if let Some(file) = file {
            candle_core::safetensors::save(&HashMap::from([("result", result)]), file)?;
        }
    }
    Ok(())
}

/// What a stage is given.
enum Inputs {
    Unet(Tensor, Tensor),
    Decode(Tensor),
    Encode(Tensor),
    Clip(Box<ClipTextModel>, Tensor),
}

impl Inputs {
    fn new(
        model: &Model,
        folder: &str,
        dtype: DType,
        stage: &str,
        [batch, side]: [usize; 2],
    ) -> Result<Self> {
        let unet = &model.config.unet;
        let latents = [batch, unet.in_channels, side, side];
        Ok(match stage {
            "unet" => {
                let text = [batch, 77, unet.cross_attention_dim.get(0)];
                Self::Unet(pattern(&latents, 7919)?, pattern(&text, 104_729)?)
            }
            "vae_decode" => Self::Decode(pattern(&latents, 7919)?),
            "vae_encode" => Self::Encode(pattern(&[batch, 3, 8 * side, 8 * side], 7919)?),
            "clip" => {
                let config = &model.config.text_encoders[0].clip;
                let file = format!("{folder}/text_encoder/model.safetensors");
                let weights = Weights::open(Component::TextEncoder, &[file])?
                    .var_builder(dtype, &Device::Cpu);
                let encoder = ClipTextModel::new(weights, config, Component::TextEncoder)?;
                let ids: Vec<u32> = (0..77 * batch as u32)
                    .map(|i| (31 * i + 7) % 49_000)
                    .collect();
                let ids = Tensor::from_vec(ids, (batch, 77), &Device::Cpu)?;
                Self::Clip(Box::new(encoder), ids)
            }
            other => return Err(format!("{other}: no such stage").into()),
        })
    }

    fn run(&self, model: &Model) -> Result<Tensor> {
        Ok(match self {
            Self::Unet(sample, text) => {
                let timesteps = vec![500.; sample.dim(0)?];
                model
                    .unet
                    .forward(&UnetInput::new(sample, &timesteps, text))?
            }
            Self::Decode(latents) => model.vae.decode(latents)?,
            Self::Encode(images) => model.vae.encode(images)?.mode()?,
            Self::Clip(encoder, ids) => encoder.forward(ids)?.last_hidden_state,
        })
    }
}

/// Numbers between -1.74 and 1.74 that any language makes alike.
fn pattern(dims: &[usize], factor: u64) -> Result<Tensor> {
    let count = dims.iter().product::<usize>() as u64;
    let value = |i: u64| ((i * factor % 2003) as f64 / 2003. - 0.5) * 3.4641;
    let values: Vec<f32> = (0..count).map(|i| value(i) as f32).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// Seconds that all cores have worked for this process (Linux).
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit(") ").next().ok_or("no fields")?;
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<std::result::Result<u64, _>>()?;
    Ok(ticks as f64 / 100.)
}
