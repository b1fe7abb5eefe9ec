//! Textual inversions as a user names them, and as a text encoder gets them.

use std::path::PathBuf;

/// A textual inversion that a user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingChoice {
    /// The safetensors file.
    pub path: PathBuf,
    /// Its name in prompts; `None` for that of the file: see [`Embedding::token`](super::Embedding::token) and
    /// [`Embedding::stem`](super::Embedding::stem).
    pub token: Option<String>,
}

/// Rows at the end of a text encoder's token table: the vectors of textual inversions.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTokens {
    /// The id of the first vector, which is its row. Stored rows from here on have no tokens, and are left out.
    pub first_id: usize,
    /// The vectors, `[count, width]`.
    pub vectors: Vec<f32>,
}
