//! From a prompt to a picture with the built-in model, weights already loaded.

use std::ops::ControlFlow;

use criterion::Criterion;
use sd_bench::builtin;
use sd_pipeline::Request;

pub(crate) fn bench(criterion: &mut Criterion) {
    let pipeline = builtin();
    let request = Request {
        num_inference_steps: Some(4),
        seed: Some(1),
        ..Request::new("a red circle on a white background")
    };
    let defaults = &pipeline.config().defaults;
    let name = format!(
        "builtin-ours/4-steps-{}x{}/f32",
        defaults.width, defaults.height
    );
    let mut group = criterion.benchmark_group("e2e");
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            pipeline
                .generate(&request, |_| ControlFlow::Continue(()))
                .unwrap()
        });
    });
    group.finish();
}
