//! Texts to token ids.
