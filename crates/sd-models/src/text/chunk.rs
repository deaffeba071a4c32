//! Prompts of any length, as windows of what a text encoder takes at once.

use super::{Tokenizer, Weighting};
use crate::Result;

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text and its weight, of which 1 changes nothing.
    Text {
        /// Any text. Two pieces never share a word.
        text: String,
        /// Times the text's share in the conditioning; finite.
        weight: f64,
    },
    /// Goes on in the next window.
    Break,
}

/// One window: start token, tokens, end token, padding.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    pub(super) ids: Vec<u32>,
    /// Of each id; 1 for all but the prompt's own.
    pub(super) weights: Vec<f64>,
}

/// The web UI ends a window early, at a comma among its last tokens: its setting "prompt word wrap length limit".
const WRAP: usize = 20;

/// ComfyUI moves a word of fewer tokens into the next window rather than part it.
const LONG_WORD: usize = 8;

impl Chunk {
    /// `tokens`, no more than the tokenizer's [`room`](Tokenizer::room), with their weights.
    pub(super) fn new(tokenizer: &Tokenizer, tokens: &[(u32, f64)]) -> Self {
        let ids = tokenizer.window(tokens.iter().map(|(id, _)| *id));
        let mut weights = vec![1.0];
        weights.extend(tokens.iter().map(|(_, weight)| *weight));
        weights.resize(ids.len(), 1.0);
        Self { ids, weights }
    }

    /// Whether any weight is not 1.
    pub(super) fn is_weighted(&self) -> bool {
        self.weights.iter().any(|weight| *weight != 1.0)
    }

    /// The windows of a prompt: at least one.
    pub(super) fn cut(
        tokenizer: &Tokenizer,
        pieces: &[Piece],
        weighting: Weighting,
    ) -> Result<Vec<Self>> {
        let mut windows = Windows {
            tokenizer,
            chunks: Vec::new(),
            tokens: Vec::new(),
            wrap: None,
        };
        for piece in pieces {
            match (piece, weighting) {
                (Piece::Break, _) => windows.close(),
                (Piece::Text { text, weight }, Weighting::A1111) => {
                    windows.push_wrapping(text, *weight)?;
                }
                (Piece::Text { text, weight }, Weighting::ComfyUi) => {
                    for word in text.split([' ', '\n']) {
                        windows.push_word(word, *weight)?;
                    }
                }
            }
        }
        Ok(windows.finish())
    }
}

/// Windows that are being filled.
struct Windows<'a> {
    tokenizer: &'a Tokenizer,
    chunks: Vec<Chunk>,
    /// Of the window that is not full yet.
    tokens: Vec<(u32, f64)>,
    /// How many of them end with their last comma.
    wrap: Option<usize>,
}

impl Windows<'_> {
    /// Text that is parted after a comma, if one is near, where the window ends (AUTOMATIC1111's web UI,
    /// modules/sd_hijack_clip.py, `tokenize_line`).
    fn push_wrapping(&mut self, text: &str, weight: f64) -> Result<()> {
        let (room, comma) = (self.tokenizer.room(), self.tokenizer.comma());
        for id in self.tokenizer.ids(text)? {
            let is_comma = Some(id) == comma;
            if self.tokens.len() == room {
                let near = |wrap: &usize| !is_comma && room - wrap < WRAP;
                let rest = self
                    .tokens
                    .split_off(self.wrap.filter(near).unwrap_or(room));
                self.close();
                self.tokens = rest;
            }
            self.tokens.push((id, weight));
            if is_comma {
                self.wrap = Some(self.tokens.len());
            }
        }
        Ok(())
    }

    /// A word that is parted only if it is long (ComfyUI, comfy/sd1_clip.py, `tokenize_with_weights`).
    fn push_word(&mut self, word: &str, weight: f64) -> Result<()> {
        let (room, ids) = (self.tokenizer.room(), self.tokenizer.ids(word)?);
        if ids.len() < LONG_WORD && self.tokens.len() + ids.len() > room {
            self.close();
        }
        for id in ids {
            if self.tokens.len() == room {
                self.close();
            }
            self.tokens.push((id, weight));
        }
        Ok(())
    }

    /// Ends the window, which may be empty.
    fn close(&mut self) {
        self.chunks.push(Chunk::new(self.tokenizer, &self.tokens));
        self.tokens.clear();
        self.wrap = None;
    }

    fn finish(mut self) -> Vec<Chunk> {
        if !self.tokens.is_empty() || self.chunks.is_empty() {
            self.close();
        }
        self.chunks
    }
}
