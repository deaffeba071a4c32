//! The pieces of a text and their weights: `(a:1.2)`, `[b]` and `BREAK`.

use sd_models::text::{Piece, Weighting};

use super::{
    lexer::{Bracket, Reader, Token, lex},
    number,
};

/// Ends a window of the text encoder.
pub(super) const BREAK: &str = "BREAK";

/// What round brackets multiply by, and square ones divide by.
const STEP: f64 = 1.1;

/// No weight is beyond this, on either side of 0: products of weights stay finite.
pub(super) const MAX_WEIGHT: f64 = 1000.0;

/// The pieces of a step's text. Neighbours differ in weight, and none is empty.
pub(crate) fn pieces(text: &str, weighting: Weighting) -> Vec<Piece> {
    let tokens = lex(text, Reader::Weights(weighting));
    let tokens: Vec<Token<'_>> = tokens.map(|(_, token)| token).collect();
    let mut pieces = Vec::new();
    let mut weights = Weights::default();
    for (token, role) in tokens.iter().zip(roles(&tokens, weighting)) {
        match (role, token) {
            (Role::Text, Token::Text(text)) if weighting == Weighting::A1111 => {
                for (i, part) in between_breaks(text).enumerate() {
                    if i > 0 {
                        pieces.push(Piece::Break);
                    }
                    push(&mut pieces, part, weights.product());
                }
            }
            (Role::Text, token) => push(&mut pieces, spelling(token), weights.product()),
            (Role::Weight, _) => {}
            (Role::Open(bracket, factor), _) => weights.open(bracket, factor),
            (Role::Close(bracket), _) => weights.close(bracket),
        }
    }
    pieces
}

fn push(pieces: &mut Vec<Piece>, text: &str, weight: f64) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text {
            text: last,
            weight: its_weight,
        }) if *its_weight == weight => last.push_str(text),
        _ => pieces.push(Piece::Text {
            text: text.into(),
            weight,
        }),
    }
}

/// A token as text.
fn spelling<'a>(token: &Token<'a>) -> &'a str {
    match *token {
        Token::Text(text) | Token::Escape(text) => text,
        Token::Open(Bracket::Round) => "(",
        Token::Close(Bracket::Round) => ")",
        Token::Open(Bracket::Square) => "[",
        Token::Close(Bracket::Square) => "]",
        Token::Colon => ":",
        Token::Bar => "|",
    }
}

/// What a token does.
#[derive(Clone, Copy)]
enum Role {
    /// It is text.
    Text,
    /// It opens brackets that weigh.
    Open(Bracket, Factor),
    /// It closes them.
    Close(Bracket),
    /// It is the colon or the number of brackets that weigh.
    Weight,
}

#[derive(Clone, Copy)]
enum Factor {
    /// Times the weight outside.
    Times(f64),
    /// Whatever the weight outside.
    Exactly(f64),
}

/// The role of each token. Each kind of bracket is paired without regard to the other.
fn roles(tokens: &[Token<'_>], weighting: Weighting) -> Vec<Role> {
    let mut roles = vec![Role::Text; tokens.len()];
    let (mut round, mut square) = (Vec::new(), Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Open(Bracket::Round) => round.push(i),
            Token::Open(Bracket::Square) if weighting == Weighting::A1111 => square.push(i),
            Token::Close(Bracket::Round) => {
                let Some(open) = round.pop() else { continue };
                let factor = match tokens[open..i] {
                    [.., Token::Colon, Token::Text(text)] => number(text),
                    _ => None,
                };
                if factor.is_some() {
                    roles[i - 2..i].fill(Role::Weight);
                }
                let factor = match (factor, weighting) {
                    (None, _) => Factor::Times(STEP),
                    (Some(factor), Weighting::A1111) => Factor::Times(factor),
                    (Some(factor), Weighting::ComfyUi) => Factor::Exactly(factor),
                };
                roles[open] = Role::Open(Bracket::Round, factor);
                roles[i] = Role::Close(Bracket::Round);
            }
            Token::Close(Bracket::Square) => {
                let Some(open) = square.pop() else { continue };
                roles[open] = Role::Open(Bracket::Square, Factor::Times(1.0 / STEP));
                roles[i] = Role::Close(Bracket::Square);
            }
            _ => {}
        }
    }
    // In the web UI brackets that are never closed weigh all the rest, in ComfyUI they are text.
    if weighting == Weighting::A1111 {
        for open in round {
            roles[open] = Role::Open(Bracket::Round, Factor::Times(STEP));
        }
        for open in square {
            roles[open] = Role::Open(Bracket::Square, Factor::Times(1.0 / STEP));
        }
    }
    roles
}

/// The weights of the brackets that are open, each with those outside of it.
#[derive(Default)]
struct Weights {
    round: Vec<f64>,
    square: Vec<f64>,
}

impl Weights {
    fn stack(&mut self, bracket: Bracket) -> &mut Vec<f64> {
        match bracket {
            Bracket::Round => &mut self.round,
            Bracket::Square => &mut self.square,
        }
    }

    fn open(&mut self, bracket: Bracket, factor: Factor) {
        let stack = self.stack(bracket);
        let weight = match factor {
            Factor::Times(factor) => within(factor) * stack.last().unwrap_or(&1.0),
            Factor::Exactly(weight) => weight,
        };
        stack.push(within(weight));
    }

    fn close(&mut self, bracket: Bracket) {
        self.stack(bracket).pop();
    }

    fn product(&self) -> f64 {
        within(self.round.last().unwrap_or(&1.0) * self.square.last().unwrap_or(&1.0))
    }
}

fn within(weight: f64) -> f64 {
    weight.clamp(-MAX_WEIGHT, MAX_WEIGHT)
}

/// The parts of a text before, between and after the words `BREAK`, without the white space around those.
fn between_breaks(text: &str) -> impl Iterator<Item = &str> {
    let in_word = |character: char| character.is_alphanumeric() || character == '_';
    let words = text.match_indices(BREAK).map(|(at, _)| at);
    let breaks = words.filter(move |at| {
        !text[..*at].ends_with(in_word) && !text[at + BREAK.len()..].starts_with(in_word)
    });
    let ends = breaks.clone().map(Some).chain([None]);
    let starts = [None].into_iter().chain(breaks.map(Some));
    starts.zip(ends).map(|(start, end)| {
        let part = &text[start.map_or(0, |at| at + BREAK.len())..end.unwrap_or(text.len())];
        let part = if start.is_some() {
            part.trim_start()
        } else {
            part
        };
        if end.is_some() { part.trim_end() } else { part }
    })
}
