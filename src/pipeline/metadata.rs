//! What a finished file says about how it was made: enough to make it again, and nothing about where.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufReader, Cursor},
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
    input,
    weights::Fnv,
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
    /// The type in which the UNet was computed, as `--dtype` names it; `f16+f32` if its devices have several.
    pub dtype: String,
    /// The generator of the noise, as `--rng` names it.
    pub rng: String,
    /// A hash over the starting noise, where it was given rather than made from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents: Option<String>,
}

impl Metadata {
    /// What a picture of `request` says about itself; `model_hash` is the model's [`identity`](Model::identity), `dtypes`
    /// those of the devices that run the UNet.
    ///
    /// # Errors
    /// If the model has no such scheduler.
    pub fn new(request: &Request, model: &Model, model_hash: &str, dtypes: &[DType]) -> Result<Self> {
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
            dtype: dtypes
                .iter()
                .map(|dtype| dtype.name())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join("+"),
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

    /// Eight hexadecimal digits over all of it, for names of files.
    pub fn digest(&self) -> String {
        let mut hash = Fnv::new();
        hash.write(self.json().as_bytes());
        format!("{:08x}", (hash.0 >> 32) ^ (hash.0 & 0xffff_ffff))
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
    /// writes, or if this is no regular file. Fails only if the file cannot be opened.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let refuse = |e| Error::input(format!("reading {}", path.display())).source(e);
        if !fs::metadata(path).map_err(refuse)?.is_file() {
            return Ok(None);
        }
        let file = input::open(path).map_err(refuse)?;
        let json = if is_latents(path) {
            latents::read_text(file, SDSHARD)
        } else {
            png::Decoder::new(BufReader::new(file)).read_info().ok().and_then(|reader| png_text(reader.info()))
        };
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Whether a PNG or latent file says this about itself and is there, undamaged and to its end. All of it is read: the
    /// checksum of each chunk of a PNG and its image data; the header, the size and the values of latents. Fails only if the
    /// file cannot be read.
    pub fn is_whole(&self, path: &Path) -> Result<bool> {
        if is_latents(path) {
            return Ok(Self::read(path)?.as_ref() == Some(self) && Latents::read(path).is_ok());
        }
        let refuse = |e| Error::input(format!("reading {}", path.display())).source(e);
        let is_file = fs::metadata(path).map_err(refuse)?.is_file();
        Ok(is_file && self.is_whole_png(&input::read(path).map_err(refuse)?))
    }

    /// Whether a PNG or latent file says this about itself, but for the content of the model's files.
    pub fn is_of_changed_model(&self, path: &Path) -> bool {
        let said = Self::read(path).ok().flatten();
        said.is_some_and(|said| {
            said.model_hash != self.model_hash && Self { model_hash: self.model_hash.clone(), ..said } == *self
        })
    }

    fn is_whole_png(&self, bytes: &[u8]) -> bool {
        let mut options = png::DecodeOptions::default();
        options.set_ignore_checksums(false);
        options.set_skip_ancillary_crc_failures(false);
        let read = || {
            let mut reader = png::Decoder::new_with_options(Cursor::new(bytes), options).read_info().ok()?;
            let info = reader.info();
            let said: Self = serde_json::from_str(&png_text(info)?).ok()?;
            if said != *self || (info.width as usize, info.height as usize) != (self.width, self.height) {
                return None; // before memory is taken for what a file claims
            }
            let mut pixels = vec![0; reader.output_buffer_size()?];
            reader.next_frame(&mut pixels).ok()?;
            reader.finish().ok()
        };
        bytes.ends_with(&PNG_END) && read().is_some()
    }
}

/// Whether a file of this name holds latents rather than pixels.
fn is_latents(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == latents::EXTENSION)
}

/// The last chunk of every PNG: no bytes, `IEND`, and their checksum.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// The text chunk with [`Metadata`], which stands before the image data.
fn png_text(info: &png::Info) -> Option<String> {
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == SDSHARD);
    let utf8 = || info.utf8_text.iter().find(|chunk| chunk.keyword == SDSHARD)?.get_text().ok();
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
    use crate::{
        output::{self, Durability},
        pipeline::Image,
    };

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
            output::write(&png, &image.encode_png(&metadata).unwrap(), Durability::Buffered).unwrap();
            assert_eq!(Metadata::read(&png).unwrap(), Some(metadata.clone()));

            let latent = folder.path().join("a.safetensors");
            output::write(&latent, &latents.encode(&metadata).unwrap(), Durability::Buffered).unwrap();
            assert_eq!(Metadata::read(&latent).unwrap(), Some(metadata));
        }
    }

    #[test]
    fn damage_anywhere_in_a_picture_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let said = Metadata { width: 16, height: 16, ..metadata() };
        let is_whole = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            said.is_whole(&path).unwrap()
        };
        let rgb = (0..16 * 16 * 3).map(|i| (i * i % 251) as u8).collect();
        let bytes = Image { width: 16, height: 16, rgb }.encode_png(&said).unwrap();
        assert!(is_whole(&bytes));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(!is_whole(&damaged), "byte {at} of {}", bytes.len());
        }
        for length in 0..bytes.len() {
            assert!(!is_whole(&bytes[..length]), "{length} of {} bytes", bytes.len());
        }
        assert!(!is_whole(&[&bytes[..], b"more"].concat()));
        let other = Metadata { seed: 1, ..said.clone() };
        fs::write(&path, &bytes).unwrap();
        assert!(!other.is_whole(&path).unwrap(), "whole, but another picture");
        // A piece from the middle is missing, or zeros are in its place, as a disk leaves them that lost power.
        let (a, b) = (bytes.len() / 2, bytes.len() / 2 + 40);
        assert!(!is_whole(&[&bytes[..a], &bytes[b..]].concat()));
        assert!(!is_whole(&[&bytes[..a], &[0; 40], &bytes[b..]].concat()));
    }

    #[test]
    fn latents_that_are_cut_off_or_too_long_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let is_whole = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            metadata().is_whole(&path).unwrap()
        };
        let latents = Latents { channels: 1, height: 2, width: 2, values: vec![0.5; 4] };
        let bytes = latents.encode(&metadata()).unwrap();
        assert!(is_whole(&bytes));
        for length in 0..bytes.len() {
            assert!(!is_whole(&bytes[..length]), "{length} of {} bytes", bytes.len());
        }
        assert!(!is_whole(&[&bytes[..], b"more"].concat()));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_says_nothing_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("a.png");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(Metadata::read(path).unwrap(), None, "{}", path.display());
            assert!(!metadata().is_whole(path).unwrap(), "{}", path.display());
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
