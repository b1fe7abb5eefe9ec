//! A LoRA as a user names it.

use std::path::PathBuf;

/// A LoRA that a user asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraChoice {
    /// The safetensors file.
    pub path: PathBuf,
    /// The strength: 1 adds what the LoRA was trained to add.
    pub weight: f32,
}

impl LoraChoice {
    /// The name of the file without its extension, and the weight: `style:0.8`.
    pub fn label(&self) -> String {
        let name = self.path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        format!("{name}:{}", self.weight)
    }
}
