//! What a finished file says about how it was made: enough to make it again, and nothing about where.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    latents::{self, Latents},
    model::Model,
    request::{Request, Start},
};
use crate::{
    backend::DType,
    error::{Error, Result},
};

/// Text chunk in the form that Stable Diffusion web UIs read.
pub(super) const PARAMETERS: &str = "parameters";
/// Text chunk with [`Metadata`] as JSON.
pub(super) const SDSHARD: &str = "sdshard";

/// The whole request behind one file: equal metadata, equal picture (for one numerics class).
///
/// No paths, devices or times, so that the same request gives the same file everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)] // a field from another version is a difference
pub struct Metadata {
    /// Hub id or folder name.
    pub model: String,
    /// Ten hexadecimal digits of the model's [`identity`](Model::identity).
    pub model_hash: String,
    /// What to draw.
    pub prompt: String,
    /// What to keep away from.
    pub negative_prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Strength of guidance.
    pub guidance_scale: f32,
    /// The solver, as `--scheduler` names it.
    pub scheduler: String,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// The type in which the UNet was computed, as `--dtype` names it.
    pub dtype: String,
    /// The generator of the noise, as `--rng` names it.
    pub rng: String,
    /// A hash over the starting noise, where it was given rather than made from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents: Option<String>,
}

impl Metadata {
    /// What a picture of `request` says about itself; `model_hash` is the model's [`identity`](Model::identity), `dtype` the
    /// plan's for the UNet.
    ///
    /// # Errors
    /// If the model has no such scheduler.
    pub fn new(request: &Request, model: &Model, model_hash: &str, dtype: DType) -> Result<Self> {
        let (spec, scale) = (&model.spec, model.spec.vae.scale());
        let digest = |values: &std::sync::Arc<[f32]>| {
            let (height, width) = (request.height / scale, request.width / scale);
            Latents { channels: spec.unet.in_channels, height, width, values: values.to_vec() }.digest()
        };
        Ok(Self {
            model: model.files.name().to_string(),
            model_hash: model_hash.to_string(),
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            seed: request.seed,
            steps: request.steps,
            guidance_scale: request.guidance_scale,
            scheduler: spec.scheduler_for(request.scheduler)?.kind().to_string(),
            width: request.width,
            height: request.height,
            dtype: dtype.name().to_string(),
            rng: request.rng.to_string(),
            latents: match &request.start {
                Start::Noise => None,
                Start::Latents(values) => Some(digest(values)),
            },
        })
    }

    /// The JSON of the `sdshard` text chunk.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers can always be written as JSON")
    }

    /// The text that Stable Diffusion web UIs read: prompt, negative prompt, and one line of settings.
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text += &format!("\nNegative prompt: {}", self.negative_prompt);
        }
        text += &format!(
            "\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model hash: {}, Model: {}",
            self.steps,
            sampler(&self.scheduler),
            self.guidance_scale,
            self.seed,
            self.width,
            self.height,
            self.model_hash,
            quoted(&self.model),
        );
        text.replace('\0', " ") // which ends a text chunk
    }

    /// Reads what a PNG or latent file says about itself. `None` if that is nothing, or not in a form that this version
    /// writes. Fails only if the file cannot be opened.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let file = File::open(path).map_err(|e| Error::input(format!("reading {}", path.display())).source(e))?;
        let json = match path.extension() {
            Some(extension) if extension == latents::EXTENSION => latents::read_text(file, SDSHARD),
            _ => png_text(file, SDSHARD),
        };
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Whether a PNG or latent file is there to its end: copies and full disks cut files off. Fails only if the file cannot
    /// be read.
    pub fn is_whole(path: &Path) -> Result<bool> {
        if path.extension().is_some_and(|extension| extension == latents::EXTENSION) {
            return Ok(latents::Latents::read(path).is_ok());
        }
        let refuse = |e| Error::input(format!("reading {}", path.display())).source(e);
        let mut file = File::open(path).map_err(refuse)?;
        let mut end = [0; PNG_END.len()];
        let long_enough = file.metadata().map_err(refuse)?.len() >= end.len() as u64;
        if long_enough {
            file.seek(SeekFrom::End(-(end.len() as i64))).and_then(|_| file.read_exact(&mut end)).map_err(refuse)?;
        }
        Ok(long_enough && end == PNG_END)
    }
}

/// The last chunk of every PNG: no bytes, `IEND`, and their checksum.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// A text chunk from before the image data.
fn png_text(file: File, keyword: &str) -> Option<String> {
    let reader = png::Decoder::new(BufReader::new(file)).read_info().ok()?;
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword);
    let utf8 = || info.utf8_text.iter().find(|chunk| chunk.keyword == keyword)?.get_text().ok();
    latin1.map(|chunk| chunk.text.clone()).or_else(utf8)
}

/// What web UIs call a scheduler.
fn sampler(scheduler: &str) -> &str {
    match scheduler {
        "pndm" => "PLMS",
        "ddim" => "DDIM",
        "euler" => "Euler",
        "euler-ancestral" => "Euler a",
        "dpm++2m" => "DPM++ 2M",
        "dpm++2m-karras" => "DPM++ 2M Karras",
        other => other,
    }
}

/// A value of the settings line; in quotes if it would break the line up.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) { format!("{value:?}") } else { value.to_string() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pipeline::{Image, output};

    pub(crate) fn metadata() -> Metadata {
        Metadata {
            model: "emoji".into(),
            model_hash: "0123456789".into(),
            prompt: "a red fox".into(),
            negative_prompt: String::new(),
            seed: u64::MAX,
            steps: 25,
            guidance_scale: 7.5,
            scheduler: "euler-ancestral".into(),
            width: 64,
            height: 32,
            dtype: "f32".into(),
            rng: "cpu".into(),
            latents: None,
        }
    }

    #[test]
    fn parameters_are_what_web_uis_read() {
        assert_eq!(
            metadata().parameters(),
            "a red fox\nSteps: 25, Sampler: Euler a, CFG scale: 7.5, Seed: 18446744073709551615, Size: 64x32, \
             Model hash: 0123456789, Model: emoji"
        );
        let other = Metadata { negative_prompt: "blur\0ry".into(), model: "a, b".into(), ..metadata() };
        let text = other.parameters();
        assert!(text.starts_with("a red fox\nNegative prompt: blur ry\nSteps: 25, "), "{text}");
        assert!(text.ends_with("Model: \"a, b\""), "{text}");
    }

    #[test]
    fn files_say_what_they_were_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image { width: 1, height: 1, rgb: vec![1, 2, 3] };
        let latents = Latents { channels: 1, height: 1, width: 1, values: vec![0.5] };
        for metadata in [
            metadata(),
            Metadata {
                prompt: "ünï \0 🦊 \"quoted\"\n".into(),
                guidance_scale: 0.1,
                latents: Some("ab".into()),
                ..metadata()
            },
        ] {
            let png = folder.path().join("a.png");
            output::write(&png, &image.encode_png(&metadata).unwrap()).unwrap();
            assert_eq!(Metadata::read(&png).unwrap(), Some(metadata.clone()));

            let latent = folder.path().join("a.safetensors");
            output::write(&latent, &latents.encode(&metadata).unwrap()).unwrap();
            assert_eq!(Metadata::read(&latent).unwrap(), Some(metadata));
        }
    }

    #[test]
    fn other_files_say_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "a.safetensors"] {
            let path = folder.path().join(name);
            assert_eq!(Metadata::read(&path).unwrap_err().exit_code(), 2);
            for bytes in
                [&b""[..], b"\x89PNG\r\n\x1a\n", b"\x02\0\0\0\0\0\0\0{}", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"]
            {
                std::fs::write(&path, bytes).unwrap();
                assert_eq!(Metadata::read(&path).unwrap(), None, "{name} {bytes:?}");
            }
        }
        let mut json: serde_json::Value = serde_json::from_str(&metadata().json()).unwrap();
        json["of_tomorrow"] = 1.into();
        assert!(serde_json::from_value::<Metadata>(json).is_err(), "an unknown field is a difference");
    }
}
