//! CLIP's tokenizer, as transformers 5 builds it (models/clip/tokenization_clip.py).

mod files;

use files::Files;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::{Error, Result};

/// What a word is, in the normalised text.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns a prompt into a fixed number of token ids.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    folder: String,
    start: u32,
    end: u32,
    pad: u32,
    max_length: usize,
}

/// A prompt as the text encoder sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Start, words, end, padding: as many as the tokenizer's maximal length.
    pub ids: Vec<u32>,
    /// The end of the prompt that had no place, if any.
    pub truncated: Option<String>,
}

impl Tokenizer {
    /// Builds the tokenizer of `folder`, for an encoder of `positions` positions.
    ///
    /// `read(name)` gives the text of a file of the folder, None when it is absent. The vocabulary
    /// comes from `tokenizer.json`, or from `vocab.json` and `merges.txt`. The padding token is the
    /// one of `special_tokens_map.json`, else of `tokenizer_config.json`, else `<|endoftext|>`; a
    /// `tokenizer_config.json` with an `added_tokens_decoder` makes the other file void.
    ///
    /// # Errors
    /// Files that are missing, cannot be parsed, or contradict each other.
    pub fn from_files(
        folder: &str,
        positions: usize,
        read: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<Self> {
        let files = Files::read(folder, &read)?;
        let error = |reason: String| Error::Tokenizer {
            folder: folder.to_owned(),
            reason,
        };
        let failed = |source: tokenizers::Error| error(source.to_string());
        let model = BPE::builder()
            .vocab_and_merges(files.vocab.into_iter().collect::<Vocab>(), files.merges)
            .unk_token(files.unknown)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".to_owned())
            .build()
            .map_err(failed)?;
        let inner = assemble(model, files.added).map_err(failed)?;
        let id = |token: &str| {
            let id = inner.token_to_id(token);
            id.ok_or_else(|| error(format!("the special token `{token}` has no id")))
        };
        let (start, end, pad) = (id(&files.start)?, id(&files.end)?, id(&files.pad)?);
        // No limit is written as 1e30; `as` saturates.
        let limit = files.max_length.map(|limit| limit as usize);
        let max_length = limit.map_or(positions, |limit| limit.min(positions));
        if max_length < 2 {
            let reason = "leaves no place for the start and end tokens";
            return Err(error(format!("a length of {max_length} {reason}")));
        }
        let folder = folder.to_owned();
        Ok(Self {
            inner,
            folder,
            start,
            end,
            pad,
            max_length,
        })
    }

    /// The ids of `text`: start token, at most `max_length - 2` tokens, end token, padding.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary lacks a symbol and has no unknown token.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let encoding = self.encoding(text)?;
        let ids = self.window(encoding.get_ids().iter().copied());
        let cut = encoding.get_offsets().get(self.room());
        let truncated = cut.map(|&(start, _)| tail(text, start).trim().to_owned());
        Ok(Tokens { ids, truncated })
    }

    /// The ids of `text` alone, as many as there are.
    pub(super) fn ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// Start token, as many of `ids` as there is [`room`](Self::room) for, end token, padding.
    pub(super) fn window(&self, ids: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut window = Vec::with_capacity(self.max_length);
        window.push(self.start);
        window.extend(ids.take(self.room()));
        window.push(self.end);
        window.resize(self.max_length, self.pad);
        window
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding> {
        let encoding = self.inner.encode(text, false);
        encoding.map_err(|error| Error::Tokenizer {
            folder: self.folder.clone(),
            reason: error.to_string(),
        })
    }

    /// How many tokens of a text are encoded at once.
    pub(super) fn room(&self) -> usize {
        self.max_length - 2
    }

    /// The token of a comma, if there is one.
    pub(super) fn comma(&self) -> Option<u32> {
        self.inner.token_to_id(",</w>")
    }

    /// How many ids [`encode`](Self::encode) gives.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The largest id [`encode`](Self::encode) can give.
    pub(crate) fn largest_id(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().unwrap_or(0)
    }
}

/// `text` from the character on that holds byte `start`.
fn tail(text: &str, start: usize) -> &str {
    let starts = (0..=start.min(text.len())).rev();
    starts.filter_map(|i| text.get(i..)).next().unwrap_or(text)
}

/// The tokenizer's parts, joined.
fn assemble(model: BPE, added: Vec<AddedToken>) -> tokenizers::Result<tokenizers::Tokenizer> {
    let spaces = ReplacePattern::Regex(r"\s+".to_owned());
    let normalizers = vec![
        NFC.into(),
        Replace::new(spaces, " ")?.into(),
        Lowercase.into(),
    ];
    let words = SplitPattern::Regex(WORDS.to_owned());
    let pre_tokenizers = vec![
        Split::new(words, SplitDelimiterBehavior::Removed, true)?.into(),
        ByteLevel::new(false, true, true).into(),
    ];
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(pre_tokenizers)));
    tokenizer.add_tokens(added)?;
    Ok(tokenizer)
}
