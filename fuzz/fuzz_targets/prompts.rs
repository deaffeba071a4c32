//! Prompts in all their syntaxes: any text is a prompt, and an escaped one is text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sd_pipeline::{Pipeline, PromptWeighting, Request};

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    let builder = Pipeline::builder(sd_pipeline::builtin_model());
    builder.build().expect("the built-in model")
});

fuzz_target!(|prompt: &str| {
    for weighting in [PromptWeighting::Plain, PromptWeighting::A1111, PromptWeighting::ComfyUi] {
        let request = |prompt: String| Request {
            prompt_weighting: Some(weighting),
            num_inference_steps: Some(3),
            seed: Some(0),
            ..Request::new(prompt)
        };
        PIPELINE
            .start(&request(prompt.to_owned()))
            .expect("any text is a prompt");
        PIPELINE
            .start(&request(weighting.escape(prompt)))
            .expect("an escaped text is a prompt");
    }
});
