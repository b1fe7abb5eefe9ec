//! Texts to token ids: CLIP's byte-pair encoding, over a library.

use std::panic::{AssertUnwindSafe, catch_unwind};

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
const LARGEST_ID: u64 = (1 << 20) - 1;
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
    bpe: Library,
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
        let vocab = format!("{folder}/vocab.json");
        let is_whole = files.exists(&whole);
        let file = files.path_of(if is_whole { &whole } else { &vocab });
        guarded(|| {
            let library = match is_whole {
                true => read_whole(files, &whole)?,
                false => build(files, &vocab, &format!("{folder}/merges.txt"), &special)?,
            };
            Self::new(library, &special, max_length).map_err(|error| error.context(&file))
        })
        .unwrap_or_else(|| Err(Error::input(format!("{file}: the tokenizer library cannot follow this file"))))
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
        let id = |token: &AddedToken| vocab[&token.content];
        let (begin, end, pad) = (id(&special.begin), id(&special.end), id(&special.pad));
        let largest_id = vocab.into_values().max().unwrap_or(0);
        Ok(Self { bpe: library, max_length, begin, end, pad, largest_id })
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
        let encoding = guarded(|| self.bpe.encode(looked_at, false).map_err(doing)).unwrap_or_else(|| {
            Err(Error::request("turning the prompt into tokens: the tokenizer library cannot follow this prompt"))
        })?;
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

/// What a call of the library gives; `None` if it panics, as it does over some files that it should refuse.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    // What the call had half made is dropped with it.
    catch_unwind(AssertUnwindSafe(call)).ok()
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

/// What CLIP's files do to a text before it is split, and how they split it. The library knows more kinds of steps, and
/// some of them panic on a file that is not as they expect.
const STEPS: [(&str, &str, &[&str]); 2] = [
    ("normalizer", "normalizers", &["Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Replace"]),
    ("pre_tokenizer", "pretokenizers", &["ByteLevel", "Split"]),
];

/// Reads a `tokenizer.json`. Padding, truncation and special tokens are ours to do.
fn read_whole(files: &ModelFiles, path: &str) -> Result<Library> {
    let name = files.path_of(path);
    let file = Object::parse(&files.text(path)?, name.clone())?;
    let model = file.get("model").and_then(Value::as_object);
    let prefix = model.and_then(|model| model.get("continuing_subword_prefix")).and_then(Value::as_str);
    let kind = model.and_then(|model| model.get("type")?.as_str());
    if kind != Some("BPE") || prefix.is_some_and(|prefix| !prefix.is_empty()) {
        return Err(file.refuse("model", "of type \"BPE\" without a prefix for continued words, as CLIP's is"));
    }
    if model.and_then(|model| model.get("dropout")).is_some_and(|dropout| !dropout.is_null()) {
        return Err(file.refuse("model", "without dropout: equal texts must give equal tokens"));
    }
    for (key, list, kinds) in STEPS {
        if file.get(key).is_some_and(|step| !is_known(step, list, kinds)) {
            return Err(file.refuse(key, &format!("made of the types {}", kinds.join(", "))));
        }
    }
    // The library counts on from the largest id, and takes it on trust.
    let vocab = model.and_then(|model| model.get("vocab")?.as_object()).into_iter().flatten();
    let added = file.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let added = added.map(|token| (token["content"].as_str().unwrap_or("added_tokens"), &token["id"]));
    for (token, id) in vocab.map(|(token, id)| (token.as_str(), id)).chain(added) {
        if !is_id(id) {
            let what = format!("{name}: the id of `{token}` must be a whole number, {LARGEST_ID} at most");
            return Err(Error::input(what).found(id.to_string()));
        }
    }
    let ours = ["padding", "truncation", "post_processor", "decoder"];
    let text = ours.into_iter().fold(file, |file, key| file.with(key, Value::Null)).to_value().to_string();
    Library::from_bytes(text).map_err(|error| Error::input(format!("{name}: this is not a tokenizer")).source(error))
}

/// Whether `step` is of one of these kinds, or a sequence of such, which has them under `list`.
fn is_known(step: &Value, list: &str, kinds: &[&str]) -> bool {
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => step
            .get(list)
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().all(|step| is_known(step, list, kinds))),
        kind => kind.is_some_and(|kind| kinds.contains(&kind)),
    }
}

fn is_id(value: &Value) -> bool {
    value.as_u64().is_some_and(|id| id <= LARGEST_ID)
}

/// Makes of a vocabulary and its merges what transformers makes of them.
fn build(files: &ModelFiles, vocab: &str, merges: &str, special: &SpecialTokens) -> Result<Library> {
    let object = Object::parse(&files.text(vocab)?, files.path_of(vocab))?;
    for token in object.keys() {
        if !object.get(token).is_some_and(is_id) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::files::EmbeddedFile;

    fn emoji() -> Tokenizer {
        let files = ModelFiles::folder(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji")).unwrap();
        Tokenizer::load(&files, "tokenizer", 32).unwrap()
    }

    /// Files in `tokenizer/` of an embedded model.
    fn files(list: &[(&str, String)]) -> ModelFiles {
        let leak = |text: String| -> &'static str { text.leak() };
        let list: Vec<EmbeddedFile> = list
            .iter()
            .map(|(name, text)| (leak(format!("tokenizer/{name}")), leak(text.clone()).as_bytes()))
            .collect();
        ModelFiles::embedded("m", list.leak())
    }

    /// Ten tokens over the letters of "cat" and the sign "!".
    fn small_vocab() -> String {
        let tokens = ["!", "c", "a", "t", "t</w>", "!</w>", "at</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>"];
        let entries: Vec<String> = tokens.iter().enumerate().map(|(id, token)| format!("\"{token}\": {id}")).collect();
        format!("{{{}}}", entries.join(", "))
    }

    fn small(special: &str, length: usize) -> Result<Tokenizer> {
        let merges = "#version: 0.2\na t</w>\nc at</w>\n".to_owned();
        let list =
            [("vocab.json", small_vocab()), ("merges.txt", merges), ("special_tokens_map.json", special.to_owned())];
        Tokenizer::load(&files(&list), "tokenizer", length)
    }

    #[test]
    fn a_file_that_the_library_cannot_follow_is_refused() {
        let emoji = concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji/tokenizer/tokenizer.json");
        let text = std::fs::read_to_string(emoji).unwrap();
        let broken = text.replacen(r"\\s+", r"\\s*", 1);
        assert_ne!(text, broken);
        let refused = Tokenizer::load(&files(&[("tokenizer.json", broken)]), "tokenizer", 32);
        match refused {
            Err(error) => assert!(error.to_string().contains("tokenizer/tokenizer.json"), "{error}"),
            Ok(tokenizer) => assert!(tokenizer.encode("a dog").is_err()),
        }
    }

    #[test]
    fn a_text_stands_between_begin_and_end_and_is_padded() {
        let tokenizer = emoji();
        let encoded = tokenizer.encode("a dog").unwrap();
        assert_eq!(encoded.ids.len(), tokenizer.max_length());
        assert_eq!((encoded.ids[0], encoded.truncated), (3503, None));
        assert_eq!(encoded.ids, tokenizer.encode("  A\n\tDOG ").unwrap().ids);
        assert_eq!(tokenizer.encode("").unwrap().ids, [vec![3503], vec![3504; 31]].concat());
        assert_eq!(tokenizer.largest_id(), 3504);
    }

    #[test]
    fn the_same_files_in_both_forms_give_the_same_ids() {
        let read =
            |name| std::fs::read_to_string(format!("{}/models/emoji/tokenizer/{name}", env!("CARGO_MANIFEST_DIR")));
        let names = ["vocab.json", "merges.txt", "special_tokens_map.json"];
        let built = Tokenizer::load(&files(&names.map(|name| (name, read(name).unwrap()))), "tokenizer", 32).unwrap();
        for text in ["a red fox, 4k", "it's WE'RE", "naïve e\u{301}", "😀 一只猫", "<|endoftext|>!", "x_y\u{3000}z"]
        {
            assert_eq!(built.encode(text).unwrap(), emoji().encode(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn builds_the_fast_form_from_vocabulary_and_merges() {
        let tokenizer = small("{}", 6).unwrap();
        assert_eq!(tokenizer.encode("Cat !cat").unwrap().ids, [8, 7, 5, 7, 9, 9]);
        // Letters that the vocabulary lacks are unknown, one by one.
        assert_eq!(tokenizer.encode("dd").unwrap().ids, [8, 9, 9, 9, 9, 9]);
    }

    #[test]
    fn a_long_text_loses_its_end_but_not_the_end_token() {
        let tokenizer = small("{}", 4).unwrap();
        let encoded = tokenizer.encode("cat cat").unwrap();
        assert_eq!((encoded.ids, encoded.truncated), (vec![8, 7, 7, 9], None));
        let encoded = tokenizer.encode("cat  CAT\u{3000}Cat !").unwrap();
        assert_eq!((encoded.ids, encoded.truncated.as_deref()), (vec![8, 7, 7, 9], Some("Cat !")));
        let long = "é".repeat(LONGEST_TEXT);
        assert!(long.ends_with(&tokenizer.encode(&long).unwrap().truncated.unwrap()));
        let blank = tokenizer.encode(&" ".repeat(LONGEST_TEXT + 3)).unwrap();
        assert_eq!((blank.ids, blank.truncated.as_deref()), (vec![8, 9, 9, 9], Some("   ")));
    }

    #[test]
    fn padding_is_the_models_and_a_typed_special_token_is_that_token() {
        let bang = small(r#"{"pad_token": "!"}"#, 7).unwrap();
        assert_eq!(bang.encode("cat!").unwrap().ids, [8, 7, 0, 9, 0, 0, 0]);
        let end =
            small(r#"{"eos_token": {"content": "<|endoftext|>", "normalized": true}, "pad_token": "!"}"#, 7).unwrap();
        assert_eq!(end.encode("cat<|EndOfText|>cat").unwrap().ids, [8, 7, 9, 7, 9, 0, 0]);
    }

    #[test]
    fn every_byte_can_be_encoded() {
        let tokenizer = emoji();
        for text in ["\0\u{1}\u{7f}", "\u{fffd}\u{10ffff}", "\u{200d}\u{202e}", "a\u{300}\u{301}\u{302}", "İ ŉ ǅ ß ẞ"]
        {
            assert!(tokenizer.encode(text).unwrap().ids.iter().all(|&id| id <= 3504));
        }
    }

    #[test]
    fn refuses_files_that_are_no_tokenizer() {
        let vocab = small_vocab();
        let load = |list: &[(&str, &str)]| {
            let list: Vec<_> = list.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
            Tokenizer::load(&files(&list), "tokenizer", 8).unwrap_err().to_string()
        };
        for (list, words) in [
            (&[][..], "m:tokenizer/vocab.json: the built-in model has no such file"),
            (&[("vocab.json", &*vocab)], "merges.txt: the built-in model has no such file"),
            (&[("vocab.json", &vocab), ("merges.txt", "a b")], "found: \"a b\""),
            (&[("vocab.json", &vocab), ("merges.txt", "a  t")], "merges.txt: a merge is two tokens"),
            (&[("vocab.json", &vocab), ("merges.txt", "at")], "merges.txt: a merge is two tokens"),
            (&[("vocab.json", r#"{"a": 4294967296}"#), ("merges.txt", "")], "`a` must be a token's id"),
            (&[("vocab.json", r#"{"a": -1}"#), ("merges.txt", "")], "found: -1"),
            (&[("vocab.json", r#"{"a": "b"}"#), ("merges.txt", "")], "`a` must be a token's id"),
            (&[("vocab.json", "[]"), ("merges.txt", "")], "a JSON object is wanted"),
            (&[("vocab.json", "{}"), ("merges.txt", "")], "there is no token `<|endoftext|>`"),
            (&[("tokenizer.json", "[1]")], "a JSON object is wanted"),
            (&[("tokenizer.json", "{}")], "`model` must be of type \"BPE\""),
            (&[("tokenizer.json", r#"{"model": {"type": "BPE"}}"#)], "this is not a tokenizer"),
            (
                &[("tokenizer.json", r#"{"model": {"type": "BPE", "continuing_subword_prefix": "é"}}"#)],
                "without a prefix",
            ),
            (&[("tokenizer.json", r#"{"model": {"type": "BPE", "dropout": 0.1}}"#)], "without dropout"),
            (
                &[("tokenizer.json", r#"{"model": {"type": "BPE"}, "normalizer": {"type": "Precompiled"}}"#)],
                "`normalizer` must be made of the types Lowercase",
            ),
            (
                &[(
                    "tokenizer.json",
                    r#"{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                        {"type": "ByteLevel"}, {"type": "FixedLength", "length": 0}]}}"#,
                )],
                "`pre_tokenizer` must be made of the types ByteLevel, Split",
            ),
            (&[("special_tokens_map.json", r#"{"pad_token": 3}"#)], "`pad_token` must be a token"),
            (&[("tokenizer_config.json", r#"{"bos_token": ""}"#)], "`bos_token` must be a token"),
        ] {
            let error = load(list);
            assert!(error.contains(words), "{error:?} lacks {words:?}");
        }
        let whole = r#"{"model": {"type": "BPE", "vocab": {"<|startoftext|>": 0, "<|endoftext|>": 4294967295},
                        "merges": []}}"#;
        assert!(load(&[("tokenizer.json", whole)]).contains("the id of `<|endoftext|>` must be a whole number"));
        assert!(small("{}", 1).unwrap_err().to_string().contains("found: 1 positions"));
    }
}
