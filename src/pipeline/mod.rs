//! One picture, from text to pixels.

pub mod request;
