//! Prompts as people write them: their syntax, and the token ids and weights that text encoders get of them.
//!
//! Nothing here has tensors. A prompt goes through these steps:
//!
//! 1. [`PromptSyntax::prompt`] or [`PromptSyntax::negative_prompt`], once for each request: tags of LoRAs are taken out,
//!    and what sdshard does not follow is an error.
//! 2. [`PromptTokenizer::encode`], once for each text encoder: chunks of ids with their weights. Names of textual
//!    inversions become ids of their vectors.
//! 3. [`emphasize`]: the weights are multiplied into the features of the text encoder.

pub mod a1111;
mod chunks;
mod emphasis;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::{
    a1111::{LoraTag, Prompt},
    chunks::{Chunk, PromptTokenizer, TokenizedPrompt},
    emphasis::{Emphasis, emphasize},
};
use crate::error::{Error, Result};

/// How prompts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// As text, as in diffusers: brackets are tokens, and what is longer than the text encoder's input is cut off.
    #[default]
    Plain,
    /// With the syntax of AUTOMATIC1111's web UI: weights, chunks, `BREAK`, escapes and tags of LoRAs.
    A1111,
}

impl PromptSyntax {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::A1111 => "a1111",
        }
    }

    /// Reads a prompt: its text without tags, and the LoRAs of the tags.
    ///
    /// # Errors
    /// If it has syntax that is invalid or that sdshard does not follow. Plain text has none.
    pub fn prompt(self, prompt: &str) -> Result<Prompt> {
        match self {
            Self::Plain => Ok(Prompt { text: prompt.to_owned(), loras: Vec::new() }),
            Self::A1111 => a1111::prompt(prompt),
        }
    }

    /// Checks a negative prompt, which web UIs encode as it is: tags and `AND` are text in it.
    ///
    /// # Errors
    /// As [`PromptSyntax::prompt`].
    pub fn negative_prompt(self, prompt: &str) -> Result<()> {
        match self {
            Self::Plain => Ok(()),
            Self::A1111 => a1111::check(prompt),
        }
    }
}

impl FromStr for PromptSyntax {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "plain" => Ok(Self::Plain),
            "a1111" => Ok(Self::A1111),
            _ => Err(Error::input("not a syntax of prompts")
                .found(format!("{name:?}"))
                .hint("\"plain\" (text, as in diffusers) or \"a1111\" (weights, BREAK and LoRAs, as in web UIs)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_has_a_name() {
        for name in ["plain", "a1111"] {
            assert_eq!(name.parse::<PromptSyntax>().unwrap().name(), name);
        }
        let error = "comfy".parse::<PromptSyntax>().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("found: \"comfy\""), "{error}");
    }

    #[test]
    fn plain_text_has_no_syntax() {
        for text in ["(a:1.3.1)", "[a|b]", "a AND b", "<lora:../x:1>", "<hypernet:x>", ""] {
            let read = PromptSyntax::Plain.prompt(text).unwrap();
            assert_eq!((read.text.as_str(), read.loras.len()), (text, 0));
            PromptSyntax::Plain.negative_prompt(text).unwrap();
        }
    }
}
