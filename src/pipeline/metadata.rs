//! The metadata of a finished file: everything that is needed to make it again, and nothing about the machine. The
//! texts are made here; [`Image::encode`](super::image::Image::encode) writes them into the file.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    hashes::{Hashes, Named},
    latents::Latents,
    model::Model,
    options::RequestOptions,
    parameters,
    request::{Request, Start},
};
use crate::{
    backend::Precision,
    error::Result,
    weights::{Fnv, lora::LoraChoice},
};

/// The keyword of the text chunk in the form that Stable Diffusion web UIs read.
pub(super) const PARAMETERS: &str = "parameters";
/// The keyword of the text chunk with [`Metadata`] as JSON; in EXIF data it is before the JSON.
pub(super) const SDSHARD: &str = "sdshard";

/// The whole request of one file: equal metadata give an equal picture (within one numerics class).
///
/// There are no paths, devices or times, so that the same request gives the same file everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)] // files of other versions may have other fields, and do not match
pub struct Metadata {
    /// The hub id or the name of the model's folder.
    pub model: String,
    /// Ten hexadecimal digits of the model's [`identity`](Model::identity).
    pub model_hash: String,
    /// The request, with a value in every field that has one.
    #[serde(flatten)]
    pub request: RequestOptions,
    /// The type in which the UNet was computed, as `--dtype` names it; `f16+f32` if its devices have several.
    pub dtype: String,
    /// The generator of the noise, as `--rng` names it.
    pub rng: String,
    /// The LoRAs, as names and weights: `style:0.8`. The hash of the model contains those of their files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<String>,
    /// The names and hashes of their files, as [`Hashes`] has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora_hashes: Vec<Named>,
    /// Those of another VAE than the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<Named>,
    /// Those of ControlNets, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controlnets: Vec<Named>,
    /// Those of the textual inversions in the texts of this picture, of which the hash of the model says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<Named>,
    /// A hash of the starting noise, if it was given rather than generated from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents: Option<String>,
    /// The SHA-256 of the pixels of the picture to start from: [`Image::digest`](super::image::Image::digest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pixels: Option<String>,
    /// That of the mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_pixels: Option<String>,
    /// Those of the pictures that ControlNets read, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_pixels: Vec<String>,
}

impl Metadata {
    /// The metadata of a picture of `request`; `hashes` are the [model's](Model::hashes), `dtypes` the types of the
    /// devices that run the UNet.
    ///
    /// # Errors
    /// If the model has no such scheduler, or as [`Model::embeddings_of`].
    pub fn new(request: &Request, model: &Model, hashes: &Hashes, dtypes: &[Precision]) -> Result<Self> {
        let (spec, scale) = (&model.spec, model.spec.latents.scale);
        let digest = |values: &std::sync::Arc<[f32]>| {
            let (height, width) = (request.height / scale, request.width / scale);
            Latents { channels: spec.latents.channels, height, width, values: values.to_vec() }.digest()
        };
        Ok(Self {
            model: model.files.name().to_string(),
            model_hash: hashes.model.clone(),
            request: request.options(spec)?,
            dtype: dtypes
                .iter()
                .map(|dtype| dtype.name())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join("+"),
            rng: request.rng.to_string(),
            loras: model.files.loras().0.iter().map(LoraChoice::label).collect(),
            lora_hashes: hashes.loras.clone(),
            vae: hashes.vae.clone(),
            controlnets: hashes.controlnets.clone(),
            embeddings: model
                .embeddings_of(request)?
                .into_iter()
                .map(|index| hashes.embeddings[index].clone())
                .collect(),
            latents: match &request.start {
                Start::Noise | Start::Image(_) => None,
                Start::Latents(values) => Some(digest(values)),
            },
            image_pixels: request.start_image().map(|start| start.image.digest()),
            mask_pixels: request.start_image().and_then(|start| start.mask.as_ref()).map(|mask| mask.digest()),
            control_pixels: request.controls.iter().map(|control| control.image.digest()).collect(),
        })
    }

    /// The JSON of the `sdshard` text chunk.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers can always be written as JSON")
    }

    /// A hash of all fields for file names: eight hexadecimal digits.
    pub fn digest(&self) -> String {
        let mut hash = Fnv::new();
        hash.write(self.json().as_bytes());
        format!("{:08x}", (hash.0 >> 32) ^ (hash.0 & 0xffff_ffff))
    }

    /// The text that Stable Diffusion web UIs read: prompt, negative prompt, and one line of settings.
    pub fn parameters(&self) -> String {
        parameters::write(&parameters::Said {
            options: &self.request,
            model: (&self.model, &self.model_hash),
            rng: &self.rng,
            loras: &self.loras,
            lora_hashes: &self.lora_hashes,
            vae: self.vae.as_ref(),
            controlnets: &self.controlnets,
            embeddings: &self.embeddings,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn metadata() -> Metadata {
        Metadata {
            model: "emoji".into(),
            model_hash: "0123456789".into(),
            request: RequestOptions {
                prompt: Some("a red fox".into()),
                negative_prompt: Some(String::new()),
                seed: Some(u64::MAX),
                steps: Some(25),
                guidance_scale: Some(7.5),
                scheduler: Some("euler-ancestral".into()),
                width: Some(64),
                height: Some(32),
                ..RequestOptions::default()
            },
            dtype: "f32".into(),
            rng: "cpu".into(),
            loras: Vec::new(),
            lora_hashes: Vec::new(),
            vae: None,
            controlnets: Vec::new(),
            embeddings: Vec::new(),
            latents: None,
            image_pixels: None,
            mask_pixels: None,
            control_pixels: Vec::new(),
        }
    }

    #[test]
    fn parameters_are_what_web_uis_read() {
        assert_eq!(
            metadata().parameters(),
            "a red fox\nSteps: 25, Sampler: Euler a, Schedule type: Uniform, CFG scale: 7.5, \
             Seed: 18446744073709551615, Size: 64x32, Model hash: 0123456789, Model: emoji, RNG: CPU"
        );
        let mut other = Metadata { model: "a, b".into(), ..metadata() };
        other.request.negative_prompt = Some("blur\0ry".into());
        let text = other.parameters();
        assert!(text.starts_with("a red fox\nNegative prompt: blur ry\nSteps: 25, "), "{text}");
        assert!(text.ends_with("Model: \"a, b\", RNG: CPU"), "{text}");
        let text = Metadata { loras: vec!["snow:0.8".into(), "ice:1".into()], ..metadata() }.parameters();
        assert!(text.starts_with("a red fox <lora:snow:0.8> <lora:ice:1>\nSteps: 25, "), "{text}");
        // As create_infotext of the web UI and its extensions write them.
        let named = |name: &str, hash: &str| (name.to_owned(), hash.to_owned());
        let mut all = Metadata {
            lora_hashes: vec![named("snow", "0123456789ab"), named("ice, 2", "ba9876543210")],
            vae: Some(named("kl.safetensors", "abcdef0123")),
            controlnets: vec![named("canny", "d14c016b"), named("depth", "01234567")],
            embeddings: vec![named("bad", "111111111111")],
            ..metadata()
        };
        all.request.control_scale = vec![0.75, 1.0];
        (all.request.control_start, all.request.control_end) = (vec![0.0, 0.25], vec![1.0, 0.5]);
        let text = all.parameters();
        let end = "Model: emoji, VAE hash: abcdef0123, VAE: kl.safetensors, RNG: CPU, \
                   ControlNet 0: \"Module: none, Model: canny [d14c016b], Weight: 0.75, Resize Mode: Just Resize, \
                   Guidance Start: 0, Guidance End: 1, Control Mode: Balanced\", \
                   ControlNet 1: \"Module: none, Model: depth [01234567], Weight: 1, Resize Mode: Just Resize, \
                   Guidance Start: 0.25, Guidance End: 0.5, Control Mode: Balanced\", \
                   Lora hashes: \"snow: 0123456789ab, ice 2: ba9876543210\", TI hashes: \"bad: 111111111111\"";
        assert!(text.ends_with(end), "{text}");
    }
}
