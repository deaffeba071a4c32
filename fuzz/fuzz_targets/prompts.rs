//! Prompts in all their syntaxes: any text is a prompt, and an escaped one is text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sd_pipeline::{Error, Pipeline, PromptWeighting, Request};

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    let builder = Pipeline::builder(sd_pipeline::builtin_model());
    builder.build().expect("the built-in model")
});

fuzz_target!(|prompt: &str| {
    const ALL: [PromptWeighting; 3] = [
        PromptWeighting::Plain,
        PromptWeighting::A1111,
        PromptWeighting::ComfyUi,
    ];
    // One of them, as encoding takes long.
    let weighting = ALL[prompt.len() % ALL.len()];
    for prompt in [prompt.to_owned(), weighting.escape(prompt)] {
        let request = Request {
            prompt_weighting: Some(weighting),
            num_inference_steps: Some(3),
            seed: Some(0),
            ..Request::new(prompt)
        };
        match PIPELINE.start(&request) {
            Ok(_) | Err(Error::PromptTooLong { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
});
