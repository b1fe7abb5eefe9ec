//! One picture that somebody wants, checked once.

pub use crate::tensor::random::Rng;
use crate::{
    error::{Error, Result},
    models::spec::ModelSpec,
    scheduler::SchedulerKind,
};

/// Where denoising starts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Start {
    /// From the noise of the request's seed.
    Noise,
    /// From given starting noise, `[1, channels, height / 8, width / 8]` in that order, before the scheduler scales it.
    Latents(std::sync::Arc<[f32]>),
}

/// What a request ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Output {
    /// A picture.
    #[default]
    Image,
    /// The latents alone.
    Latents,
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
    /// What it ends with.
    pub output: Output,
}

impl Request {
    /// A picture of `prompt` from seed 0, and for the rest what the model says.
    pub fn new(prompt: impl Into<String>, spec: &ModelSpec) -> Self {
        let defaults = &spec.defaults;
        Self {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            seed: 0,
            steps: defaults.steps,
            guidance_scale: defaults.guidance_scale,
            scheduler: defaults.scheduler,
            width: defaults.width,
            height: defaults.height,
            rng: Rng::default(),
            start: Start::Noise,
            output: Output::default(),
        }
    }

    /// Whether both can go through the network in one call: the same size, schedule and kind of start, with guidance both or
    /// neither. Texts, seeds and strengths of guidance may differ.
    pub fn goes_with(&self, other: &Self) -> bool {
        let guided = |request: &Self| request.guidance_scale > 1.0;
        let start = |request: &Self| matches!(request.start, Start::Noise);
        (self.width, self.height, self.steps, self.scheduler)
            == (other.width, other.height, other.steps, other.scheduler)
            && (guided(self), start(self), self.output) == (guided(other), start(other), other.output)
    }

    /// What must hold for a request to a model.
    ///
    /// # Errors
    /// If a size is not a multiple of the model's scale, there is no step, the guidance scale is not finite, or the
    /// starting noise has another size.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let scale = spec.latents.scale;
        for (name, pixels) in [("width", self.width), ("height", self.height)] {
            if pixels == 0 || !pixels.is_multiple_of(scale) {
                return Err(
                    Error::input(format!("the {name} has to be a multiple of {scale}")).found(pixels.to_string())
                );
            }
        }
        if self.steps == 0 {
            return Err(Error::input("a request needs at least one step"));
        }
        if !self.guidance_scale.is_finite() {
            return Err(Error::input("the guidance scale has to be finite").found(self.guidance_scale.to_string()));
        }
        if let Start::Latents(latents) = &self.start {
            let wanted = spec.latents.channels * (self.width / scale) * (self.height / scale);
            if latents.len() != wanted {
                return Err(
                    Error::input(format!("the starting noise needs {wanted} values")).found(latents.len().to_string())
                );
            }
        }
        Ok(())
    }
}
