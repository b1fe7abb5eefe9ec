//! One picture that somebody wants, checked once.

use crate::scheduler::SchedulerKind;
pub use crate::tensor::random::Rng;

/// Where denoising starts.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// From the noise of the request's seed.
    Noise,
    /// From given starting noise, `[1, channels, height / 8, width / 8]` in that order, before the scheduler scales it.
    Latents(std::sync::Arc<[f32]>),
}

/// One picture: the text, the seed and how to draw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to draw.
    pub prompt: String,
    /// What to keep away from; used while `guidance_scale > 1`.
    pub negative_prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Denoising steps, at least 1.
    pub steps: usize,
    /// Strength of classifier-free guidance; at most 1 means none.
    pub guidance_scale: f32,
    /// The solver; `None` is the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// The generator of the noise.
    pub rng: Rng,
    /// Where denoising starts.
    pub start: Start,
}
