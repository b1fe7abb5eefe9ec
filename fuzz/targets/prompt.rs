//! A prompt: any text becomes the ids that the built-in model's text encoder wants.
#![no_main]

use std::{path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use sdshard::{tokenizer::Tokenizer, weights::ModelFiles};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji");
    let files = ModelFiles::folder(folder).expect("the model is part of the repository");
    Tokenizer::load(&files, "tokenizer", 32).expect("the model's tokenizer is good")
});

fuzz_target!(|text: &str| {
    let encoded = TOKENIZER.encode(text).expect("every text can be encoded");
    assert_eq!(encoded.ids.len(), TOKENIZER.max_length());
    assert!(encoded.ids.iter().all(|&id| id <= TOKENIZER.largest_id()));
    assert!(encoded.truncated.is_none_or(|end| !end.is_empty() && text.ends_with(&end)));
});
