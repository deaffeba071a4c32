//! Prompt to token ids, on CLIP's own vocabulary.

use std::{fs, path::Path};

use criterion::Criterion;
use sd_models::text::Tokenizer;

const PROMPT: &str =
    "a photograph of an astronaut riding a horse, highly detailed, cinematic lighting, 35mm";

pub(crate) fn bench(criterion: &mut Criterion) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tokenizer");
    let read = |name: &str| Ok(fs::read_to_string(golden.join(format!("clip-{name}"))).ok());
    let tokenizer = Tokenizer::from_files("tokenizer", 77, read).unwrap();
    let mut group = criterion.benchmark_group("tokenize");
    group.bench_function("clip-ours/17-words/u32", |bencher| {
        bencher.iter(|| tokenizer.encode(PROMPT).unwrap())
    });
    group.finish();
}
