//! Bodies of requests, of all three APIs: whatever they hold, they are read or refused, and what was read is resolved or
//! refused. What was read once reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_config::{ModelConfig, Version};
use sd_pipeline::Request;
use sd_worker::http::read;

fuzz_target!(|body: &[u8]| {
    for read in [
        read::job,
        read::openai_generation,
        read::a1111_txt2img,
        read::a1111_img2img,
    ] {
        let Ok(request) = read(body) else { continue };
        let json = serde_json::to_string(&request).expect("a request is JSON");
        let again = Request::from_json(&json).expect("a request's own JSON");
        assert_eq!(again, request, "{json}");
        for version in [Version::V1_5, Version::Xl] {
            let _ = request.resolve(&ModelConfig::preset(version));
        }
    }
});
