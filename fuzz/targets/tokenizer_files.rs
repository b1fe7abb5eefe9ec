//! The files of a tokenizer: any texts are a tokenizer that encodes, or a message.
//!
//! Parts of the input: tokenizer.json, vocab.json, merges.txt, special_tokens_map.json, tokenizer_config.json, a prompt,
//! added_tokens.json.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::tokenizer::Tokenizer;
use sdshard_fuzz::{let_the_tokenizer_library_panic, parts, refused, with_model};

const PATHS: [&str; 5] = [
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
];

fuzz_target!(|input: &[u8]| {
    let_the_tokenizer_library_panic();
    let parts: [_; 7] = parts(input);
    let mut files: Vec<_> = PATHS.into_iter().zip(parts).filter_map(|(path, text)| Some((path, text?))).collect();
    files.extend(parts[6].map(|text| ("tokenizer/added_tokens.json", text)));
    let prompt = String::from_utf8_lossy(parts[5].unwrap_or(b"a cat"));
    // A token of several vectors, `<new>` and `<new>_1`, is written out before the text is cut.
    let has_vectors = input.windows(2).any(|pair| pair == b"_1" || pair == b"\\u");
    with_model(&files, |model| match Tokenizer::load(model, "tokenizer", 9) {
        Ok(tokenizer) => {
            for text in [&prompt, "", "A  \u{130}<|endoftext|>!"] {
                let Ok(encoded) = tokenizer.encode(text) else { continue };
                assert_eq!(encoded.ids.len(), 9);
                assert!(encoded.ids.iter().all(|&id| id <= tokenizer.largest_id()));
                assert!(encoded.truncated.is_none_or(|end| has_vectors || text.ends_with(&end)));
            }
        }
        Err(error) => refused(&error),
    });
});
