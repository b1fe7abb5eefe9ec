//! Texts to token ids: CLIP's byte-pair encoding, over a library.

use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer as Library};

use crate::{
    error::{Error, Result},
    json::Object,
    weights::ModelFiles,
};

/// What CLIP splits a text into before it merges bytes: special tokens, endings, words, single digits, other signs.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Token ids are read up to this one.
const LARGEST_ID: u32 = (1 << 20) - 1;
/// A text's bytes are looked at up to so many: no token is longer than a few dozen, and a text has some 75 tokens.
const LONGEST_TEXT: usize = 1 << 16;

/// A text as the text encoder wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Begin, the text's tokens, end, then padding: as many ids as the encoder has positions.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit in, as it was written.
    pub truncated: Option<String>,
}

/// The tokenizer of one model.
#[derive(Debug)]
pub struct Tokenizer {
    library: Library,
    max_length: usize,
    begin: u32,
    end: u32,
    pad: u32,
    largest_id: u32,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder` of the model: `tokenizer.json`, else `vocab.json` and `merges.txt`. Its special
    /// tokens are those of `special_tokens_map.json` and `tokenizer_config.json`. Texts get `max_length` ids, which is
    /// the text encoder's `max_position_embeddings`.
    ///
    /// Fails where a file is missing or is not what it should be.
    pub fn load(files: &ModelFiles, folder: &str, max_length: usize) -> Result<Self> {
        let special = SpecialTokens::read(files, folder)?;
        let whole = format!("{folder}/tokenizer.json");
        let (library, file) = if files.exists(&whole) {
            (read_whole(files, &whole)?, files.path_of(&whole))
        } else {
            let vocab = format!("{folder}/vocab.json");
            (build(files, &vocab, &format!("{folder}/merges.txt"), &special)?, files.path_of(&vocab))
        };
        Self::new(library, &special, max_length).map_err(|error| error.context(file))
    }

    fn new(mut library: Library, special: &SpecialTokens, max_length: usize) -> Result<Self> {
        if max_length < 2 {
            return Err(
                Error::input("a text needs room for its begin and end").found(format!("{max_length} positions"))
            );
        }
        // A special token that somebody types is that token, whatever stands around it. The file may know it already.
        for token in special.all() {
            if library.token_to_id(&token.content).is_none() {
                return Err(Error::input(format!("there is no token `{}`", token.content)));
            }
            if !library.get_added_tokens_decoder().values().any(|known| known.content == token.content) {
                library.add_special_tokens([token.clone()]).map_err(|error| {
                    Error::input(format!("the special token `{}` cannot be added", token.content)).source(error)
                })?;
            }
        }
        let vocab = library.get_vocab(true);
        if let Some((token, id)) = vocab.iter().find(|(_, id)| **id > LARGEST_ID) {
            return Err(Error::input(format!("the id of `{token}` must be at most {LARGEST_ID}")).found(id.to_string()));
        }
        let id = |token: &AddedToken| vocab[&token.content];
        let (begin, end, pad) = (id(&special.begin), id(&special.end), id(&special.pad));
        let largest_id = vocab.into_values().max().unwrap_or(0);
        Ok(Self { library, max_length, begin, end, pad, largest_id })
    }

    /// How many ids a text gets.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The largest id that a text can have: the text encoder needs a row of its embedding for it.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// The ids of a text. One that is too long loses its end, but for the end token.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let doing = |error| Error::request("turning the prompt into tokens").source(error);
        let (looked_at, rest) = text.split_at(text.floor_char_boundary(LONGEST_TEXT));
        let encoding = self.library.encode(looked_at, false).map_err(doing)?;
        let room = self.max_length - 2;
        let tokens = encoding.get_ids();
        let kept = tokens.len().min(room);
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.begin);
        ids.extend_from_slice(&tokens[..kept]);
        ids.push(self.end);
        ids.resize(self.max_length, self.pad);
        // Offsets count bytes of the text before it was normalised.
        let cut = encoding.get_offsets().get(kept).map(|&(start, _)| start);
        let cut = cut.or_else(|| (!rest.is_empty()).then_some(looked_at.len()));
        let truncated = cut.map(|start| text[text.floor_char_boundary(start)..].to_owned());
        Ok(Encoded { ids, truncated })
    }
}

/// The tokens that mean something to the model.
struct SpecialTokens {
    begin: AddedToken,
    end: AddedToken,
    unknown: AddedToken,
    pad: AddedToken,
}

impl SpecialTokens {
    /// `special_tokens_map.json` decides, then `tokenizer_config.json`, then what CLIP has.
    fn read(files: &ModelFiles, folder: &str) -> Result<Self> {
        let mut sources = Vec::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = format!("{folder}/{name}");
            if files.exists(&path) {
                sources.push(Object::parse(&files.text(&path)?, files.path_of(&path))?);
            }
        }
        let token = |key: &str, default: &str| match sources.iter().find_map(|source| Some((source, source.get(key)?)))
        {
            None => Ok(AddedToken::from(default, true)),
            Some((source, value)) => added_token(value).ok_or_else(|| source.refuse(key, "a token")),
        };
        Ok(Self {
            begin: token("bos_token", "<|startoftext|>")?,
            end: token("eos_token", "<|endoftext|>")?,
            unknown: token("unk_token", "<|endoftext|>")?,
            pad: token("pad_token", "<|endoftext|>")?,
        })
    }

    /// In the order of precedence, where two are the same text with different rules.
    fn all(&self) -> [&AddedToken; 4] {
        [&self.pad, &self.begin, &self.end, &self.unknown]
    }
}

/// A token as the files spell it: a text, or an object with the text and how it is matched.
fn added_token(value: &Value) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let token = AddedToken::from(content, true)
        .normalized(flag("normalized"))
        .single_word(flag("single_word"))
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"));
    (1..=256).contains(&content.len()).then_some(token)
}

/// Reads a `tokenizer.json`. Padding and truncation are ours to do.
fn read_whole(files: &ModelFiles, path: &str) -> Result<Library> {
    let name = files.path_of(path);
    let file = Object::parse(&files.text(path)?, name.clone())?;
    let model = file.get("model").and_then(Value::as_object);
    let prefix = model.and_then(|model| model.get("continuing_subword_prefix")).and_then(Value::as_str);
    let kind = model.and_then(|model| model.get("type")?.as_str());
    if kind != Some("BPE") || prefix.is_some_and(|prefix| !prefix.is_empty()) {
        return Err(file.refuse("model", "of type \"BPE\" without a prefix for continued words, as CLIP's is"));
    }
    let text = file.with("padding", Value::Null).with("truncation", Value::Null).to_value().to_string();
    Library::from_bytes(text).map_err(|error| Error::input(format!("{name}: this is not a tokenizer")).source(error))
}

/// Makes of a vocabulary and its merges what transformers makes of them.
fn build(files: &ModelFiles, vocab: &str, merges: &str, special: &SpecialTokens) -> Result<Library> {
    let object = Object::parse(&files.text(vocab)?, files.path_of(vocab))?;
    for token in object.keys() {
        if object.get(token).and_then(Value::as_u64).is_none_or(|id| id > LARGEST_ID.into()) {
            return Err(object.refuse(token, &format!("a token's id, {LARGEST_ID} at most")));
        }
    }
    let text = files.text(merges)?;
    let mut pairs: Vec<[&str; 2]> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()) {
        let is_token = |token: &str| object.get(token).is_some();
        let makes_token = |(first, second): &(&str, &str)| {
            is_token(first) && is_token(second) && is_token(&format!("{first}{second}"))
        };
        let Some((first, second)) = line.split_once(' ').filter(makes_token) else {
            let what = format!("{}: a merge is two tokens of the vocabulary that make a third", files.path_of(merges));
            return Err(Error::input(what).found(format!("{:?}", line.chars().take(60).collect::<String>())));
        };
        pairs.push([first, second]);
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "model": {
            "type": "BPE", "unk_token": special.unknown.content, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": object.to_value(), "merges": pairs,
        },
    });
    Library::from_bytes(tokenizer.to_string())
        .map_err(|error| Error::input(format!("{}: this is not a vocabulary", object.file())).source(error))
}
