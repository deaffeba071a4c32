//! Prompts in all their syntaxes: any text is a prompt, and an escaped one is text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_pipeline::{Piece, PromptWeighting};

fuzz_target!(|prompt: &str| {
    for weighting in [
        PromptWeighting::Plain,
        PromptWeighting::A1111,
        PromptWeighting::ComfyUi,
    ] {
        let read = |prompt: &str| weighting.read(prompt, 7).expect("seven short texts");
        for piece in read(prompt).into_iter().flat_map(|(_, pieces)| pieces) {
            if let Piece::Text { text, weight } = piece {
                assert!(!text.is_empty() && weight.abs() <= 1000.0, "{text:?} {weight}");
            }
        }
        let text = prompt.to_owned();
        let whole = Piece::Text { text, weight: 1.0 };
        let expected = if prompt.is_empty() { vec![] } else { vec![whole] };
        assert_eq!(read(&weighting.escape(prompt)), [(0, expected)]);
    }
});
