//! The solvers' own arithmetic: the 20 steps of a run, without its network.

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

/// The latents of one picture of 512 pixels, of one of 1024, and of eight of 512.
const SHAPES: [[usize; 4]; 3] = [[1, 4, 64, 64], [1, 4, 128, 128], [8, 4, 64, 64]];

pub(crate) fn bench(criterion: &mut Criterion) {
    for shape in SHAPES {
        bench_shape(criterion, shape);
    }
}

fn bench_shape(criterion: &mut Criterion, shape: [usize; 4]) {
    let mut group = criterion.benchmark_group("scheduler_20_steps");
    let latents = input(shape.to_vec()).unwrap();
    let shape = shape.map(|side| side.to_string()).join("x");
    let file = ModelConfig::preset(Version::V1_5).scheduler;
    for entry in sd_scheduler::ALL {
        let config = sd_scheduler::from_file_as(entry.name, &file, &Overrides::default()).unwrap();
        group.bench_function(format!("{}-ours/{shape}/f32", entry.name), |bencher| {
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
        group.bench_function(format!("{name}-candle/{shape}/f32"), |bencher| {
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
