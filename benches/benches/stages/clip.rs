//! The text encoder: a prompt and its negative.

use candle_core::{Device, Module, Tensor};
use candle_transformers::models::stable_diffusion::clip::{ClipTextTransformer, Config};
use criterion::Criterion;
use sd_bench::{Case, weights};
use sd_models::{Component, text::ClipTextModel};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("clip");
    for Case { name, config } in Case::all() {
        let clip = &config.text_encoders[0].clip;
        let tokens = clip.max_position_embeddings;
        let ids = (0..2 * tokens).map(|i| i as u32 % 500).collect::<Vec<_>>();
        let ids = Tensor::from_vec(ids, (2, tokens), &Device::Cpu).unwrap();
        let shape = format!("2x{tokens}/f32");
        group.bench_function(format!("{name}-ours/{shape}"), |bencher| {
            let model = ClipTextModel::new(weights(), clip, Component::TextEncoder).unwrap();
            bencher.iter(|| model.forward(&ids).unwrap());
        });
        // The baseline's configurations are fixed, and it takes one prompt at a time.
        if name == "v1.5" {
            group.bench_function(format!("{name}-candle/{shape}"), |bencher| {
                let model = ClipTextTransformer::new(weights(), &Config::v1_5()).unwrap();
                let prompts = ids.chunk(2, 0).unwrap();
                bencher.iter(|| {
                    prompts
                        .iter()
                        .for_each(|ids| drop(model.forward(ids).unwrap()))
                });
            });
        }
    }
    group.finish();
}
