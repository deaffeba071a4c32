//! The characters of a prompt that may mean something, and the text between them.

use std::ops::Range;

use sd_models::text::Weighting;

/// All characters that end a run of text.
const SPECIAL: [char; 7] = ['(', ')', '[', ']', ':', '|', '\\'];

/// A part of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// As it stands: a run without special characters.
    Text(&'a str),
    /// What an escape stands for.
    Escape(&'a str),
    Open(Bracket),
    Close(Bracket),
    Colon,
    Bar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bracket {
    Round,
    Square,
}

/// Whom tokens are for, which decides what a backslash does.
#[derive(Clone, Copy)]
pub(super) enum Reader {
    Edits,
    Weights(Weighting),
}

impl Reader {
    /// Characters that a backslash makes text of. The web UI's weights know escapes of brackets alone, its edits of all.
    fn escapable(self) -> &'static [char] {
        match self {
            Self::Weights(Weighting::A1111) => &['(', ')', '[', ']', '\\'],
            _ => &SPECIAL,
        }
    }
}

/// The tokens of `source` and the bytes that each takes, in their order and without gaps.
pub(super) fn lex(source: &str, reader: Reader) -> impl Iterator<Item = (Range<usize>, Token<'_>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (token, length) = first(&source[at..], reader)?;
        let range = at..at + length;
        at = range.end;
        Some((range, token))
    })
}

/// The first token of `rest`, and its length in bytes.
fn first(rest: &str, reader: Reader) -> Option<(Token<'_>, usize)> {
    let token = match rest.chars().next()? {
        '(' => Token::Open(Bracket::Round),
        '[' => Token::Open(Bracket::Square),
        ')' => Token::Close(Bracket::Round),
        ']' => Token::Close(Bracket::Square),
        ':' => Token::Colon,
        '|' => Token::Bar,
        '\\' if rest[1..].starts_with(reader.escapable()) => {
            return Some((Token::Escape(&rest[1..2]), 2));
        }
        // The web UI drops a backslash that escapes nothing, ComfyUI keeps it.
        '\\' => match reader {
            Reader::Weights(Weighting::A1111) => Token::Escape(""),
            _ => Token::Escape("\\"),
        },
        _ => {
            let length = rest.find(SPECIAL).unwrap_or(rest.len());
            return Some((Token::Text(&rest[..length]), length));
        }
    };
    Some((token, 1))
}
