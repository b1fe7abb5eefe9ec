//! Converts texts to token ids: CLIP's byte-pair encoding, implemented with a library.

mod files;

use std::{
    borrow::Cow,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

pub use files::paths;
use tokenizers::{
    AddedToken, Tokenizer as Library,
    models::bpe::BPE,
    normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior,
};

use self::files::Contents;
use crate::{
    error::{Error, Result},
    weights::ModelFiles,
};

/// The pattern that splits a text before bytes are merged: special tokens, contractions, words, single digits, other
/// signs.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The largest number of bytes of a text that are used: tokens have at most a few dozen bytes, and a text has some 75
/// tokens.
const LONGEST_TEXT: usize = 1 << 16;

/// A text in the form of the text encoder's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The start token, the text's tokens, the end token, then padding: always `max_length` ids.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, as it was written, but with tokens of several vectors written out.
    pub truncated: Option<String>,
}

/// The tokenizer of one model.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    bpe: Library,
    max_length: usize,
    begin: u32,
    end: u32,
    pad: u32,
    largest_id: u32,
    /// For the id of a token that has several vectors: its text, and the texts of all its vectors.
    vectors: HashMap<u32, (String, String)>,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder` of the model as transformers' `CLIPTokenizer` does: vocabulary and merges from
    /// `tokenizer.json`, or else from `vocab.json` and `merges.txt`; added tokens from `tokenizer_config.json`, or else
    /// from `tokenizer.json`, `added_tokens.json` and `special_tokens_map.json`. Texts get `max_length` ids.
    ///
    /// Fails if a file is missing or invalid.
    pub fn load(files: &ModelFiles, folder: &str, max_length: usize) -> Result<Self> {
        let contents = Contents::read(files, folder)?;
        let doing = |error: Error| error.context(format!("the tokenizer in {}", files.path_of(folder)));
        guarded(|| Self::new(contents, max_length).map_err(doing))
            .unwrap_or_else(|| Err(doing(Error::input("the tokenizer library cannot follow these files"))))
    }

    fn new(contents: Contents, max_length: usize) -> Result<Self> {
        if max_length < 2 {
            return Err(
                Error::input("a text needs room for its begin and end").found(format!("{max_length} positions"))
            );
        }
        let Contents { vocab, merges, added, begin, end, pad, unknown, splits_special } = contents;
        if vocab.is_empty() {
            return Err(Error::input("the vocabulary is empty"));
        }
        let doing = |error| Error::input("vocabulary, merges and added tokens do not fit together").source(error);
        let mut largest_id = vocab.iter().map(|(_, id)| *id).max().unwrap_or(0);
        let library = clip(vocab, merges, unknown).and_then(|mut library| {
            library.add_tokens(added)?;
            library.set_encode_special_tokens(splits_special);
            Ok(library)
        });
        let library = library.map_err(doing)?;
        let added = library.get_added_tokens_decoder();
        largest_id = added.keys().copied().max().map_or(largest_id, |id| id.max(largest_id));
        let id = |token: &String| library.token_to_id(token).expect("tokens with a role are among the added ones");
        let (begin, end, pad) = (id(&begin), id(&end), id(&pad));
        let vectors = tokens_of_several_vectors(&library);
        Ok(Self { bpe: library, max_length, begin, end, pad, largest_id, vectors })
    }

    /// The same tokenizer with these tokens after all others: their ids follow [`Tokenizer::largest_id`]. As
    /// transformers' `add_tokens`: a token is found anywhere in a text, in any case of letters. With `cat_1` beside
    /// `cat`, `cat` stands for both.
    ///
    /// # Errors
    /// If a token is empty, too long or known already, or if there are too many.
    pub fn with_tokens(&self, tokens: &[String]) -> Result<Self> {
        files::check_added(tokens.iter().map(String::as_str))?;
        let mut new = self.clone();
        for token in tokens {
            let known = |what| Error::input(what).found(format!("{token:?}"));
            if self.id_of(token).is_some() {
                return Err(known("the tokenizer has this token already").hint("another name for it"));
            }
            let added = new.bpe.add_tokens([AddedToken::from(token.as_str(), false)]);
            new.largest_id += 1;
            if !added.is_ok_and(|count| count == 1) || new.id_of(token) != Some(new.largest_id) {
                return Err(known("this token cannot be added to the tokenizer"));
            }
        }
        new.vectors = tokens_of_several_vectors(&new.bpe);
        Ok(new)
    }

    /// The number of ids of a text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The largest id that a text can have: the embedding of the text encoder must have a row for it.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// The id of the start token.
    pub fn begin(&self) -> u32 {
        self.begin
    }

    /// The id of the end token.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The id of padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The id of a token as it is in the vocabulary, such as `,</w>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.bpe.token_to_id(token)
    }

    /// The tokens of the first 64 KiB of a text, without start, end and padding, however many there are.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokens(split(text).0)?.get_ids().to_vec())
    }

    /// Encodes the first 64 KiB of a text. If it has too many tokens, its end is cut off and replaced by the end token.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let text = &*self.with_all_vectors(text)?;
        let (looked_at, rest) = split(text);
        let encoding = self.tokens(looked_at)?;
        let room = self.max_length - 2;
        let tokens = encoding.get_ids();
        let kept = tokens.len().min(room);
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.begin);
        ids.extend_from_slice(&tokens[..kept]);
        ids.push(self.end);
        ids.resize(self.max_length, self.pad);
        // Offsets count bytes of the text before normalisation.
        let cut = encoding.get_offsets().get(kept).map(|&(start, _)| start);
        let cut = cut.or_else(|| (!rest.is_empty()).then_some(looked_at.len()));
        let truncated = cut.map(|start| text[text.floor_char_boundary(start)..].to_owned());
        Ok(Encoded { ids, truncated })
    }

    /// The text with every token that has several vectors expanded: `<cat-toy>` becomes `<cat-toy> <cat-toy>_1` if
    /// there is a token with that name, as in diffusers' `TextualInversionLoaderMixin.maybe_convert_prompt`.
    fn with_all_vectors<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        if self.vectors.is_empty() {
            return Ok(Cow::Borrowed(text));
        }
        let mut replaced = Cow::Borrowed(text);
        let mut seen = Vec::new();
        let encoding = self.tokens(split(text).0)?;
        for (id, found) in encoding.get_ids().iter().zip(encoding.get_tokens()) {
            // The token as it was found is in small letters, so that the reference never expands one with capitals.
            if let Some((token, vectors)) = self.vectors.get(id)
                && token == found
                && !seen.contains(id)
            {
                seen.push(*id);
                replaced = Cow::Owned(replace(&replaced, token, vectors));
            }
        }
        Ok(replaced)
    }

    fn tokens(&self, text: &str) -> Result<tokenizers::Encoding> {
        let doing = || Error::request("turning the prompt into tokens");
        guarded(|| self.bpe.encode(text, false).map_err(|error| doing().source(error)))
            .unwrap_or_else(|| Err(doing().found("a prompt that the tokenizer library cannot follow")))
    }
}

/// For the id of each added token that has several vectors: its text, and the texts of all its vectors.
fn tokens_of_several_vectors(library: &Library) -> HashMap<u32, (String, String)> {
    let added = library.get_added_tokens_decoder();
    let ids: HashMap<&str, u32> = added.iter().map(|(id, token)| (token.content.as_str(), *id)).collect();
    let vectors = ids.iter().filter_map(|(token, id)| {
        let more = (1..).map(|i| format!("{token}_{i}")).take_while(|next| ids.contains_key(next.as_str()));
        let more: String = more.map(|next| format!(" {next}")).collect();
        (!more.is_empty()).then(|| (*id, ((*token).to_owned(), format!("{token}{more}"))))
    });
    vectors.collect()
}

/// Splits a text into the part that is used and the rest.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.floor_char_boundary(LONGEST_TEXT))
}

/// Replaces each `old` in the used part of `text` by `new`.
fn replace(text: &str, old: &str, new: &str) -> String {
    let mut replaced = String::new();
    let mut from = 0;
    for (at, _) in text.match_indices(old) {
        if replaced.len() > LONGEST_TEXT {
            break;
        }
        replaced += &text[from..at];
        replaced += new;
        from = at + old.len();
    }
    replaced + &text[from..]
}

/// The result of a call of the library; `None` if it panics, as it does for some invalid files.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    // A panic leaves nothing behind: the unfinished value is dropped.
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// CLIP's tokenizer without added tokens, as transformers' `CLIPTokenizer` builds it.
fn clip(vocab: Vec<(String, u32)>, merges: Vec<(String, String)>, unknown: String) -> tokenizers::Result<Library> {
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .unk_token(unknown)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .build()?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    let mut library = Library::new(bpe);
    library.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    library.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        words.into(),
        ByteLevel::default().add_prefix_space(false).into(),
    ])));
    Ok(library)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::weights::files::EmbeddedFile;

    fn emoji() -> Tokenizer {
        let files = ModelFiles::folder(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji")).unwrap();
        Tokenizer::load(&files, "tokenizer", 32).unwrap()
    }

    /// Files in `tokenizer/` of an embedded model.
    pub(crate) fn files(list: &[(&str, String)]) -> ModelFiles {
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
        // Letters outside the vocabulary become unknown tokens, one each.
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
        let end = r#"{"content": "<|endoftext|>", "normalized": true}"#;
        let any_case = small(&format!(r#"{{"eos_token": {end}, "unk_token": {end}, "pad_token": "!"}}"#), 7).unwrap();
        assert_eq!(any_case.encode("cat<|EndOfText|>cat").unwrap().ids, [8, 7, 9, 7, 9, 0, 0]);
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
    fn steps_of_a_file_that_grow_or_search_without_end_are_not_taken() {
        let plain = small("{}", 7).unwrap();
        let grows = r#"{"type": "Replace", "pattern": {"String": "c"}, "content": "cccccccccccccccc"}"#;
        let steps = vec![grows; 30].join(", ");
        for step in [
            format!(r#""normalizer": {{"type": "Sequence", "normalizers": [{steps}]}}"#),
            r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}"#.to_owned(),
            r#""pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?<=(c*)*)t"}, "behavior": "Removed"}"#
                .to_owned(),
            r#""pre_tokenizer": {"type": "FixedLength", "length": 0}"#.to_owned(),
            format!(r#""normalizer": {}1{}"#, "[".repeat(100), "]".repeat(100)),
        ] {
            let merges = r#"[["a", "t</w>"], "c at</w>"]"#;
            let file = format!(r#"{{"model": {{"vocab": {}, "merges": {merges}}}, {step}}}"#, small_vocab());
            let tokenizer = Tokenizer::load(&files(&[("tokenizer.json", file)]), "tokenizer", 7).unwrap();
            assert_eq!(tokenizer.encode("Cat cc!").unwrap(), plain.encode("Cat cc!").unwrap(), "{step}");
        }
    }

    #[test]
    fn the_size_of_files_and_lists_is_limited() {
        let load = |list: &[(&str, String)]| Tokenizer::load(&files(list), "tokenizer", 8).unwrap_err().to_string();
        let merges = vec![r#"["",""]"#; (1 << 18) + 1].join(",");
        let whole = format!(r#"{{"model": {{"vocab": {}, "merges": [{merges}]}}}}"#, small_vocab());
        assert!(load(&[("tokenizer.json", whole)]).contains("262144 merges at most are read"));
        let vocab: Vec<String> = (0..=1 << 18).map(|i| format!("\"{i}\":0")).collect();
        let vocab = format!("{{{}}}", vocab.join(","));
        assert!(
            load(&[("vocab.json", vocab), ("merges.txt", String::new())]).contains("262144 tokens at most are read")
        );
        let long = format!("{}{}", small_vocab(), " ".repeat(8 << 20));
        assert!(load(&[("vocab.json", long), ("merges.txt", String::new())]).contains("too long for a text file"));
        let added: Vec<String> = (0..=1 << 14).map(|i| format!("\"<{i}>\":{i}")).collect();
        let list = [
            ("vocab.json", small_vocab()),
            ("merges.txt", String::new()),
            ("added_tokens.json", format!("{{{}}}", added.join(","))),
        ];
        assert!(load(&list).contains("16384 tokens at most can be added"));
        let list = [("vocab.json", small_vocab()), ("merges.txt", String::new())];
        let token = format!("{{\"{}\": 10}}", "<".repeat(257));
        let list = [&list[..], &[("added_tokens.json", token)]].concat();
        assert!(load(&list).contains("an added token has 1 to 256 bytes"));
    }

    #[test]
    fn a_word_of_many_vectors_that_comes_often_does_not_grow_without_end() {
        let added: Vec<String> = (0..1000).map(|i| format!("\"<c>_{i}\": {}", 11 + i)).collect();
        let list = [
            ("vocab.json", small_vocab()),
            ("merges.txt", String::new()),
            ("added_tokens.json", format!("{{\"<c>\": 10, {}}}", added.join(","))),
        ];
        let tokenizer = Tokenizer::load(&files(&list), "tokenizer", 8).unwrap();
        let text = "<c>".repeat(20_000);
        let written_out = tokenizer.with_all_vectors(&text).unwrap();
        assert!(written_out.starts_with("<c> <c>_1 <c>_2 ") && written_out.len() < 3 * LONGEST_TEXT);
        assert_eq!(tokenizer.encode(&text).unwrap().ids, [8, 10, 12, 13, 14, 15, 16, 9]);
    }

    #[test]
    fn tokens_can_be_added_to_a_tokenizer() {
        let tokens = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let tokenizer = small("{}", 8).unwrap();
        let more = tokenizer.with_tokens(&tokens(&["<c>", "<c>_1", "new"])).unwrap();
        assert_eq!((tokenizer.largest_id(), more.largest_id()), (9, 12));
        assert_eq!(more.encode("Cat<C>new").unwrap().ids, [8, 7, 10, 12, 9, 9, 9, 9]);
        assert_eq!(more.encode("cat <c>!").unwrap().ids, [8, 7, 10, 11, 5, 9, 9, 9]);
        assert_eq!(more.with_tokens(&tokens(&["<c>_2"])).unwrap().encode("<c>").unwrap().ids[..5], [8, 10, 11, 13, 9]);
        assert_eq!(tokenizer.ids("cat cat cat cat cat cat cat cat").unwrap(), [7; 8]);
        for (list, says) in [
            (&["cat</w>"][..], "has this token already\n  found: \"cat</w>\""),
            (&["a", "<|endoftext|>"], "found: \"a\""),
            (&["x", "x"], "cannot be added"),
            (&[""], "an added token has 1 to 256 bytes"),
            (&[&*"x".repeat(257)], "found: 257 bytes"),
        ] {
            let error = tokenizer.with_tokens(&tokens(list)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
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
            (&[("vocab.json", r#"{"a": 4294967296}"#), ("merges.txt", "")], "the id of `a`: 4294967296 is not an id"),
            (&[("vocab.json", r#"{"a": -1}"#), ("merges.txt", "")], "the id of `a`: invalid value: integer `-1`"),
            (&[("vocab.json", r#"{"a": 1, "a": 2}"#), ("merges.txt", "")], "`a` comes twice"),
            (&[("vocab.json", r#"{"a": "b"}"#), ("merges.txt", "")], "the id of `a`: invalid type: string"),
            (&[("vocab.json", "1"), ("merges.txt", "")], "an object of tokens and their ids"),
            (&[("vocab.json", "{}"), ("merges.txt", "")], "the vocabulary is empty"),
            (&[("tokenizer.json", "[1]")], "this is not a tokenizer"),
            (&[("tokenizer.json", "{}")], "missing field `model`"),
            (&[("tokenizer.json", r#"{"model": {"type": "BPE"}}"#)], "missing field `vocab`"),
            (&[("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {}}}"#)], "`model.merges` must be a list"),
            (
                &[("tokenizer.json", r#"{"model": {"type": "Unigram", "vocab": [["a", -1.5]]}}"#)],
                "`model.type` must be \"BPE\", as CLIP's is",
            ),
            (
                &[("tokenizer.json", r#"{"model": {"vocab": {}, "merges": []}, "padding": {"direction": "Left"}}"#)],
                "`padding.direction` must be \"Right\"",
            ),
            (&[("tokenizer.json", r#"{"model": {"vocab": {}, "merges": [["a"]]}}"#)], "a merge: two tokens"),
            (&[("tokenizer.json", r#"{"model": {"vocab": {}, "merges": ["a b"]}}"#)], "found: \"a b\""),
            (&[("tokenizer_config.json", r#"{"padding_side": "left"}"#)], "`padding_side` must be \"right\""),
            (&[("tokenizer_config.json", r#"{"fast_tokenizer_files": ["tokenizer.4.0.json"]}"#)], "no other file"),
            (&[("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#)], "token ids"),
            (&[("added_tokens.json", r#"{"y": 1.5}"#)], "`y` must be a token's id"),
            (&[("special_tokens_map.json", r#"{"pad_token": 3}"#)], "`pad_token` must be a token"),
            (&[("tokenizer_config.json", r#"{"bos_token": ""}"#)], "`bos_token` must be a token"),
        ] {
            let error = load(list);
            assert!(error.contains(words), "{error:?} lacks {words:?}");
        }
        let whole = r#"{"model": {"type": "BPE", "vocab": {"<|startoftext|>": 0, "<|endoftext|>": 4294967295},
                        "merges": []}}"#;
        assert!(load(&[("tokenizer.json", whole)]).contains("the id of `<|endoftext|>`: 4294967295 is not an id"));
        assert!(small("{}", 1).unwrap_err().to_string().contains("found: 1 positions"));
    }
}
