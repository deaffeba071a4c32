//! Encodes the texts of a run, each once.

use std::collections::HashMap;

use sd_models::text::{Conditioning, TextEncoders, Weighting, Windows};

use crate::{Error, Job, Result, prompt};

/// Most windows of encoded text that a run keeps, of all texts that its steps have: about 250 MB for v1.5.
pub(crate) const MAX_WINDOWS: usize = 1024;

/// One text an encoder. No text at all stands for zeros.
pub(crate) type Texts = Vec<String>;

/// Encodes texts as a job's `prompt_weighting` says.
pub(crate) struct Encoder<'a> {
    encoders: &'a TextEncoders,
    clip_skip: usize,
    /// None for plain texts.
    windows: Option<AllWindows<'a>>,
}

/// The texts of a run in windows.
struct AllWindows<'a> {
    of: HashMap<&'a Texts, Windows>,
    /// How many each text gets. All get as many, as the UNet takes them in one batch.
    count: usize,
}

/// Which side of classifier-free guidance a text is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Positive,
    Negative,
}

impl<'a> Encoder<'a> {
    /// For a run that has `texts`, of both sides and of all its steps.
    pub(crate) fn new(
        encoders: &'a TextEncoders,
        job: &Job,
        texts: impl Iterator<Item = &'a Texts>,
    ) -> Result<Self> {
        let weighting = job.prompt_weighting.weighting();
        let windows = weighting.map(|weighting| AllWindows::cut(encoders, weighting, texts));
        Ok(Self {
            encoders,
            clip_skip: job.clip_skip,
            windows: windows.transpose()?,
        })
    }

    pub(crate) fn encode(&self, texts: &Texts, side: Side) -> Result<Conditioning> {
        let Some(windows) = &self.windows else {
            // diffusers leaves out no layers of the negative prompt.
            let clip_skip = (side == Side::Positive).then_some(self.clip_skip);
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            return Ok(match texts[..] {
                [] => self.encoders.zeros(1)?,
                _ => self.encoders.encode(&texts, clip_skip)?,
            });
        };
        Ok(match windows.of.get(texts) {
            Some(own) => self
                .encoders
                .encode_windows(own, windows.count, Some(self.clip_skip))?,
            None => self.encoders.zeros(windows.count)?,
        })
    }
}

impl<'a> AllWindows<'a> {
    fn cut(
        encoders: &TextEncoders,
        weighting: Weighting,
        texts: impl Iterator<Item = &'a Texts>,
    ) -> Result<Self> {
        let mut windows = Self {
            of: HashMap::new(),
            count: 1,
        };
        for texts in texts.filter(|texts| !texts.is_empty()) {
            if windows.of.contains_key(texts) {
                continue;
            }
            let pieces: Vec<_> = texts
                .iter()
                .map(|text| prompt::pieces(text, weighting))
                .collect();
            let own = encoders.cut(&pieces, weighting)?;
            windows.count = windows.count.max(own.len());
            windows.of.insert(texts, own);
            if windows.of.len() * windows.count > MAX_WINDOWS {
                return Err(Error::PromptTooLong {
                    texts: windows.of.len(),
                    windows: windows.count,
                    limit: MAX_WINDOWS,
                });
            }
        }
        Ok(windows)
    }
}
