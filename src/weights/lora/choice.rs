//! A LoRA as a user names it.

use std::path::PathBuf;

/// A LoRA that a user asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraChoice {
    /// The safetensors file.
    pub path: PathBuf,
    /// The strength in the UNet: 1 adds what the LoRA was trained to add.
    pub weight: f32,
    /// The strength in the text encoders.
    pub text_encoder_weight: f32,
}

impl LoraChoice {
    /// A LoRA with the same strength everywhere.
    pub fn new(path: impl Into<PathBuf>, weight: f32) -> Self {
        Self { path: path.into(), weight, text_encoder_weight: weight }
    }

    /// The name of the file without its extension.
    pub fn name(&self) -> String {
        self.path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
    }

    /// Name and strength as in the tags of web UIs: `style:0.8`, or `style:0.5:0.8` with the text encoders' before the
    /// UNet's.
    pub fn label(&self) -> String {
        format!("{}:{}", self.name(), self.strengths())
    }

    /// The strength, or that in the text encoders and that in the UNet.
    pub(super) fn strengths(&self) -> String {
        let Self { weight, text_encoder_weight, .. } = self;
        if weight == text_encoder_weight { weight.to_string() } else { format!("{text_encoder_weight}:{weight}") }
    }
}
