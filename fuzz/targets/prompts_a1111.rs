//! A prompt with the syntax of web UIs: any text becomes chunks of ids that the built-in model's text encoder takes, or a
//! message.
#![no_main]

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use libfuzzer_sys::fuzz_target;
use sdshard::{
    prompt::{PromptSyntax, PromptTokenizer},
    tokenizer::Tokenizer,
    weights::ModelFiles,
};
use sdshard_fuzz::refused;

static PROMPTS: LazyLock<PromptTokenizer> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji");
    let files = ModelFiles::folder(folder).expect("the model is part of the repository");
    let tokenizer = Arc::new(Tokenizer::load(&files, "tokenizer", 32).expect("the model's tokenizer is good"));
    let embeddings = [("cat toy", 30), ("red", 3), ("a", 1)];
    PromptTokenizer::new(&tokenizer, PromptSyntax::A1111, &embeddings).expect("the embeddings are good")
});

fuzz_target!(|text: &str| {
    if let Err(error) = PromptSyntax::A1111.negative_prompt(text) {
        refused(&error);
    }
    match PromptSyntax::A1111.prompt(text) {
        Err(error) => refused(&error),
        Ok(prompt) => {
            assert!(prompt.text.len() <= text.len());
            for lora in &prompt.loras {
                assert!(!lora.name.is_empty() && !lora.name.starts_with('.') && !lora.name.contains(['/', '\\']));
                assert!(lora.unet_weight.is_finite() && lora.text_encoder_weight.is_finite());
            }
            match PROMPTS.encode(&prompt.text) {
                Err(error) => refused(&error),
                Ok(encoded) => {
                    assert!(!encoded.chunks.is_empty());
                    for chunk in encoded.chunks {
                        assert_eq!((chunk.ids.len(), chunk.weights.len()), (32, 32));
                        assert!(chunk.ids.iter().all(|id| *id < PROMPTS.first_id() + 34));
                        assert!(chunk.weights.iter().all(|weight| !weight.is_nan()));
                    }
                }
            }
        }
    }
});
