//! The solver's own arithmetic, on the latents of a 512-pixel picture: the 20 steps of a run, without its network.

use std::num::NonZeroUsize;

use candle_transformers::models::stable_diffusion::{
    ddim::DDIMSchedulerConfig, euler_ancestral_discrete::EulerAncestralDiscreteSchedulerConfig,
    schedulers::SchedulerConfig,
};
use criterion::{BatchSize, Criterion};
use sd_bench::input;
use sd_config::{ModelConfig, Version};
use sd_scheduler::{Overrides, SeededNoise};

const STEPS: NonZeroUsize = NonZeroUsize::new(20).unwrap();

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler_20_steps");
    let latents = input((1, 4, 64, 64)).unwrap();
    let file = ModelConfig::preset(Version::V1_5).scheduler;
    for entry in sd_scheduler::ALL {
        let config = sd_scheduler::from_file_as(entry.name, &file, &Overrides::default()).unwrap();
        group.bench_function(format!("{}-ours/1x4x64x64/f32", entry.name), |bencher| {
            let prepare = || (config.build(STEPS).unwrap(), SeededNoise::new(1));
            let run =
                |(mut scheduler, mut noise): (Box<dyn sd_scheduler::Scheduler>, SeededNoise)| {
                    let mut sample = latents.clone();
                    for call in 0..scheduler.plan().calls() {
                        sample = scheduler
                            .step(call, &latents, &sample, &mut noise)
                            .unwrap()
                            .sample;
                    }
                    sample
                };
            bencher.iter_batched(prepare, run, BatchSize::SmallInput);
        });
    }

    let baselines: [(&str, &dyn SchedulerConfig); 2] = [
        ("ddim", &DDIMSchedulerConfig::default()),
        ("euler_a", &EulerAncestralDiscreteSchedulerConfig::default()),
    ];
    for (name, config) in baselines {
        group.bench_function(format!("{name}-candle/1x4x64x64/f32"), |bencher| {
            bencher.iter_batched_ref(
                || config.build(STEPS.get()).unwrap(),
                |scheduler| {
                    let mut sample = latents.clone();
                    for timestep in scheduler.timesteps().to_vec() {
                        let scaled = scheduler.scale_model_input(sample, timestep).unwrap();
                        sample = scheduler.step(&latents, timestep, &scaled).unwrap();
                    }
                    sample
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
