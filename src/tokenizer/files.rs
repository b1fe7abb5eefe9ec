//! The files of a tokenizer's folder, read as transformers' `CLIPTokenizer.from_pretrained` reads them (version 5):
//! only vocabulary, merges, added tokens and a few settings are used. The steps in a `tokenizer.json` are ignored, as
//! there.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use tokenizers::AddedToken;

use crate::{
    error::{Error, Result},
    json::Object,
    weights::ModelFiles,
};

/// The largest id of a token.
const LARGEST_ID: u32 = (1 << 20) - 1;
/// The most entries of a vocabulary, and the most merges: CLIP has 49,408 and 48,894.
const MOST_TOKENS: usize = 1 << 18;
/// The largest number of tokens outside the vocabulary.
const MOST_ADDED: usize = 1 << 14;
/// The longest token, in bytes.
const LONGEST_TOKEN: usize = 256;

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// The roles of special tokens in transformers' order, with CLIP's default tokens for files that name none.
const ROLES: [(&str, &str); 7] = [
    ("bos_token", BEGIN),
    ("eos_token", END),
    ("unk_token", END),
    ("sep_token", ""),
    ("pad_token", END),
    ("cls_token", ""),
    ("mask_token", ""),
];
/// The key of special tokens that have no role.
const EXTRA: &str = "extra_special_tokens";
const EXTRA_OF_OLD: &str = "additional_special_tokens";

/// Everything that is read from a tokenizer's folder.
pub(super) struct Contents {
    pub(super) vocab: Vec<(String, u32)>,
    pub(super) merges: Vec<(String, String)>,
    /// Added tokens in the order in which those outside the vocabulary get their ids; a later one replaces an earlier
    /// one with the same text.
    pub(super) added: Vec<AddedToken>,
    pub(super) begin: String,
    pub(super) end: String,
    pub(super) pad: String,
    pub(super) unknown: String,
    /// Whether special tokens in a prompt are split like any other text.
    pub(super) splits_special: bool,
}

/// The files in `folder` that are read, in a fixed order: `tokenizer.json` replaces `vocab.json` and `merges.txt`.
pub fn paths(files: &ModelFiles, folder: &str) -> Vec<String> {
    let path = |name: &str| format!("{folder}/{name}");
    let vocabulary = match files.exists(&path("tokenizer.json")) {
        true => &["tokenizer.json"][..],
        false => &["vocab.json", "merges.txt"],
    };
    let optional = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
    let optional = optional.into_iter().map(path).filter(|path| files.exists(path));
    vocabulary.iter().map(|name| path(name)).chain(optional).collect()
}

impl Contents {
    pub(super) fn read(files: &ModelFiles, folder: &str) -> Result<Self> {
        let path = |name: &str| format!("{folder}/{name}");
        let object = |name: &str| match files.exists(&path(name)) {
            true => Object::parse(&files.text(&path(name))?, files.path_of(&path(name))).map(Some),
            false => Ok(None),
        };
        let config = object("tokenizer_config.json")?;
        let whole = match files.exists(&path("tokenizer.json")) {
            true => Some(Whole::read(files, &path("tokenizer.json"))?),
            false => None,
        };
        if let Some(config) = &config {
            let right = |key: &'static str| (key, Value::from("right"));
            config.only(&[right("padding_side"), right("truncation_side")])?;
            if config.get("fast_tokenizer_files").is_some_and(|list| *list != serde_json::json!(["tokenizer.json"])) {
                return Err(config.refuse("fast_tokenizer_files", "[\"tokenizer.json\"]: no other file is read"));
            }
        }
        let splits_special = config.as_ref().map_or(Ok(false), |config| config.flag("split_special_tokens", false))?;

        // An `added_tokens_decoder` in the config replaces all other files that may list added tokens.
        let is_listed = config.as_ref().is_some_and(|config| config.get("added_tokens_decoder").is_some());
        let map = if is_listed { None } else { object("special_tokens_map.json")? };
        let special = special_tokens(config.as_ref(), map.as_ref())?;
        let mut by_id = BTreeMap::new();
        match &config {
            Some(config) if is_listed => listed_in_config(config, &mut by_id)?,
            _ => {
                if let Some(list) = object("added_tokens.json")? {
                    // transformers handles these roles before it has read the old key of the map and other roles.
                    let is_early = |role: &str| role == EXTRA || ROLES.iter().any(|(early, _)| *early == role);
                    let early = special.iter().filter(|(role, _)| is_early(role));
                    let contents: HashSet<&str> = early.map(|(_, token)| token.content.as_str()).collect();
                    for token in list.keys() {
                        let id = list.get(token).and_then(id_of);
                        let id =
                            id.ok_or_else(|| list.refuse(token, &format!("a token's id, {LARGEST_ID} at most")))?;
                        by_id.insert(id, AddedToken::from(token, contents.contains(token)));
                    }
                }
                let listed = whole.iter().flat_map(|whole| &whole.added_tokens);
                by_id.extend(listed.map(|token| (token.id, token.flags.token(token.content.clone()))));
            }
        }
        let role = |key: &str, default: &str| {
            special.iter().find(|(role, _)| role == key).map_or(default.to_owned(), |(_, token)| token.content.clone())
        };
        let (begin, end) = (role("bos_token", BEGIN), role("eos_token", END));
        let (pad, unknown) = (role("pad_token", END), role("unk_token", END));

        // Special tokens come after the listed ones, and only if they are not listed.
        let has_role = |(role, _): &&(String, AddedToken)| role != EXTRA && role != EXTRA_OF_OLD;
        let roles: HashSet<String> = special.iter().filter(has_role).map(|(_, token)| token.content.clone()).collect();
        let mut added: Vec<AddedToken> = by_id.into_values().collect();
        added.iter_mut().filter(|token| roles.contains(&token.content)).for_each(|token| token.special = true);
        let listed: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
        added.extend(special.into_iter().map(|(_, token)| token).filter(|token| !listed.contains(&token.content)));
        check_added(added.iter().map(|token| token.content.as_str()))
            .map_err(|error| error.context(files.path_of(folder)))?;

        let (source, vocab, merges) = match whole {
            Some(Whole { model: Model { vocab, merges, .. }, .. }) => {
                let merges = merges.unwrap_or_default().into_iter().map(|Merge(first, second)| (first, second));
                (files.path_of(&path("tokenizer.json")), vocab, merges.collect())
            }
            None => {
                let vocab = read_json(files, &path("vocab.json"), "vocabulary")?;
                (files.path_of(&path("merges.txt")), vocab, merges_of(files, &path("merges.txt"))?)
            }
        };
        check_merges(&source, &vocab, &merges)?;
        Ok(Self { vocab: vocab.0, merges, added, begin, end, pad, unknown, splits_special })
    }
}

/// Fails if a token is empty or too long, or if there are too many.
pub(super) fn check_added<'t>(tokens: impl ExactSizeIterator<Item = &'t str>) -> Result<()> {
    let count = tokens.len();
    let mut sizes = tokens.map(str::len);
    if let Some(bytes) = sizes.find(|bytes| !(1..=LONGEST_TOKEN).contains(bytes)) {
        let what = format!("an added token has 1 to {LONGEST_TOKEN} bytes");
        return Err(Error::input(what).found(format!("{bytes} bytes")));
    }
    if count > MOST_ADDED {
        let what = format!("{MOST_ADDED} tokens at most can be added to a vocabulary");
        return Err(Error::input(what).found(count.to_string()));
    }
    Ok(())
}

/// Fails unless each merge makes a token of two tokens.
fn check_merges(file: &str, vocab: &Vocab, merges: &[(String, String)]) -> Result<()> {
    if merges.len() > MOST_TOKENS {
        return Err(
            Error::input(format!("{file}: {MOST_TOKENS} merges at most are read")).found(merges.len().to_string())
        );
    }
    let tokens: HashSet<&str> = vocab.0.iter().map(|(token, _)| token.as_str()).collect();
    let is_token = |token: &str| tokens.contains(token);
    match merges.iter().find(|(a, b)| !(is_token(a) && is_token(b) && is_token(&format!("{a}{b}")))) {
        None => Ok(()),
        Some((first, second)) => {
            let pair = format!("{first} {second}");
            let what = format!("{file}: a merge is two tokens of the vocabulary that make a third");
            Err(Error::input(what).found(format!("{:?}", pair.chars().take(60).collect::<String>())))
        }
    }
}

/// The pairs in the lines of a `merges.txt`.
fn merges_of(files: &ModelFiles, path: &str) -> Result<Vec<(String, String)>> {
    let text = files.text(path)?;
    let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [first, second] => Ok((first.to_owned(), second.to_owned())),
            _ => {
                let what = format!("{}: a merge is two tokens with a space between them", files.path_of(path));
                Err(Error::input(what).found(format!("{:?}", line.chars().take(60).collect::<String>())))
            }
        })
        .collect()
}

/// The special tokens with their roles, those of [`ROLES`] first. If both files name the same role, the map is used.
fn special_tokens(config: Option<&Object>, map: Option<&Object>) -> Result<Vec<(String, AddedToken)>> {
    let sources: Vec<&Object> = map.into_iter().chain(config).collect();
    let with = |key: &str| sources.iter().find_map(|source| Some((*source, source.get(key)?)));
    let mut special = Vec::new();
    for (role, default) in ROLES {
        match with(role) {
            Some((source, value)) => {
                let token = special_token(value).ok_or_else(|| source.refuse(role, "a token"))?;
                special.push((role.to_owned(), token));
            }
            None if default.is_empty() => {}
            None => special.push((role.to_owned(), AddedToken::from(default, true))),
        }
    }
    // Any other key that ends in `_token` is a role that the model defines.
    for source in config.into_iter().chain(map) {
        for key in source.keys().filter(|key| key.ends_with("_token") && !ROLES.iter().any(|(role, _)| role == key)) {
            if let Some(token) = source.get(key).and_then(special_token) {
                special.push((key.to_owned(), token));
            }
        }
    }
    let mut extra = tokens_without_role(config, EXTRA)?;
    if extra.is_empty() {
        extra = tokens_without_role(config, EXTRA_OF_OLD)?;
    }
    extra.extend(tokens_without_role(map, EXTRA)?);
    let late = if extra.is_empty() { tokens_without_role(map, EXTRA_OF_OLD)? } else { Vec::new() };
    special.extend(extra.into_iter().map(|token| (EXTRA.to_owned(), token)));
    special.extend(late.into_iter().map(|token| (EXTRA_OF_OLD.to_owned(), token)));
    Ok(special)
}

/// The special tokens that a file lists under `key`.
fn tokens_without_role(source: Option<&Object>, key: &str) -> Result<Vec<AddedToken>> {
    let Some((source, value)) = source.and_then(|source| Some((source, source.get(key)?))) else {
        return Ok(Vec::new());
    };
    let values: Option<Vec<&Value>> = match value {
        Value::Array(list) => Some(list.iter().collect()),
        Value::Object(named) => Some(named.values().collect()),
        _ => None,
    };
    let tokens = values.and_then(|values| values.into_iter().map(special_token).collect());
    tokens.ok_or_else(|| source.refuse(key, "a list of tokens"))
}

/// A special token in either form: a text, or an object with the text and its matching options.
fn special_token(value: &Value) -> Option<AddedToken> {
    let token = match value {
        Value::String(content) => AddedToken::from(content, true),
        _ => {
            let flags = Flags { special: true, ..Flags::deserialize(value).ok()? };
            flags.token(value.get("content")?.as_str()?.to_owned())
        }
    };
    (1..=LONGEST_TOKEN).contains(&token.content.len()).then_some(token)
}

/// The `added_tokens_decoder` of a `tokenizer_config.json`: tokens by their ids.
fn listed_in_config(config: &Object, by_id: &mut BTreeMap<u32, AddedToken>) -> Result<()> {
    const KEY: &str = "added_tokens_decoder";
    let wanted = "an object of token ids and tokens";
    let refuse = || config.refuse(KEY, wanted);
    let list = config.get(KEY).and_then(Value::as_object).ok_or_else(refuse)?;
    for (id, token) in list {
        let id = id.parse().ok().filter(|id| *id <= LARGEST_ID).ok_or_else(refuse)?;
        let content = token.get("content").and_then(Value::as_str).ok_or_else(refuse)?.to_owned();
        by_id.insert(id, Flags::deserialize(token).map_err(|error| refuse().source(error))?.token(content));
    }
    Ok(())
}

/// The matching options of an added token, with the library's defaults.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Flags {
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

impl Flags {
    fn token(&self, content: String) -> AddedToken {
        AddedToken::from(content, self.special)
            .normalized(self.normalized.unwrap_or(!self.special))
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
    }
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok().filter(|id| *id <= LARGEST_ID)
}

/// Reads a JSON file, with memory in proportion to the size of its text.
fn read_json<T: for<'de> Deserialize<'de>>(files: &ModelFiles, path: &str, what: &str) -> Result<T> {
    let text = files.text(path)?;
    serde_json::from_str(&text)
        .map_err(|error| Error::input(format!("{}: this is not a {what}", files.path_of(path))).source(error))
}

/// The parts of a `tokenizer.json` that are used.
#[derive(Deserialize)]
struct Whole {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Listed>,
    padding: Option<Side>,
    truncation: Option<Side>,
}

#[derive(Deserialize)]
struct Model {
    /// Old files do not have it.
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    merges: Option<Vec<Merge>>,
}

#[derive(Deserialize)]
struct Side {
    direction: Option<String>,
}

/// An added token with its id.
#[derive(Deserialize)]
struct Listed {
    #[serde(deserialize_with = "token_id")]
    id: u32,
    content: String,
    #[serde(flatten)]
    flags: Flags,
}

impl Whole {
    fn read(files: &ModelFiles, path: &str) -> Result<Self> {
        let refuse = |key: &str, wanted: &str, found: &str| {
            Err(Error::input(format!("{}: `{key}` must be {wanted}", files.path_of(path))).found(found))
        };
        let whole: Self = read_json(files, path, "tokenizer")?;
        match (whole.model.kind.as_deref(), &whole.model.merges) {
            (Some("BPE") | None, Some(_)) => {}
            (Some("BPE") | None, None) => return refuse("model.merges", "a list of pairs", "no such key"),
            (Some(kind), _) => return refuse("model.type", "\"BPE\", as CLIP's is", kind),
        }
        for (key, side) in [("padding", &whole.padding), ("truncation", &whole.truncation)] {
            match side.as_ref().and_then(|side| side.direction.as_deref()) {
                None | Some("Right" | "right") => {}
                Some(side) => return refuse(&format!("{key}.direction"), "\"Right\"", side),
            }
        }
        Ok(whole)
    }
}

/// Tokens and their ids: an object of both, or a list of tokens in the order of their ids.
struct Vocab(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;

        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Entry {
            Token(String),
            Scored(String, IgnoredAny),
        }

        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocab, A::Error> {
                let mut all = Vec::new();
                while let Some(token) = map.next_key::<String>()? {
                    let id = map.next_value::<Id>().map_err(|error| {
                        let token: String = token.chars().take(60).collect();
                        A::Error::custom(format!("the id of `{token}`: {error}"))
                    })?;
                    check_count(all.len(), MOST_TOKENS)?;
                    all.push((token, id.0));
                }
                let mut seen = HashSet::new();
                match all.iter().find(|(token, _)| !seen.insert(token)) {
                    None => Ok(Vocab(all)),
                    Some((token, _)) => Err(A::Error::custom(format!("`{token}` comes twice"))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vocab, A::Error> {
                let mut all = Vec::new();
                while let Some(Entry::Token(token) | Entry::Scored(token, _)) = list.next_element()? {
                    check_count(all.len(), MOST_TOKENS)?;
                    all.push((token, all.len() as u32));
                }
                Ok(Vocab(all))
            }
        }

        deserializer.deserialize_any(Entries)
    }
}

fn check_count<E: serde::de::Error>(count: usize, most: usize) -> std::result::Result<(), E> {
    if count < most { Ok(()) } else { Err(E::custom(format!("{most} tokens at most are read"))) }
}

struct Id(u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        token_id(deserializer).map(Self)
    }
}

fn token_id<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u32, D::Error> {
    let id = u64::deserialize(deserializer)?;
    u32::try_from(id)
        .ok()
        .filter(|id| *id <= LARGEST_ID)
        .ok_or_else(|| D::Error::custom(format!("{id} is not an id, which is {LARGEST_ID} at most")))
}

/// Two tokens, as a list or as a text with a space between them.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: two tokens, in a list or with a space between them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                match text.split(' ').collect::<Vec<_>>()[..] {
                    [first, second] => Ok(Merge(first.to_owned(), second.to_owned())),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Merge, A::Error> {
                let pair = (list.next_element()?, list.next_element()?, list.next_element::<IgnoredAny>()?);
                match pair {
                    (Some(first), Some(second), None) => Ok(Merge(first, second)),
                    _ => Err(A::Error::invalid_length(0, &self)),
                }
            }
        }

        deserializer.deserialize_any(Pair)
    }
}
