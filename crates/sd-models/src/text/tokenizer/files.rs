//! The files of a tokenizer's folder, read by the rules of transformers 5
//! (tokenization_utils_base.py, tokenization_utils_tokenizers.py).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::{Error, Result};

/// What the files say, in whatever style they say it.
pub(super) struct Files {
    pub(super) vocab: BTreeMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    /// Tokens that are matched before the text is split into words; of two entries for one text the
    /// later one counts.
    pub(super) added: Vec<AddedToken>,
    pub(super) start: String,
    pub(super) end: String,
    pub(super) unknown: String,
    pub(super) pad: String,
    pub(super) max_length: Option<f64>,
}

impl Files {
    pub(super) fn read(
        folder: &str,
        read: &dyn Fn(&str) -> Result<Option<String>>,
    ) -> Result<Self> {
        let folder = Folder { folder, read };
        let config: Config = folder.json("tokenizer_config.json")?.unwrap_or_default();
        let tokenizer_json: Option<TokenizerJson> = folder.json("tokenizer.json")?;

        let mut added = added_tokens(&folder, &config, tokenizer_json.as_ref())?;
        let roles = Roles::read(
            &folder,
            config.added_tokens_decoder.is_some(),
            config.others,
        )?;
        let role = |name| roles.get(&folder, name, &added);
        let role_or = |name, default: &str| {
            role(name).map(|token| token.unwrap_or_else(|| AddedToken::from(default, true)))
        };
        let start = role_or("bos_token", "<|startoftext|>")?;
        let end = role_or("eos_token", "<|endoftext|>")?;
        let unknown = role_or("unk_token", "<|endoftext|>")?;
        let separator = role("sep_token")?;
        let pad = role_or("pad_token", "<|endoftext|>")?;
        let (class, mask) = (role("cls_token")?, role("mask_token")?);
        let names = [&start, &end, &unknown, &pad].map(|token| token.content.clone());
        // In transformers' order.
        let special = [start, end, unknown].into_iter().chain(separator);
        let special = special.chain([pad]).chain(class).chain(mask);
        let new = special.filter(|token| added.iter().all(|other| other.content != token.content));
        added.extend(new.collect::<Vec<_>>());

        let (vocab, merges): (BTreeMap<String, u32>, _) = match tokenizer_json {
            Some(json) => (json.model.vocab, json.model.merges),
            None => {
                let vocab = folder.parse("vocab.json", &folder.required("vocab.json")?)?;
                (vocab, merge_lines(&folder.required("merges.txt")?))
            }
        };
        let merges = merges.into_iter().map(Merge::pair);
        let merges = merges.collect::<Option<Vec<(String, String)>>>();
        let merges = merges.ok_or_else(|| folder.error("a merge rule is not two symbols"))?;
        // `tokenizers` panics where the result is longer than every token.
        for (left, right) in &merges {
            let merged = format!("{left}{right}");
            if !vocab.contains_key(&merged) {
                let reason = "is the result of a merge rule and not in the vocabulary";
                return Err(folder.error(format!("`{merged}` {reason}")));
            }
        }
        // `tokenizers` panics where another token has stripped the white space that this one starts to match in.
        let strips_itself = |token: &&AddedToken| token.lstrip && token.content.trim().is_empty();
        if let Some(token) = added.iter().find(strips_itself) {
            let reason = "is white space, and cannot strip white space before it";
            return Err(folder.error(format!("the added token {:?} {reason}", token.content)));
        }
        let [start, end, unknown, pad] = names;
        let max_length = config.model_max_length;
        Ok(Self {
            vocab,
            merges,
            added,
            start,
            end,
            unknown,
            pad,
            max_length,
        })
    }
}

/// `merges.txt`: a line with the version, then a rule a line.
fn merge_lines(text: &str) -> Vec<Merge> {
    let rules = text.lines().filter(|line| !line.starts_with("#version"));
    let rules = rules.filter(|line| !line.is_empty());
    rules.map(|line| Merge::Line(line.to_owned())).collect()
}

/// The tokens that the files list beside the vocabulary, by id.
fn added_tokens(
    folder: &Folder<'_>,
    config: &Config,
    tokenizer_json: Option<&TokenizerJson>,
) -> Result<Vec<AddedToken>> {
    let mut by_id = BTreeMap::new();
    if let Some(decoder) = &config.added_tokens_decoder {
        for (id, token) in decoder {
            let number = id.parse::<u32>();
            let id = number.map_err(|_| folder.error(format!("`{id}` is not a token id")))?;
            by_id.insert(id, token.clone().added(false));
        }
    } else {
        let old: Option<BTreeMap<String, u32>> = folder.json("added_tokens.json")?;
        for (token, id) in old.unwrap_or_default() {
            by_id.insert(id, AddedToken::from(token, false));
        }
        for ListedToken { id, token } in tokenizer_json.iter().flat_map(|json| &json.added_tokens) {
            by_id.insert(*id, token.clone().added(false));
        }
    }
    Ok(by_id.into_values().collect())
}

/// Which tokens start, end and pad a text.
struct Roles {
    /// `special_tokens_map.json`.
    map: BTreeMap<String, Value>,
    /// `tokenizer_config.json`.
    config: BTreeMap<String, Value>,
}

impl Roles {
    fn read(
        folder: &Folder<'_>,
        without_map: bool,
        config: BTreeMap<String, Value>,
    ) -> Result<Self> {
        let map = match without_map {
            true => None,
            false => folder.json("special_tokens_map.json")?,
        };
        Ok(Self {
            map: map.unwrap_or_default(),
            config,
        })
    }

    /// The token of a role; its flags are those of the list of added tokens, if it is there.
    fn get(
        &self,
        folder: &Folder<'_>,
        role: &str,
        added: &[AddedToken],
    ) -> Result<Option<AddedToken>> {
        let value = self.map.get(role).or_else(|| self.config.get(role));
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let token = Token::deserialize(value);
        let token = token.map_err(|error| folder.error(format!("{role}: {error}")))?;
        let token = token.added(true);
        let known = added.iter().find(|other| other.content == token.content);
        Ok(Some(known.cloned().unwrap_or(token)))
    }
}

/// Access to the folder.
struct Folder<'a> {
    folder: &'a str,
    read: &'a dyn Fn(&str) -> Result<Option<String>>,
}

impl Folder<'_> {
    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Tokenizer {
            folder: self.folder.to_owned(),
            reason: reason.into(),
        }
    }

    fn required(&self, name: &str) -> Result<String> {
        let text = (self.read)(name)?;
        text.ok_or_else(|| self.error(format!("no tokenizer.json, and no {name}")))
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let text = (self.read)(name)?;
        text.map(|text| self.parse(name, &text)).transpose()
    }

    fn parse<T: DeserializeOwned>(&self, name: &str, text: &str) -> Result<T> {
        serde_json::from_str(text).map_err(|error| self.error(format!("{name}: {error}")))
    }
}

/// `tokenizer_config.json`; for CLIP transformers ignores the keys that are not read here.
#[derive(Default, Deserialize)]
struct Config {
    model_max_length: Option<f64>,
    added_tokens_decoder: Option<BTreeMap<String, Token>>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// `tokenizer.json`, of which transformers takes the vocabulary and builds the rest anew.
#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<ListedToken>,
}

#[derive(Deserialize)]
struct Model {
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
struct ListedToken {
    id: u32,
    #[serde(flatten)]
    token: Token,
}

/// A merge rule, in the old and the new spelling.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

impl Merge {
    fn pair(self) -> Option<(String, String)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => {
                let (left, right) = line.split_once(' ')?;
                (!right.contains(' ')).then(|| (left.to_owned(), right.to_owned()))
            }
        }
    }
}

/// An added token: its text alone, or with flags.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Flags {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        #[serde(default)]
        special: bool,
    },
}

impl Token {
    /// `has_role`: the token is special whatever its flag says.
    fn added(self, has_role: bool) -> AddedToken {
        match self {
            Self::Text(content) => AddedToken::from(content, true),
            Self::Flags {
                content,
                single_word,
                lstrip,
                rstrip,
                normalized,
                special,
            } => {
                let special = special || has_role;
                AddedToken::from(content, special)
                    .single_word(single_word)
                    .lstrip(lstrip)
                    .rstrip(rstrip)
                    .normalized(normalized.unwrap_or(!special))
            }
        }
    }
}
