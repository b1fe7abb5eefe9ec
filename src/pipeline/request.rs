//! The request for one picture, which is checked once.

use std::{fmt::Display, sync::Arc};

use super::{
    image::Image,
    preprocess::{check_mask_size, overlay},
    texts::Text,
};
pub use crate::tensor::random::Rng;
use crate::{
    error::{Error, Result},
    models::{component::Stage, spec::ModelSpec},
    prompt::PromptSyntax,
    scheduler::{Schedule, SchedulerKind, schedule_from},
};

/// The largest width and height in pixels.
pub const MAX_SIDE: usize = 8192;

/// The starting point of denoising.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Start {
    /// Noise from the request's seed.
    Noise,
    /// The given starting noise, `[1, channels, height / 8, width / 8]` in that order, before the scheduler scales it.
    Latents(Arc<[f32]>),
    /// A picture with noise.
    Image(StartImage),
}

/// A picture to start from, and what of it is drawn anew.
#[derive(Debug, Clone, PartialEq)]
pub struct StartImage {
    /// The picture, which is resampled to the size that is drawn.
    pub image: Arc<Image>,
    /// The share of the steps that are made, above 0 and at most 1.
    pub strength: f64,
    /// White where the picture is drawn anew, in its size; `None` for everywhere.
    pub mask: Option<Arc<Image>>,
    /// Whether the picture's own pixels are put back where the mask is black.
    pub paste_original: bool,
}

impl StartImage {
    /// The start from a picture with the default strength of the model's pipelines in diffusers.
    pub fn new(image: Arc<Image>, mask: Option<Arc<Image>>, spec: &ModelSpec) -> Self {
        let strength = match (mask.is_some(), spec.sdxl.is_some()) {
            (false, false) => 0.8,
            (false, true) => 0.3,
            (true, false) => 1.0,
            (true, true) => 0.9999,
        };
        Self { image, strength, mask, paste_original: false }
    }

    /// The picture that is drawn from this one: `drawn`, with the pixels of this one put back if that is wanted.
    pub(super) fn finished(&self, drawn: Image) -> Image {
        match self.mask.as_ref().filter(|_| self.paste_original) {
            Some(mask) => {
                let (width, height) = (drawn.width, drawn.height);
                overlay(&self.image.resized(width, height), &mask.resized(width, height), &drawn)
            }
            None => drawn,
        }
    }
}

/// The picture that a ControlNet reads, and how strongly and when it works.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// The picture, which is resampled to the size that is drawn.
    pub image: Arc<Image>,
    /// The factor of what the ControlNet adds.
    pub scale: f32,
    /// The share of the steps after which it begins to work.
    pub start: f64,
    /// The share of the steps after which it no longer works.
    pub end: f64,
}

impl Control {
    /// A control for all steps, with the default factor of diffusers' pipelines for what is drawn from `start`.
    pub fn new(image: Arc<Image>, start: &Start, spec: &ModelSpec) -> Self {
        let scale = match start {
            Start::Image(start) if start.mask.is_none() => 0.8,
            Start::Image(_) if spec.sdxl.is_none() => 0.5,
            _ => 1.0,
        };
        Self { image, scale, start: 0.0, end: 1.0 }
    }

    /// Whether the ControlNet works at step `step` of `steps`, as in diffusers.
    pub fn is_active(&self, step: usize, steps: usize) -> bool {
        let share = |step: usize| step as f64 / steps as f64;
        share(step) >= self.start && share(step + 1) <= self.end
    }

    /// What must be equal in a batch.
    fn settings(&self) -> (f32, f64, f64) {
        (self.scale, self.start, self.end)
    }
}

/// The output of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Output {
    /// An image.
    #[default]
    Image,
    /// The latents only.
    Latents,
}

/// A request for one picture: the texts, the seed and the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt.
    pub prompt: String,
    /// How all prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// The number of chunks that each text is filled up to. Texts with the syntax of web UIs may be longer than the
    /// input of a text encoder: [`Model::chunks`](super::model::Model::chunks) counts what they need.
    pub chunks: usize,
    /// The prompt for all text encoders but the first; `None` for the prompt.
    pub prompt_2: Option<String>,
    /// The negative prompt; used if `guidance_scale > 1`. `None` is the empty prompt, or for SDXL no prompt, which has
    /// zeros as its features.
    pub negative_prompt: Option<String>,
    /// The negative prompt for all text encoders but the first; `None` for the negative prompt.
    pub negative_prompt_2: Option<String>,
    /// Seed of the noise.
    pub seed: u64,
    /// Number of denoising steps, at least 1.
    pub steps: usize,
    /// Strength of classifier-free guidance; at most 1 means none.
    pub guidance_scale: f32,
    /// How far the output with guidance gets the standard deviation of the output for the prompt, from 0 to 1 (Lin et
    /// al. 2023).
    pub guidance_rescale: f32,
    /// The number of layers at the end of each text encoder that are left out for the prompt, as `clip_skip` of
    /// diffusers.
    pub clip_skip: usize,
    /// Whether the VAE works on large pictures in tiles: see [`Tiles`](crate::models::tiles::Tiles).
    pub vae_tiling: bool,
    /// The solver; `None` is the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// The share of fresh noise in each step, from 0 to 1, of those solvers for which it is not fixed: see
    /// [`SchedulerConfig::with_eta`](crate::scheduler::SchedulerConfig::with_eta).
    pub eta: f64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The generator of the noise.
    pub rng: Rng,
    /// The starting point of denoising.
    pub start: Start,
    /// A control for each ControlNet of the model, in order.
    pub controls: Vec<Control>,
    /// The output.
    pub output: Output,
    /// Whether the event of every step carries the latents, for previews or measurements: see
    /// [`Progress::Step`](super::Progress::Step). Each step then waits until they are copied to the host; without it
    /// nothing is copied. The picture does not depend on it.
    pub step_latents: bool,
}

impl Request {
    /// A request for a picture of `prompt` from seed 0, with the model's defaults.
    pub fn new(prompt: impl Into<String>, spec: &ModelSpec) -> Self {
        let defaults = &spec.defaults;
        Self {
            prompt: prompt.into(),
            prompt_syntax: PromptSyntax::default(),
            chunks: 1,
            prompt_2: None,
            negative_prompt: None,
            negative_prompt_2: None,
            seed: 0,
            steps: defaults.steps,
            guidance_scale: defaults.guidance_scale,
            guidance_rescale: 0.0,
            clip_skip: 0,
            vae_tiling: false,
            scheduler: defaults.scheduler,
            eta: 0.0,
            width: defaults.width,
            height: defaults.height,
            rng: Rng::default(),
            start: Start::Noise,
            controls: Vec::new(),
            output: Output::default(),
            step_latents: false,
        }
    }

    /// The prompt as the text encoders get it.
    pub fn text(&self) -> Text {
        self.read(Text::new(&self.prompt, self.prompt_2.as_deref(), self.clip_skip))
    }

    /// The negative prompt as the text encoders get it; `None` if its features are zeros. As in the reference,
    /// `clip_skip` does not count for it, and without a negative prompt the second one is not used.
    pub fn negative_text(&self, spec: &ModelSpec) -> Option<Text> {
        match &self.negative_prompt {
            None if spec.has_no_negative() => None,
            negative => {
                let (first, others) = (negative.as_deref().unwrap_or(""), self.negative_prompt_2.as_deref());
                Some(self.read(Text::new(first, others, 0)))
            }
        }
    }

    /// A text of this request with its syntax and length.
    fn read(&self, text: Text) -> Text {
        Text { syntax: self.prompt_syntax, chunks: self.chunks, ..text }
    }

    /// Whether the denoiser runs for the negative prompt too. A network that takes the guidance scale as an input does
    /// not need it.
    pub fn is_guided(&self, spec: &ModelSpec) -> bool {
        self.guidance_scale > 1.0 && !spec.takes_guidance()
    }

    /// The picture to start from, if there is one.
    pub fn start_image(&self) -> Option<&StartImage> {
        match &self.start {
            Start::Image(start) => Some(start),
            Start::Noise | Start::Latents(_) => None,
        }
    }

    /// What each ControlNet reads: pixels from 0 to 1, in the size that is drawn.
    pub(super) fn control_pixels(&self) -> Vec<Vec<f32>> {
        let pixels = |control: &Control| control.image.resized(self.width, self.height).unsigned();
        self.controls.iter().map(pixels).collect()
    }

    /// Whether a mask keeps some of the picture to start from.
    pub fn is_masked(&self) -> bool {
        self.start_image().is_some_and(|start| start.mask.is_some())
    }

    /// The share of the steps that are made: below 1 only from a picture.
    pub fn strength(&self) -> f64 {
        self.start_image().map_or(1.0, |start| start.strength)
    }

    /// The steps that are made.
    ///
    /// # Errors
    /// If the model has no such scheduler, or the scheduler cannot make these steps.
    pub fn schedule(&self, spec: &ModelSpec) -> Result<Schedule> {
        schedule_from(&spec.scheduler_for(self.scheduler)?.with_eta(self.eta), self.steps, self.strength())
    }

    /// Whether both can be batched: they have the same size, schedule, kind of start, length of texts in chunks and
    /// settings of ControlNets, and both have guidance or neither. Texts, pictures, seeds and guidance scales may differ.
    pub fn goes_with(&self, other: &Self) -> bool {
        // For a network that takes the scale as an input this only separates more than it must.
        let guided = |request: &Self| request.guidance_scale > 1.0;
        let start = |request: &Self| match &request.start {
            Start::Noise => (false, None),
            Start::Latents(_) => (true, None),
            Start::Image(start) => (start.mask.is_some(), Some(start.strength)),
        };
        (self.width, self.height, self.steps, self.scheduler, self.eta, self.chunks)
            == (other.width, other.height, other.steps, other.scheduler, other.eta, other.chunks)
            && (guided(self), start(self), self.output) == (guided(other), start(other), other.output)
            && self.controls.iter().map(Control::settings).eq(other.controls.iter().map(Control::settings))
    }

    /// Checks that a model can draw this request.
    ///
    /// # Errors
    /// If a size is not a multiple of the model's scale, there is no step, the guidance scale is not finite, a number is
    /// out of its range, the starting noise has another size, or there is a text for an encoder that the model lacks.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        self.check_as(spec, str::to_owned)
    }

    fn check_controls(&self, spec: &ModelSpec, name: impl Fn(&str) -> String) -> Result<()> {
        let (wanted, found) = (spec.controlnets().count(), self.controls.len());
        if wanted != found {
            let error = Error::input(format!(
                "{}: each ControlNet of the model reads one picture, and it has {wanted}",
                name("control_image")
            ));
            return Err(error.found(format!("{found} pictures")).hint("--controlnet FILE and --control-image FILE"));
        }
        for Control { scale, start, end, .. } in &self.controls {
            let refuse = |field: &str, wanted: &str, found: String| {
                Err(Error::input(format!("{}: {wanted}", name(field))).found(found))
            };
            if !scale.is_finite() {
                return refuse("control_scale", "a finite number is needed", scale.to_string());
            }
            check_share(&name("control_start"), *start)?;
            check_share(&name("control_end"), *end)?;
            if start >= end {
                return refuse("control_end", "the end must be greater than the start", format!("{start} to {end}"));
            }
        }
        Ok(())
    }

    /// As [`check`](Self::check); `name` gives the name of a field in messages.
    pub(super) fn check_as(&self, spec: &ModelSpec, name: impl Fn(&str) -> String) -> Result<()> {
        let scale = spec.latents.scale;
        for (field, pixels) in [("width", self.width), ("height", self.height)] {
            if pixels > MAX_SIDE {
                return Err(Error::input(format!("{}: at most {MAX_SIDE} is possible", name(field)))
                    .found(pixels.to_string())
                    .hint(format!("{} and {}", name("width"), name("height"))));
            }
            if pixels == 0 || !pixels.is_multiple_of(scale) {
                let below = pixels - pixels % scale;
                let near = if below == 0 { scale.to_string() } else { format!("{below} or {}", below + scale) };
                return Err(Error::input(format!("{}: has to be a multiple of {scale}", name(field)))
                    .found(pixels.to_string())
                    .hint(near));
            }
        }
        if self.steps == 0 {
            return Err(Error::input(format!("{}: at least 1 is needed", name("steps"))).found("0"));
        }
        if !self.guidance_scale.is_finite() {
            return Err(Error::input(format!("{}: a finite number is needed", name("guidance_scale")))
                .found(self.guidance_scale.to_string()));
        }
        check_share(&name("guidance_rescale"), self.guidance_rescale)?;
        check_share(&name("eta"), self.eta)?;
        // A model whose own scheduler is not implemented may be checked before a solver is chosen.
        if self.eta != 0.0
            && let Ok(config) = spec.scheduler_for(self.scheduler)
            && !config.kind().solver().has_eta()
        {
            return Err(Error::input(format!("{}: the noise of {} is fixed", name("eta"), config.kind()))
                .found(self.eta.to_string())
                .hint(format!("{} ddim or {} tcd", name("scheduler"), name("scheduler"))));
        }
        let syntax = self.prompt_syntax;
        for (field, text) in [("prompt", Some(&self.prompt)), ("prompt_2", self.prompt_2.as_ref())] {
            let read = syntax.prompt(text.map_or("", String::as_str)).map_err(|error| error.context(name(field)))?;
            if let Some(tag) = read.loras.first() {
                return Err(Error::input(format!("{}: a request has no LoRAs of its own", name(field)))
                    .found(format!("<lora:{}>", tag.name))
                    .hint("LoRAs belong to a model: ModelFiles::with_loras"));
            }
        }
        for (field, text) in
            [("negative_prompt", &self.negative_prompt), ("negative_prompt_2", &self.negative_prompt_2)]
        {
            let text = text.as_deref().unwrap_or_default();
            syntax.negative_prompt(text).map_err(|error| error.context(name(field)))?;
        }
        let most = spec.layers_to_skip();
        if self.clip_skip > most {
            return Err(Error::input(format!("{}: the text encoders can leave out {most} layers", name("clip_skip")))
                .found(self.clip_skip.to_string()));
        }
        for (field, text) in [("prompt_2", &self.prompt_2), ("negative_prompt_2", &self.negative_prompt_2)] {
            if text.is_some() && spec.texts().count() == 1 {
                return Err(
                    Error::input(format!("{}: this model has one text encoder", name(field))).hint("SDXL has two")
                );
            }
        }
        let has_tiles =
            spec.in_stage(Stage::EncodeImage).chain(spec.in_stage(Stage::Decode)).all(|id| spec.tiles(id).is_some());
        if self.vae_tiling && !has_tiles {
            return Err(Error::input(format!("{}: the VAE of this model has no size of tiles", name("vae_tiling")))
                .hint(
                    "a config of the VAE whose `sample_size` is a number of pixels, four times a multiple of its scale",
                ));
        }
        if let Start::Latents(latents) = &self.start {
            let wanted = spec.latents.channels * (self.width / scale) * (self.height / scale);
            if latents.len() != wanted {
                return Err(
                    Error::input(format!("the starting noise needs {wanted} values")).found(latents.len().to_string())
                );
            }
        }
        self.check_controls(spec, &name)?;
        let start = self.start_image();
        if spec.takes_mask() && start.is_none_or(|start| start.mask.is_none()) {
            let missing = name(if start.is_some() { "mask" } else { "image" });
            return Err(Error::input(format!(
                "{missing}: this is an inpainting model, which needs a picture and a mask"
            ))
            .hint(format!("{} FILE {} FILE", name("image"), name("mask"))));
        }
        if let Some(StartImage { image, strength, mask, paste_original }) = start {
            check_strength(&name("strength"), *strength)?;
            match mask {
                Some(mask) => check_mask_size(mask, image).map_err(|error| error.context(name("mask")))?,
                None if *paste_original => {
                    return Err(Error::input(format!("{}: there is no mask", name("paste_original")))
                        .hint(format!("{} FILE", name("mask"))));
                }
                None => {}
            }
            if spec.in_stage(Stage::EncodeImage).next().is_none() {
                return Err(Error::input("the model was opened without the encoder for pictures to start from")
                    .hint("Model::open_for_images"));
            }
        }
        Ok(())
    }
}

/// Checks a share that may be 0; `name` is the field's in messages.
pub(super) fn check_share<T: PartialOrd + Display + From<u8>>(name: &str, share: T) -> Result<()> {
    if (T::from(0)..=T::from(1)).contains(&share) {
        return Ok(());
    }
    Err(Error::input(format!("{name}: a number from 0 to 1 is needed")).found(share.to_string()))
}

/// Checks the share of the steps that are made from a picture; `name` is the field's in messages.
pub(super) fn check_strength(name: &str, strength: f64) -> Result<()> {
    if strength > 0.0 && strength <= 1.0 {
        return Ok(());
    }
    Err(Error::input(format!("{name}: a number above 0 and at most 1 is needed")).found(strength.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows that diffusers' rule gives.
    #[test]
    fn a_controlnet_works_in_its_window() {
        let image = Arc::new(Image { width: 1, height: 1, rgb: vec![0; 3] });
        for (steps, start, end, wanted) in [
            (20, 0.0, 0.5, 0..10),
            (20, 0.3, 0.8, 6..16),
            (10, 0.1, 0.9, 1..9),
            (7, 0.0, 0.5, 0..3),
            (50, 0.0, 0.8, 0..40),
            (3, 0.0, 1.0, 0..3),
        ] {
            let control = Control { image: image.clone(), scale: 1.0, start, end };
            let active: Vec<usize> = (0..steps).filter(|&step| control.is_active(step, steps)).collect();
            assert_eq!(active, wanted.collect::<Vec<_>>(), "{steps} steps, {start} to {end}");
        }
    }
}
