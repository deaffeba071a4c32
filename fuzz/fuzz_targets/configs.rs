//! A model's JSON files, one of them not as it should be: the model is described or refused, and a request to what was
//! described is resolved or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_config::ModelConfig;
use sd_pipeline::Request;

fuzz_target!(|input: &[u8]| {
    let files: Vec<_> = sd_demo_model::FILES
        .iter()
        .filter(|(path, _)| path.ends_with(".json") && !path.starts_with("tokenizer/"))
        .collect();
    let Some((&number, text)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let (wrong, _) = files[usize::from(number) % files.len()];
    let config = ModelConfig::from_files(|path| {
        if path == *wrong {
            return Some(text.to_owned());
        }
        let (_, bytes) = files.iter().find(|(name, _)| *name == path)?;
        String::from_utf8(bytes.to_vec()).ok()
    });
    if let Ok(config) = config {
        let _ = Request::new("a cat").resolve(&config);
    }
});
