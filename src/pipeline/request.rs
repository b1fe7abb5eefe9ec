//! The options of a picture, and the request that is made of them, which is checked once.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    image::Image,
    image_files::ImageFiles,
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
/// The largest number of pictures of one prompt, so that a typing error cannot fill the memory with requests.
const MAX_IMAGES: usize = 100_000;

/// The options of a picture, all of which may be left out; the model has defaults for them. The command line, a prompts
/// file and the metadata of a file all use this type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(default, deny_unknown_fields)]
pub struct RequestOptions {
    /// What to draw. On the command line it is an argument by itself.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// How prompts are read: "plain" text, or with the weights, chunks and tags of web UIs, "a1111" [default: plain]
    #[cfg_attr(feature = "cli", arg(long, value_name = "plain|a1111"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_syntax: Option<PromptSyntax>,
    /// What the picture should not show
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", aliases = ["negative", "neg-prompt"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// The prompt for the second text encoder of SDXL [default: the prompt]
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// The negative prompt for the second text encoder of SDXL [default: the negative prompt]
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt_2: Option<String>,
    /// Seed of the noise. The command line's may also be "random".
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Denoising steps [default: the model's]
    #[cfg_attr(feature = "cli", arg(long, aliases = ["num-inference-steps", "sampling-steps", "ddim-steps"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// How closely to follow the prompt; 1 means no guidance [default: the model's]
    #[cfg_attr(feature = "cli", arg(long, allow_negative_numbers = true))]
    #[cfg_attr(feature = "cli", arg(aliases = ["cfg-scale", "cfg", "guidance", "scale"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f32>,
    /// How far to reduce the contrast that guidance adds, from 0 to 1 [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "FACTOR", allow_negative_numbers = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f32>,
    /// The number of layers at the end of the text encoders to leave out for the prompt; web UIs count one more
    /// [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// The solver: pndm, ddim, euler, euler-ancestral, heun, dpm++2m, dpm++2m-sde, dpm++2s, dpm++sde, unipc, lcm or tcd;
    /// many also with -karras, -exponential or -beta, as dpm++2m-karras [default: the model's]
    #[cfg_attr(feature = "cli", arg(long, aliases = ["sampler", "sampler-name", "sampling-method"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The picture to start from: PNG, JPEG or WebP
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    #[cfg_attr(feature = "cli", arg(aliases = ["init-image", "init-img", "input-image", "init"], short_alias = 'i'))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The share of the steps that are made from the picture of --image, above 0 and at most 1: the higher, the less of
    /// it is left [default: 0.8, for SDXL 0.3, with --mask 1, for SDXL 0.9999]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", allow_negative_numbers = true))]
    #[cfg_attr(feature = "cli", arg(alias = "denoising-strength"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// What of the picture of --image is drawn anew: a picture of the same size, white where to draw
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE", alias = "mask-image"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// Put the pixels of --image back where --mask is black; the VAE changes them slightly
    #[cfg_attr(feature = "cli", arg(long, num_args = 0, default_missing_value = "true"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paste_original: Option<bool>,
    /// Run the VAE on large pictures in overlapping tiles, as diffusers does: this needs less memory, and the picture
    /// is slightly different
    #[cfg_attr(feature = "cli", arg(long, num_args = 0, default_missing_value = "true"))]
    #[cfg_attr(feature = "cli", arg(alias = "enable-vae-tiling"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tiling: Option<bool>,
    /// The picture that a ControlNet reads, in the form that it was trained on, such as edges or depth: PNG, JPEG or
    /// WebP; one for each --controlnet, in order
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub control_image: Vec<PathBuf>,
    /// How strongly a ControlNet works: one number, or one for each [default: 1, with --image 0.8, with --mask 0.5, for SDXL 1]
    #[cfg_attr(feature = "cli", arg(long, value_name = "FACTOR", allow_negative_numbers = true))]
    #[cfg_attr(feature = "cli", arg(aliases = ["control-strength", "controlnet-conditioning-scale"]))]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub control_scale: Vec<f32>,
    /// The share of the steps after which a ControlNet begins to work: one number, or one for each [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", allow_negative_numbers = true))]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub control_start: Vec<f64>,
    /// The share of the steps after which a ControlNet no longer works: one number, or one for each [default: 1]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", allow_negative_numbers = true))]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub control_end: Vec<f64>,
    /// Width in pixels [default: that of --image, or the model's]
    #[cfg_attr(feature = "cli", arg(long, short_alias = 'W', alias = "W"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Height in pixels [default: that of --image, or the model's]
    #[cfg_attr(feature = "cli", arg(long, short_alias = 'H', alias = "H"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Number of pictures per prompt [default: 1]
    #[cfg_attr(feature = "cli", arg(long))]
    #[cfg_attr(feature = "cli", arg(aliases = ["num-images-per-prompt", "n-samples", "n-iter", "batch-count"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_images: Option<usize>,
}

/// Reads a value, or a list of values.
fn one_or_many<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a value, or a list of values")]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match OneOrMany::deserialize(from)? {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values,
    })
}

impl RequestOptions {
    /// These options, and those of `other` where these are not set.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        fn many<T: Clone>(own: Vec<T>, other: &[T]) -> Vec<T> {
            if own.is_empty() { other.to_vec() } else { own }
        }
        Self {
            prompt: self.prompt.or_else(|| other.prompt.clone()),
            prompt_syntax: self.prompt_syntax.or(other.prompt_syntax),
            negative_prompt: self.negative_prompt.or_else(|| other.negative_prompt.clone()),
            prompt_2: self.prompt_2.or_else(|| other.prompt_2.clone()),
            negative_prompt_2: self.negative_prompt_2.or_else(|| other.negative_prompt_2.clone()),
            seed: self.seed.or(other.seed),
            steps: self.steps.or(other.steps),
            guidance_scale: self.guidance_scale.or(other.guidance_scale),
            guidance_rescale: self.guidance_rescale.or(other.guidance_rescale),
            clip_skip: self.clip_skip.or(other.clip_skip),
            scheduler: self.scheduler.or_else(|| other.scheduler.clone()),
            image: self.image.or_else(|| other.image.clone()),
            strength: self.strength.or(other.strength),
            mask: self.mask.or_else(|| other.mask.clone()),
            paste_original: self.paste_original.or(other.paste_original),
            vae_tiling: self.vae_tiling.or(other.vae_tiling),
            control_image: many(self.control_image, &other.control_image),
            control_scale: many(self.control_scale, &other.control_scale),
            control_start: many(self.control_start, &other.control_start),
            control_end: many(self.control_end, &other.control_end),
            width: self.width.or(other.width),
            height: self.height.or(other.height),
            num_images: self.num_images.or(other.num_images),
        }
    }

    /// Checks everything that can be checked without a model; `name` gives the name of a field in messages.
    ///
    /// # Errors
    /// If a number is 0, too large or not finite.
    pub fn check(&self, name: impl Fn(&str) -> String) -> Result<()> {
        let refuse = |field: &str, found: String, wanted: String| {
            Err(Error::input(format!("{}: {wanted}", name(field))).found(found))
        };
        for (field, value, most) in [
            ("steps", self.steps, usize::MAX),
            ("width", self.width, MAX_SIDE),
            ("height", self.height, MAX_SIDE),
            ("num_images", self.num_images, MAX_IMAGES),
        ] {
            match value {
                Some(0) => return refuse(field, "0".into(), "at least 1 is needed".into()),
                Some(value) if value > most => {
                    return refuse(field, value.to_string(), format!("at most {most} is possible"));
                }
                _ => {}
            }
        }
        if let Some(strength) = self.strength.filter(|&strength| !(strength > 0.0 && strength <= 1.0)) {
            return refuse("strength", strength.to_string(), "a number above 0 and at most 1 is needed".into());
        }
        match (self.guidance_scale, self.guidance_rescale) {
            (Some(scale), _) if !scale.is_finite() => {
                refuse("guidance_scale", scale.to_string(), "a finite number is needed".into())
            }
            (_, Some(factor)) if !(0.0..=1.0).contains(&factor) => {
                refuse("guidance_rescale", factor.to_string(), "a number from 0 to 1 is needed".into())
            }
            _ => Ok(()),
        }
    }

    /// The files of pictures that these options name.
    pub fn image_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.image.iter().chain(&self.mask).chain(&self.control_image)
    }

    /// The request for one picture, from noise to an image, with the model's defaults for options that are not set.
    /// `images` has the pictures that the options name. `name` gives the name of a field in messages.
    ///
    /// # Errors
    /// If a size is not a multiple of the model's scale, an option needs another one, or as [`Request::check`].
    pub fn request(&self, spec: &ModelSpec, images: &ImageFiles, name: impl Fn(&str) -> String) -> Result<Request> {
        let plain = Request::new(self.prompt.as_deref().unwrap_or_default(), spec);
        let asked = self.scheduler.as_deref().map(str::parse).transpose();
        let start = self.start(spec, images, &name)?;
        let controls = self.controls(spec, images, &start, &name)?;
        // A picture is drawn in the size of the one that it starts from, or of the first that controls it.
        let sized = match (&start, controls.first()) {
            (Start::Image(start), _) => Some((&start.image, "image")),
            (_, Some(control)) => Some((&control.image, "control_image")),
            _ => None,
        };
        let plain = match sized {
            Some((image, field)) => {
                let size = image.drawn_size(spec.latents.scale);
                let (width, height) = size.map_err(|error| error.context(name(field)))?;
                Request { width, height, ..plain }
            }
            None => plain,
        };
        let request = Request {
            prompt_syntax: self.prompt_syntax.unwrap_or_default(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_2: self.prompt_2.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
            seed: self.seed.unwrap_or(plain.seed),
            steps: self.steps.unwrap_or(plain.steps),
            guidance_scale: self.guidance_scale.unwrap_or(plain.guidance_scale),
            guidance_rescale: self.guidance_rescale.unwrap_or(plain.guidance_rescale),
            clip_skip: self.clip_skip.unwrap_or(plain.clip_skip),
            vae_tiling: self.vae_tiling.unwrap_or(plain.vae_tiling),
            scheduler: asked.map_err(|error: Error| error.context(name("scheduler")))?.or(plain.scheduler),
            width: self.width.unwrap_or(plain.width),
            height: self.height.unwrap_or(plain.height),
            start,
            controls,
            ..plain
        };
        request.check_as(spec, name)?;
        Ok(request)
    }

    /// The controls of the model's ControlNets.
    fn controls(
        &self,
        spec: &ModelSpec,
        images: &ImageFiles,
        start: &Start,
        name: &impl Fn(&str) -> String,
    ) -> Result<Vec<Control>> {
        let count = self.control_image.len();
        let counts = [
            ("control_scale", self.control_scale.len()),
            ("control_start", self.control_start.len()),
            ("control_end", self.control_end.len()),
        ];
        if let Some((field, found)) = counts.into_iter().find(|&(_, found)| found > 1 && found != count) {
            return Err(Error::input(format!("{}: one number is needed, or one for each control image", name(field)))
                .found(format!("{found} numbers for {count} pictures")));
        }
        if let Some((field, _)) = counts.into_iter().find(|&(_, found)| found > 0 && count == 0) {
            return Err(Error::input(format!("{}: there is no control image", name(field)))
                .hint(format!("{} FILE", name("control_image"))));
        }
        fn of<T: Copy>(values: &[T], i: usize, default: T) -> T {
            values.get(i).or(values.first()).copied().unwrap_or(default)
        }
        let control = |(i, path): (usize, &PathBuf)| {
            let plain = Control::new(images.get(path)?, start, spec);
            Ok(Control {
                scale: of(&self.control_scale, i, plain.scale),
                start: of(&self.control_start, i, plain.start),
                end: of(&self.control_end, i, plain.end),
                ..plain
            })
        };
        self.control_image.iter().enumerate().map(control).collect()
    }

    /// What denoising starts from.
    fn start(&self, spec: &ModelSpec, images: &ImageFiles, name: &impl Fn(&str) -> String) -> Result<Start> {
        let Some(image) = &self.image else {
            let alone = [
                ("mask", self.mask.is_some()),
                ("strength", self.strength.is_some()),
                ("paste_original", self.paste_original == Some(true)),
            ];
            return match alone.into_iter().find(|(_, is_set)| *is_set) {
                None => Ok(Start::Noise),
                Some((field, _)) => Err(Error::input(format!("{}: there is no picture to start from", name(field)))
                    .hint(format!("{} FILE", name("image")))),
            };
        };
        let mask = self.mask.as_ref().map(|mask| images.get(mask)).transpose()?;
        let mask_is_none = mask.is_none();
        let plain = StartImage::new(images.get(image)?, mask, spec);
        // With ControlNets the pipelines of SDXL have the strength of the others.
        let strength = if mask_is_none && !self.control_image.is_empty() { 0.8 } else { plain.strength };
        Ok(Start::Image(StartImage {
            strength: self.strength.unwrap_or(strength),
            paste_original: self.paste_original.unwrap_or(plain.paste_original),
            ..plain
        }))
    }
}

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
                overlay(&self.image.resized(width, height), &mask.resized(width, height), &drawn, None)
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
            width: defaults.width,
            height: defaults.height,
            rng: Rng::default(),
            start: Start::Noise,
            controls: Vec::new(),
            output: Output::default(),
        }
    }

    /// The options that give this request, without the files of its pictures.
    ///
    /// # Errors
    /// If the model has no such scheduler.
    pub fn options(&self, spec: &ModelSpec) -> Result<RequestOptions> {
        // An absent negative prompt is the empty one, unless the model distinguishes them.
        let negative_prompt = self.negative_prompt.clone().or_else(|| (!spec.has_no_negative()).then(String::new));
        Ok(RequestOptions {
            prompt: Some(self.prompt.clone()),
            prompt_syntax: Some(self.prompt_syntax).filter(|syntax| *syntax != PromptSyntax::Plain),
            negative_prompt,
            prompt_2: self.prompt_2.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
            seed: Some(self.seed),
            steps: Some(self.steps),
            guidance_scale: Some(self.guidance_scale),
            guidance_rescale: Some(self.guidance_rescale).filter(|factor| *factor != 0.0),
            clip_skip: Some(self.clip_skip).filter(|skip| *skip != 0),
            vae_tiling: Some(self.vae_tiling).filter(|is_tiled| *is_tiled),
            scheduler: Some(spec.scheduler_for(self.scheduler)?.kind().to_string()),
            image: None,
            strength: self.start_image().map(|start| start.strength),
            mask: None,
            paste_original: self.start_image().map(|start| start.paste_original).filter(|is_pasted| *is_pasted),
            control_image: Vec::new(),
            control_scale: self.controls.iter().map(|control| control.scale).collect(),
            control_start: self.controls.iter().map(|control| control.start).collect(),
            control_end: self.controls.iter().map(|control| control.end).collect(),
            width: Some(self.width),
            height: Some(self.height),
            num_images: None,
        })
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
        schedule_from(&spec.scheduler_for(self.scheduler)?, self.steps, self.strength())
    }

    /// Whether both can be batched: they have the same size, schedule and kind of start, and both have guidance or
    /// neither. Texts, seeds and guidance scales may differ.
    pub fn goes_with(&self, other: &Self) -> bool {
        // For a network that takes the scale as an input this only separates more than it must.
        let guided = |request: &Self| request.guidance_scale > 1.0;
        let start = |request: &Self| match &request.start {
            Start::Noise => (false, None),
            Start::Latents(_) => (true, None),
            Start::Image(start) => (start.mask.is_some(), Some(start.strength)),
        };
        (self.width, self.height, self.steps, self.scheduler, self.chunks)
            == (other.width, other.height, other.steps, other.scheduler, other.chunks)
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
            for (field, share) in [("control_start", start), ("control_end", end)] {
                if !(0.0..=1.0).contains(share) {
                    return refuse(field, "a number from 0 to 1 is needed", share.to_string());
                }
            }
            if start >= end {
                return refuse("control_end", "the end must be greater than the start", format!("{start} to {end}"));
            }
        }
        Ok(())
    }

    /// As [`check`](Self::check); `name` gives the name of a field in messages.
    fn check_as(&self, spec: &ModelSpec, name: impl Fn(&str) -> String) -> Result<()> {
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
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return Err(Error::input(format!("{}: a number from 0 to 1 is needed", name("guidance_rescale")))
                .found(self.guidance_rescale.to_string()));
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
            if !(*strength > 0.0 && *strength <= 1.0) {
                return Err(Error::input(format!("{}: a number above 0 and at most 1 is needed", name("strength")))
                    .found(strength.to_string()));
            }
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

    #[test]
    fn options_of_controls_are_values_or_lists() {
        let options: RequestOptions =
            serde_json::from_str(r#"{"control_image": "a.png", "control_scale": [0.5, 1], "control_end": 0.7}"#)
                .unwrap();
        assert_eq!(options.control_image, [PathBuf::from("a.png")]);
        assert_eq!((options.control_scale, options.control_end), (vec![0.5, 1.0], vec![0.7]));
        assert_eq!(serde_json::to_string(&RequestOptions::default()).unwrap(), "{}");
    }
}
