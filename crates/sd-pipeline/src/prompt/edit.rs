//! Which text a prompt has in which step: `[a:b:0.5]` and `[a|b]`.

use std::{collections::HashSet, ops::Range, sync::Arc};

use super::{
    PromptWeighting,
    lexer::{Bracket, Reader, Token, lex},
    number,
};
use crate::{Result, job::wrong, text::Texts, timeline::Timeline};

/// Most bytes of different texts in a timeline. A run keeps at most 1024 windows of 75 tokens encoded, and a token of CLIP's
/// has at most 32 bytes, so that what is longer and not white space is refused later in any case.
const MAX_TEXT: usize = 4 << 20;

/// The texts of `prompts` in the steps of a run, counted from 0. `passes` are the steps of each pass over the picture: one
/// number, or two where a small picture is made and then refined larger.
///
/// # Errors
/// [`Error::Field`](crate::Error::Field) names `field` where the texts are too long together.
pub(crate) fn timeline(
    field: &'static str,
    prompts: &[&str],
    weighting: PromptWeighting,
    passes: &[usize],
) -> Result<Timeline<Arc<Texts>>> {
    let prompts: Vec<_> = prompts
        .iter()
        .map(|prompt| Prompt::parse(prompt, weighting))
        .collect();
    let (mut known, mut bytes) = (HashSet::<Arc<Texts>>::new(), 0);
    let mut texts = |moment| {
        let texts: Texts = prompts.iter().map(|prompt| prompt.at(moment)).collect();
        if let Some(known) = known.get(&texts) {
            return Ok(known.clone());
        }
        bytes += texts.iter().map(String::len).sum::<usize>();
        if bytes > MAX_TEXT {
            let expected = format!("at most {MAX_TEXT} bytes of different texts in all steps");
            return Err(wrong(
                field,
                "edits that make too many long texts",
                expected,
            ));
        }
        let texts = Arc::new(texts);
        known.insert(texts.clone());
        Ok(texts)
    };
    let mut moments = moments(passes);
    let mut timeline = Timeline::new(texts(moments.next().unwrap_or(Moment::ONLY))?);
    if prompts.iter().any(|prompt| !prompt.choices.is_empty()) {
        for (from, moment) in (1..).zip(moments) {
            timeline.change(from, texts(moment)?);
        }
    }
    Ok(timeline)
}

/// A step of a run.
#[derive(Clone, Copy)]
struct Moment {
    /// The pass, counted from 0.
    pass: usize,
    /// The steps of the pass, and of the passes before it.
    steps: usize,
    before: usize,
    /// The step of the pass, counted from 1.
    step: usize,
}

impl Moment {
    /// For runs without steps, which have a text, too.
    const ONLY: Self = Self {
        pass: 0,
        steps: 1,
        before: 0,
        step: 1,
    };
}

fn moments(passes: &[usize]) -> impl Iterator<Item = Moment> {
    passes.iter().enumerate().flat_map(|(pass, &steps)| {
        let before = passes[..pass].iter().sum();
        (1..=steps).map(move |step| Moment {
            pass,
            steps,
            before,
            step,
        })
    })
}

/// A prompt whose text may change from step to step.
struct Prompt<'a> {
    source: &'a str,
    /// In the order of their brackets; one may lie in a part of another.
    choices: Vec<Choice>,
}

/// A pair of brackets of which each step takes one part.
struct Choice {
    /// Of the brackets, in bytes.
    range: Range<usize>,
    /// Between the brackets.
    parts: Vec<Range<usize>>,
    rule: Rule,
}

enum Rule {
    /// The first part to the end of this step, then the second.
    Until(When),
    /// The next part in each step.
    Alternate,
}

/// A number in a prompt as a time. As in the web UI, whole numbers and fractions count through all passes: with 20 steps in
/// the first pass, 25 and 1.25 lie in the second.
enum When {
    /// Written without a point.
    Step(f64),
    /// Written with a point: passes, and shares of a pass.
    Pass(f64),
}

impl<'a> Prompt<'a> {
    fn parse(source: &'a str, weighting: PromptWeighting) -> Self {
        let mut choices = Vec::new();
        let mut open: Vec<Frame> = Vec::new();
        let tokens = weighting.weighting().map(|_| lex(source, Reader::Edits));
        for (range, token) in tokens.into_iter().flatten() {
            match token {
                Token::Open(bracket) => open.push(Frame::new(bracket, range.end)),
                Token::Close(bracket) => match open.pop() {
                    Some(frame) if frame.bracket == bracket => {
                        choices.extend(frame.choice(source, range.start));
                    }
                    // Brackets around one that has no partner are text, too.
                    _ => open.clear(),
                },
                Token::Colon | Token::Bar => {
                    if let Some(frame) = open.last_mut() {
                        frame.separators.push((range.start, token == Token::Colon));
                    }
                }
                Token::Text(_) | Token::Escape(_) => {}
            }
        }
        choices.sort_by_key(|choice| choice.range.start);
        Self { source, choices }
    }

    /// The text of a step, in which brackets that are no choice, and escapes, are as they were.
    fn at(&self, moment: Moment) -> String {
        let mut text = String::new();
        // Where the parts that are being copied end, and where to go on after that.
        let mut inside: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        loop {
            let end = inside.last().map_or(self.source.len(), |(end, _)| *end);
            let next = self
                .choices
                .partition_point(|choice| choice.range.start < at);
            match self.choices.get(next) {
                Some(choice) if choice.range.start < end => {
                    text.push_str(&self.source[at..choice.range.start]);
                    let part = choice.part(moment);
                    inside.push((part.end, choice.range.end));
                    at = part.start;
                }
                _ => {
                    text.push_str(&self.source[at..end]);
                    match inside.pop() {
                        Some((_, next)) => at = next,
                        None => return text,
                    }
                }
            }
        }
    }
}

impl Choice {
    fn part(&self, moment: Moment) -> Range<usize> {
        let index = match &self.rule {
            Rule::Until(when) => usize::from(moment.step as f64 > when.step(moment)),
            Rule::Alternate => (moment.step - 1) % self.parts.len(),
        };
        self.parts[index].clone()
    }
}

impl When {
    /// As a step of the moment's pass: its last one before the change.
    fn step(&self, moment: Moment) -> f64 {
        let step = match self {
            Self::Step(step) => step - moment.before as f64,
            Self::Pass(pass) => (pass - moment.pass as f64) * moment.steps as f64,
        };
        step.trunc()
    }
}

/// A bracket that is not closed yet.
struct Frame {
    bracket: Bracket,
    /// Where its content starts.
    start: usize,
    /// Where a colon (true) or a bar (false) divides its content, outside of inner brackets.
    separators: Vec<(usize, bool)>,
}

impl Frame {
    fn new(bracket: Bracket, start: usize) -> Self {
        Self {
            bracket,
            start,
            separators: Vec::new(),
        }
    }

    /// The choice that this bracket is, if it is one, its content ending at byte `end`.
    fn choice(&self, source: &str, end: usize) -> Option<Choice> {
        if self.bracket == Bracket::Round {
            return None;
        }
        let colons: Vec<usize> = self
            .separators
            .iter()
            .filter(|(_, colon)| *colon)
            .map(|(at, _)| *at)
            .collect();
        let edit = |last: usize| When::parse(&source[last + 1..end]).map(Rule::Until);
        let (parts, rule) = match colons[..] {
            [] if !self.separators.is_empty() => {
                let bars = self.separators.iter().map(|(at, _)| *at);
                let starts = [self.start]
                    .into_iter()
                    .chain(bars.clone().map(|at| at + 1));
                let parts = starts.zip(bars.chain([end]));
                (
                    parts.map(|(start, end)| start..end).collect(),
                    Rule::Alternate,
                )
            }
            [last] => (vec![self.start..self.start, self.start..last], edit(last)?),
            [middle, last] => (vec![self.start..middle, middle + 1..last], edit(last)?),
            _ => return None,
        };
        Some(Choice {
            range: self.start - 1..end + 1,
            parts,
            rule,
        })
    }
}

impl When {
    fn parse(text: &str) -> Option<Self> {
        let when = number(text)?;
        Some(match text.contains('.') {
            true => Self::Pass(when),
            false => Self::Step(when),
        })
    }
}
