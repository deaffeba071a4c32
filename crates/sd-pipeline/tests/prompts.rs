//! Weighted, long and changing prompts: their numbers, and that runs with them are runs like any other.

mod common;

use std::{collections::HashMap, fs};

use common::{bits, finish, golden, pictures, pipeline, relative_error, request, values};
use sd_pipeline::{Conditions, Device, Error, Hires, PromptWeighting, Request, Tensor};
use serde_json::Value;

const WEIGHTINGS: [PromptWeighting; 2] = [PromptWeighting::A1111, PromptWeighting::ComfyUi];

fn weighted(prompt: &str, weighting: PromptWeighting) -> Request {
    Request {
        prompt_weighting: Some(weighting),
        ..request(prompt)
    }
}

/// Every tensor of some conditions, by the names of tests/golden.
fn tensors(conditions: &Conditions) -> HashMap<&'static str, Tensor> {
    let negative = conditions.negative.as_ref();
    [
        ("prompt_embeds", Some(conditions.positive.hidden.clone())),
        ("pooled", conditions.positive.pooled.clone()),
        (
            "negative_prompt_embeds",
            negative.map(|negative| negative.hidden.clone()),
        ),
        (
            "negative_pooled",
            negative.and_then(|negative| negative.pooled.clone()),
        ),
    ]
    .into_iter()
    .filter_map(|(name, tensor)| Some((name, tensor?)))
    .collect()
}

#[test]
fn every_case_is_as_its_formula_says() {
    let mut cases = 0;
    for entry in fs::read_dir(golden("prompts")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        cases += 1;
        let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let expected =
            candle_core::safetensors::load(path.with_extension("safetensors"), &Device::Cpu)
                .unwrap();
        let pipeline = pipeline(json["model"].as_str().unwrap());
        let request = Request::from_json(&json["request"].to_string()).unwrap();
        let mut run = pipeline.start(&request).unwrap();
        assert!(run.truncated().is_empty());
        let mut compared = 0;
        for step in 0..run.job().num_inference_steps {
            let prefix = format!("{step:03}.");
            if expected.keys().any(|key| key.starts_with(&prefix)) {
                for (name, found) in tensors(run.conditions()) {
                    let name = format!("{prefix}{name}");
                    let error = relative_error(&found, &expected[&name]);
                    assert!(
                        error <= 1e-5,
                        "{}: {name} is off by {error:e}",
                        path.display()
                    );
                    compared += 1;
                }
            }
            while run.advance(&pipeline).unwrap().unwrap().step == step {}
        }
        assert_eq!(compared, expected.len(), "{}", path.display());
    }
    assert_eq!(cases, 13);
}

#[test]
fn text_without_a_special_character_is_encoded_as_the_plain_one() {
    for family in ["sd15", "sd21", "sdxl"] {
        let pipeline = pipeline(family);
        for negative in [None, Some(""), Some("blurry, a dog!")] {
            let plain = Request {
                negative_prompt: negative.map(Into::into),
                ..request("a photo of a cat,\non  the «mat», 3 o'clock")
            };
            let expected = pipeline.start(&plain).unwrap();
            for weighting in WEIGHTINGS {
                let found = pipeline
                    .start(&Request {
                        prompt_weighting: Some(weighting),
                        ..plain.clone()
                    })
                    .unwrap();
                let (found, expected) =
                    (tensors(found.conditions()), tensors(expected.conditions()));
                assert_eq!(found.len(), expected.len());
                for (name, tensor) in expected {
                    assert_eq!(found[name].dims(), tensor.dims());
                    assert!(
                        bits(&found[name]) == bits(&tensor),
                        "{family} {weighting:?} {name}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_weight_of_one_changes_no_bit() {
    let pipeline = pipeline("sd15");
    for weighting in WEIGHTINGS {
        let hidden = |prompt: &str| {
            let run = pipeline.start(&weighted(prompt, weighting)).unwrap();
            bits(&run.conditions().positive.hidden)
        };
        assert!(hidden("a (red:1) (cat:1.0)") == hidden("a red cat"));
        assert!(hidden("a (red:1.01) cat") != hidden("a red cat"));
    }
    // In ComfyUI's way a weight moves its own tokens alone.
    let hidden = |prompt: &str| {
        let run = pipeline
            .start(&weighted(prompt, PromptWeighting::ComfyUi))
            .unwrap();
        values(
            &run.conditions()
                .positive
                .hidden
                .get(0)
                .unwrap()
                .get(1)
                .unwrap(),
        )
    };
    assert_eq!(hidden("a red (cat:1.5)"), hidden("a red cat"));
}

#[test]
fn extreme_weights_give_finite_numbers() {
    let pipeline = pipeline("sd15");
    for weighting in WEIGHTINGS {
        for prompt in [
            "(a cat:0)",
            "(a cat:-1)",
            "(a cat:99999999999999999999999999999999999999999999999999)",
            "((((a cat:0.0000000000000000000000000000000001)",
        ] {
            let run = pipeline.start(&weighted(prompt, weighting)).unwrap();
            let numbers = values(&run.conditions().positive.hidden);
            assert!(numbers.iter().all(|number| number.is_finite()), "{prompt}");
        }
    }
}

/// A request whose prompts change, and are long.
fn changing(weighting: PromptWeighting) -> Request {
    Request {
        negative_prompt: Some("[blue|(green:1.2)] things, ".repeat(20)),
        ..weighted("a [cat:(dog:1.3):0.5] and a [red|blue] ball", weighting)
    }
}

#[test]
fn a_changing_prompt_draws_another_picture_than_either_of_its_texts() {
    let pipeline = pipeline("sd15");
    let draw = |prompt: &str| pictures(&pipeline, &weighted(prompt, PromptWeighting::A1111));
    let (cat, dog) = (draw("a cat"), draw("a dog"));
    let between = draw("a [cat:dog:2]");
    assert!(between != cat && between != dog && cat != dog);
    assert!(draw("a [cat:dog:0]") == dog);
    assert!(draw("a [cat:dog:4]") == cat);
    assert!(draw("a [cat|dog|cat|dog]") != between);
}

#[test]
fn a_step_of_two_calls_has_one_text() {
    let pipeline = pipeline("sd15");
    let mut run = pipeline
        .start(&Request {
            scheduler: Some("heun".into()),
            ..weighted("a [cat|dog]", PromptWeighting::A1111)
        })
        .unwrap();
    let mut texts = Vec::new();
    while !run.is_done() {
        texts.push(bits(&run.conditions().positive.hidden));
        run.advance(&pipeline).unwrap();
    }
    assert_eq!(texts.len(), 7);
    let cat = &texts[0];
    let cats: Vec<bool> = texts.iter().map(|text| text == cat).collect();
    assert_eq!(cats, [true, true, false, false, true, true, false]);
}

#[test]
fn a_second_pass_goes_on_with_the_prompts_and_the_steps() {
    for (family, sized) in [("sd15", false), ("sdxl", true)] {
        let pipeline = pipeline(family);
        let request = Request {
            scheduler: Some("ddim".into()),
            hires: Some(Hires {
                strength: Some(0.5),
                ..Hires::default()
            }),
            ..weighted("[a cat:a dog:1.5]", PromptWeighting::A1111)
        };
        let mut run = pipeline.start(&request).unwrap();
        let (mut texts, mut sizes) = (Vec::new(), Vec::new());
        while !run.is_done() {
            let positive = &run.conditions().positive;
            texts.push(bits(&positive.hidden));
            sizes.push(positive.time_ids.as_ref().map(values));
            let snapshot = run.snapshot().unwrap();
            run = pipeline.resume(&snapshot).unwrap();
            run.advance(&pipeline).unwrap();
        }
        let cats: Vec<bool> = texts.iter().map(|text| text == &texts[0]).collect();
        assert_eq!(cats, [true, true, true, true, true, false], "{family}");
        let small = sizes.iter().map(|size| size == &sizes[0]);
        let expected = [true, true, true, true, !sized, !sized];
        assert_eq!(small.collect::<Vec<_>>(), expected, "{family}");
    }
}

#[test]
fn a_run_with_a_changing_prompt_resumes_to_the_same_bytes() {
    for weighting in WEIGHTINGS {
        let pipeline = pipeline("sd15");
        let expected = pictures(&pipeline, &changing(weighting));
        for calls in 0..4 {
            let mut run = pipeline.start(&changing(weighting)).unwrap();
            for _ in 0..calls {
                run.advance(&pipeline).unwrap();
            }
            let mut resumed = pipeline.resume(&run.snapshot().unwrap()).unwrap();
            assert_eq!(resumed.job(), run.job());
            assert!(
                finish(&mut resumed, &pipeline) == expected,
                "after {calls} calls"
            );
        }
    }
}

#[test]
fn runs_share_a_call_if_they_have_as_many_tokens() {
    let pipeline = pipeline("sd15");
    let requests = [
        changing(PromptWeighting::A1111),
        Request {
            num_inference_steps: Some(3),
            seed: Some(1),
            ..changing(PromptWeighting::A1111)
        },
    ];
    let mut runs = requests
        .each_ref()
        .map(|request| pipeline.start(request).unwrap());
    let [a, b] = &mut runs;
    while pipeline
        .advance_many(&mut [a, b])
        .unwrap()
        .iter()
        .any(Option::is_some)
    {}
    for (mut run, request) in runs.into_iter().zip(&requests) {
        assert!(finish(&mut run, &pipeline) == pictures(&pipeline, request));
    }

    let mut long = pipeline.start(&changing(PromptWeighting::A1111)).unwrap();
    let mut short = pipeline
        .start(&weighted("a cat", PromptWeighting::A1111))
        .unwrap();
    let error = pipeline
        .advance_many(&mut [&mut long, &mut short])
        .unwrap_err();
    assert!(
        matches!(error, Error::Batch { what: "text", .. }),
        "{error}"
    );
}

#[test]
fn more_text_than_a_run_can_keep_is_an_error() {
    let pipeline = pipeline("sd15");
    let refused = |request: Request| match pipeline.start(&request) {
        Err(Error::PromptTooLong { texts, windows, .. }) => (texts, windows),
        other => panic!("{other:?}"),
    };
    let breaks = weighted(&"a BREAK ".repeat(1100), PromptWeighting::A1111);
    assert_eq!(refused(breaks), (1, 1100));
    // Each step has a text of its own.
    let steps = Request {
        num_inference_steps: Some(500),
        ..weighted(
            &format!(
                "[a|b][a|b|c|d|e|f|g][a|b|c|d|e|f|g|h|i]{}",
                " BREAK a".repeat(9)
            ),
            PromptWeighting::A1111,
        )
    };
    assert_eq!(refused(steps), (103, 10));
}

#[test]
fn what_a_picture_says_about_its_prompt() {
    let pipeline = pipeline("sd15");
    let parameters = |weighting, prompt: &str| {
        let job = weighted(prompt, weighting)
            .resolve(pipeline.config())
            .unwrap();
        let metadata = pipeline.metadata(&job, 0).unwrap();
        let again: Request = serde_json::from_value(metadata["job"].clone()).unwrap();
        assert_eq!(again.prompt_weighting, Some(weighting));
        pipeline.a1111_parameters(&job, 0).unwrap()
    };
    let prompt = r"a (cat:1.2) \(x\)";
    let a1111 = parameters(PromptWeighting::A1111, prompt);
    assert!(a1111.starts_with(prompt) && !a1111.contains("Emphasis"));
    assert!(parameters(PromptWeighting::Plain, prompt).contains(", Emphasis: None,"));
    assert!(!parameters(PromptWeighting::Plain, "a cat").contains("Emphasis"));
}
