//! The small language of prompts: parts that change from step to step, and parts that weigh more or less.
//!
//! A prompt is read twice, as in AUTOMATIC1111's web UI. First its [edits](edit) decide which text a step has, then that
//! text is taken apart into [pieces](weight) of one weight:
//!
//! ```text
//! prompt    = (text | edit | alternation | weighted)*
//! edit      = "[" [prompt ":"] prompt ":" number "]"      the first prompt until then, the second from then on
//! alternation = "[" prompt ("|" prompt)+ "]"              the next one in each step
//! weighted  = "(" prompt ")"                              times 1.1
//!           | "(" prompt ":" number ")"                   times the number; in ComfyUI that number
//!           | "[" prompt "]"                              divided by 1.1; not in ComfyUI
//! number    = ["+" | "-"] digits and at most one point    with spaces around it
//! escape    = "\" before one of ( ) [ ] : | \             that character as text; in weights of the web UI not : and |
//! ```
//!
//! Every string is a prompt: what fits no rule is text. Brackets may be nested to any depth; nothing here recurses, and
//! the time taken grows with the length of the text.

mod edit;
mod lexer;
#[cfg(test)]
mod tests;
mod weight;

use sd_models::text::{Piece, Weighting};
use serde::{Deserialize, Serialize};

use crate::Result;

pub(crate) use edit::timeline;
pub(crate) use weight::pieces;

/// How a prompt is read, and what its weights do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptWeighting {
    /// As diffusers reads it: every character is text, and what the text encoder has no room for is cut.
    #[default]
    Plain,
    /// As AUTOMATIC1111's web UI: `(a)`, `(a:1.2)` and `[a]` weigh, `[a:b:0.5]` and `[a|b]` change from step to step, `BREAK`
    /// starts the next window of 75 tokens. Weights multiply the encoded text, whose mean is kept.
    A1111,
    /// As ComfyUI: `(a)` and `(a:1.2)` weigh, moving the encoded text away from that of the empty prompt; and, beyond
    /// ComfyUI, `[a:b:0.5]` and `[a|b]` change from step to step.
    ComfyUi,
}

impl PromptWeighting {
    /// Writes `text` such that it is read as it stands, whatever characters it has.
    ///
    /// ```
    /// use sd_pipeline::PromptWeighting;
    ///
    /// assert_eq!(PromptWeighting::A1111.escape("a cat (tabby)"), r"a cat \(tabby\)");
    /// assert_eq!(PromptWeighting::Plain.escape("a cat (tabby)"), "a cat (tabby)");
    /// ```
    pub fn escape(self, text: &str) -> String {
        if self == Self::Plain {
            return text.into();
        }
        let mut escaped = String::with_capacity(text.len());
        for character in text.chars() {
            if "()[]\\".contains(character) {
                escaped.push('\\');
            }
            escaped.push(character);
        }
        match self {
            // There a backslash before a letter is dropped, and parts the word.
            Self::A1111 => escaped.replace(weight::BREAK, r"B\REAK"),
            _ => escaped,
        }
    }

    /// What a prompt says in a run of `steps` steps, as no model is needed to tell: the pieces of its text from step 0 on,
    /// and those from each step on that changes them. Without text there are none.
    ///
    /// ```
    /// use sd_pipeline::{Piece, PromptWeighting};
    ///
    /// let read = PromptWeighting::A1111.read("a [cat:(dog:1.2):0.5]", 20)?;
    /// let piece = |text: &str, weight| Piece::Text { text: text.into(), weight };
    /// assert_eq!(read[0], (0, vec![piece("a cat", 1.0)]));
    /// assert_eq!(read[1], (10, vec![piece("a ", 1.0), piece("dog", 1.2)]));
    /// # Ok::<(), sd_pipeline::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Field`](crate::Error::Field) if the texts of all steps are too long together.
    pub fn read(self, prompt: &str, steps: usize) -> Result<Vec<(usize, Vec<Piece>)>> {
        let timeline = timeline("prompt", &[prompt], self, &[steps])?;
        let texts = timeline.values().flat_map(|texts| texts.iter());
        let pieces = texts.map(|text| match self.weighting() {
            Some(weighting) => pieces(text, weighting),
            None if text.is_empty() => vec![],
            None => vec![Piece::Text {
                text: text.clone(),
                weight: 1.0,
            }],
        });
        Ok([0]
            .into_iter()
            .chain(timeline.changes())
            .zip(pieces)
            .collect())
    }

    /// The rules by which text is encoded; None for [`Plain`](Self::Plain).
    pub(crate) fn weighting(self) -> Option<Weighting> {
        match self {
            Self::Plain => None,
            Self::A1111 => Some(Weighting::A1111),
            Self::ComfyUi => Some(Weighting::ComfyUi),
        }
    }
}

/// A number as prompts have it: digits, at most one point, perhaps a sign. Neither exponents, nor infinities in letters.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let plain = |byte: u8| byte.is_ascii_digit() || b".+-".contains(&byte);
    text.bytes().all(plain).then(|| text.parse().ok())?
}
