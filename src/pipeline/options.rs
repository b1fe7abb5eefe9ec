//! The options of a picture, as the command line, prompts files and the metadata of files have them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    image_files::ImageFiles,
    request::{Control, MAX_SIDE, Request, Start, StartImage, check_share, check_strength},
};
use crate::{
    error::{Error, Result},
    models::spec::ModelSpec,
    prompt::PromptSyntax,
};

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
    /// many also with -karras, -exponential, -beta or -trailing, as dpm++2m-karras [default: the model's]
    #[cfg_attr(feature = "cli", arg(long, aliases = ["sampler", "sampler-name", "sampling-method"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The share of fresh noise in each step of ddim and tcd, from 0 to 1 [default: 0]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", alias = "ddim-eta", allow_negative_numbers = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
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
            eta: self.eta.or(other.eta),
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
        if let Some(strength) = self.strength {
            check_strength(&name("strength"), strength)?;
        }
        if let Some(eta) = self.eta {
            check_share(&name("eta"), eta)?;
        }
        if let Some(scale) = self.guidance_scale.filter(|scale| !scale.is_finite()) {
            return refuse("guidance_scale", scale.to_string(), "a finite number is needed".into());
        }
        self.guidance_rescale.map_or(Ok(()), |factor| check_share(&name("guidance_rescale"), factor))
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
            eta: self.eta.unwrap_or(plain.eta),
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

impl Request {
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
            eta: Some(self.eta).filter(|eta| *eta != 0.0),
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
