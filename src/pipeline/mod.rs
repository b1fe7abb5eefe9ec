//! One picture, from text to pixels.

pub mod image;
pub mod latents;
pub mod metadata;
pub mod output;
pub mod request;

pub use image::Image;
pub use metadata::Metadata;
