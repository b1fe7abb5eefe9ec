//! The settings that a file says its picture was drawn with: ours, or those of web UIs in `parameters`.

use std::{
    io::{BufReader, Cursor},
    path::Path,
};

use serde_json::Value;

use super::{
    container, exif,
    hashes::Named,
    latents::EXTENSION,
    metadata::{Metadata, PARAMETERS, SDSHARD},
    options::RequestOptions,
    parameters::{self, ControlUnit, Parameters},
    request::Rng,
};
use crate::{
    error::{Error, Result},
    input,
    prompt::PromptSyntax,
};

/// Keys of web UIs that do not change the picture, or that others repeat.
const WITHOUT_EFFECT: [&str; 5] = ["Version", "User", "Created Date", "Schedule type", "Hashes"];
/// Values that mean the same as no such key.
const DEFAULTS: [(&str, &str); 6] = [
    ("Emphasis", "Original"),
    ("Hires resize", "0x0"),
    ("Mask mode", "Inpaint masked"),
    ("Masked area padding", "32"),
    ("Sampler", "Undefined"),
    ("VAE", "Automatic"),
];

/// What a picture says about how it was drawn.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// The options of the request, as far as there are such options.
    pub options: RequestOptions,
    /// The generator of the noise.
    pub rng: Option<Rng>,
    /// The name of the model: a hub id, or the name of a folder or file without its extension.
    pub model: Option<String>,
    /// The beginning of the SHA-256 of the model: ten hexadecimal digits, or of old web UIs eight digits of another
    /// hash.
    pub model_hash: Option<String>,
    /// The name of another VAE than the model's.
    pub vae: Option<String>,
    /// The beginning of its SHA-256.
    pub vae_hash: Option<String>,
    /// The LoRAs of a picture of sdshard, as names and weights: `style:0.8`.
    pub loras: Vec<String>,
    /// The names of LoRAs, and the beginnings of hashes of their files.
    pub lora_hashes: Vec<Named>,
    /// The same of embeddings.
    pub embedding_hashes: Vec<Named>,
    /// The names of ControlNets in order; of web UIs with a hash: `canny [d14c016b]`.
    pub controlnets: Vec<String>,
    /// The type in which the UNet was computed.
    pub dtype: Option<String>,
    /// The digest of the noise, if it was given.
    pub latents: Option<String>,
    /// The digest of the pixels of the picture to start from.
    pub image_pixels: Option<String>,
    /// The digest of the pixels of the mask.
    pub mask_pixels: Option<String>,
    /// The digests of the pixels of the pictures that ControlNets read.
    pub control_pixels: Vec<String>,
    /// Whether a web UI wrote the settings, or sdshard itself.
    pub is_of_web_ui: bool,
    /// All that is said but has no counterpart here, as `Key: value`.
    pub not_followed: Vec<String>,
}

impl From<Metadata> for Settings {
    fn from(metadata: Metadata) -> Self {
        // Each field is named, so that a new one is not forgotten.
        let Metadata {
            model,
            model_hash,
            request,
            dtype,
            rng,
            loras,
            lora_hashes,
            vae,
            controlnets,
            embeddings: embedding_hashes,
            latents,
            image_pixels,
            mask_pixels,
            control_pixels,
        } = metadata;
        // No files, which our metadata never names, and one picture: somebody else may have written this.
        let request =
            RequestOptions { image: None, mask: None, control_image: Vec::new(), num_images: None, ..request };
        let rng = rng.parse().ok();
        let (model, model_hash, dtype) = (Some(model), Some(model_hash), Some(dtype));
        let said = Self { options: request, rng, model, model_hash, dtype, loras, latents, ..Self::default() };
        let (vae, vae_hash) = vae.unzip();
        let controlnets = controlnets.into_iter().map(|(name, _)| name).collect();
        let said = Self { lora_hashes, embedding_hashes, vae, vae_hash, controlnets, ..said };
        Self { image_pixels, mask_pixels, control_pixels, ..said }
    }
}

impl From<Parameters> for Settings {
    fn from(said: Parameters) -> Self {
        let mut settings = Self { is_of_web_ui: true, ..Self::default() };
        settings.options.prompt = Some(said.prompt.clone());
        settings.options.prompt_syntax = Some(PromptSyntax::A1111);
        settings.options.negative_prompt = Some(said.negative_prompt.clone());
        if said.settings.is_empty() {
            return settings;
        }
        settings.rng = Some(Rng::TorchCuda); // unless another one is named
        let is_hires = said.settings.iter().any(|(key, _)| key.starts_with("Hires "));
        let old_hires = said.get("First pass size");
        for (key, value) in &said.settings {
            let is_default = DEFAULTS.contains(&(key.as_str(), value.as_str()));
            if is_default || WITHOUT_EFFECT.contains(&key.as_str()) {
                continue;
            }
            let options = &mut settings.options;
            let is_followed = match key.as_str() {
                "Steps" => set(&mut options.steps, value.parse().ok()),
                "Sampler" => {
                    let kind = parameters::scheduler(value, said.get("Schedule type"));
                    set(&mut options.scheduler, kind.map(|kind| kind.to_string()))
                }
                "CFG scale" => set(&mut options.guidance_scale, value.parse().ok()),
                "Eta DDIM" if said.get("Sampler") == Some("DDIM") => set(&mut options.eta, value.parse().ok()),
                "Eta" if said.get("Sampler") == Some("TCD") => set(&mut options.eta, value.parse().ok()),
                "Seed" => set(&mut options.seed, value.parse().ok()),
                "Size" if old_hires.is_some() => false,
                "Size" => set_size(options, size(value)),
                "First pass size" => set_size(options, first_pass(value, said.get("Size"))),
                "Model" => set(&mut settings.model, Some(value.clone())),
                "Model hash" => set(&mut settings.model_hash, Some(value.clone())),
                "VAE" => set(&mut settings.vae, Some(value.clone())),
                "VAE hash" => set(&mut settings.vae_hash, Some(value.clone())),
                // Web UIs count the last layer too.
                "Clip skip" => {
                    set(&mut options.clip_skip, value.parse().ok().map(|count: usize| count.saturating_sub(1)))
                }
                "RNG" => set(&mut settings.rng, generator(value)),
                "Denoising strength" if is_hires || old_hires.is_some() => false,
                "Denoising strength" => set(&mut options.strength, value.parse().ok()),
                "Lora hashes" => {
                    settings.lora_hashes.extend(hashes(value));
                    true
                }
                "TI hashes" => {
                    settings.embedding_hashes.extend(hashes(value));
                    true
                }
                key if is_unit(key) => match ControlUnit::read(value) {
                    Some(unit) => {
                        options.control_scale.push(unit.scale);
                        options.control_start.push(unit.range.0);
                        options.control_end.push(unit.range.1);
                        settings.controlnets.push(unit.model);
                        let others = unit.others.into_iter();
                        settings.not_followed.extend(others.map(|other| format!("{key}: {other}")));
                        true
                    }
                    None => false,
                },
                _ => false,
            };
            if !is_followed {
                let schedule = said.get("Schedule type").filter(|_| key == "Sampler");
                let schedule = schedule.map(|schedule| format!(", {schedule}")).unwrap_or_default();
                settings.not_followed.push(format!("{key}: {value}{schedule}"));
            }
        }
        settings.add_civitai(&said);
        settings
    }
}

impl Settings {
    /// Reads what a picture, a file of latents, or a text file says. Of a picture this is, in this order: the JSON of
    /// sdshard, and `parameters` of web UIs, in the text chunks of a PNG or in EXIF data.
    ///
    /// # Errors
    /// If it cannot be read, has no settings, or has only those of a program whose form is not read.
    pub fn read(path: &Path) -> Result<Self> {
        let doing = || format!("reading the settings in {}", path.display());
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            return Metadata::read(path)?.map(Self::from).ok_or_else(|| no_settings().context(doing()));
        }
        let bytes = input::read(path).map_err(|error| Error::input(doing()).source(error))?;
        Self::of_file(&bytes).map_err(|error| error.context(doing()))
    }

    /// Reads the bytes of a PNG, JPEG, WebP or text file.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn of_file(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(container::PNG) {
            return Self::of_png(bytes);
        }
        if bytes.starts_with(container::JPEG) || container::is_webp(bytes) {
            let found = container::find_exif(&mut Cursor::new(bytes));
            return Self::of_exif(&found.ok_or_else(no_settings)?.exif);
        }
        match std::str::from_utf8(bytes).map(|text| text.trim_start_matches('\u{feff}').trim()) {
            Ok(text) if !text.is_empty() && !text.contains('\0') => Self::of_text(text),
            _ => Err(no_settings()),
        }
    }

    fn of_png(bytes: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(BufReader::new(Cursor::new(bytes)))
            .read_info()
            .map_err(|error| Error::input("the PNG file is damaged").source(error))?;
        // Chunks behind the pixels are rare, and a damaged end does not matter here.
        let _ = reader.finish();
        let info = reader.info();
        let plain = info.uncompressed_latin1_text.iter().map(|chunk| (&chunk.keyword, Some(chunk.text.clone())));
        let zipped = info.compressed_latin1_text.iter().map(|chunk| (&chunk.keyword, chunk.get_text().ok()));
        let utf8 = info.utf8_text.iter().map(|chunk| (&chunk.keyword, chunk.get_text().ok()));
        let texts: Vec<_> = plain.chain(zipped).chain(utf8).collect();
        let text =
            |keyword: &str| texts.iter().find(|(name, _)| *name == keyword).and_then(|(_, text)| text.as_deref());
        if let Some(metadata) = text(SDSHARD).and_then(|json| serde_json::from_str::<Metadata>(json).ok()) {
            return Ok(metadata.into());
        }
        if text("fooocus_scheme").is_some() {
            return Err(foreign("Fooocus"));
        }
        if let Some(parameters) = text(PARAMETERS) {
            return Self::of_text(parameters);
        }
        for (tool, keywords) in [
            ("InvokeAI", &["invokeai_metadata", "invokeai_graph", "invokeai_workflow", "sd-metadata", "Dream"][..]),
            ("ComfyUI", &["prompt", "workflow"]),
        ] {
            if keywords.iter().any(|keyword| text(keyword).is_some()) {
                return Err(foreign(tool));
            }
        }
        if text("Software").is_some_and(|software| software.contains("NovelAI")) {
            return Err(foreign("NovelAI"));
        }
        Self::of_exif(info.exif_metadata.as_deref().ok_or_else(no_settings)?)
    }

    fn of_exif(bytes: &[u8]) -> Result<Self> {
        let exif = exif::read(bytes);
        if let Some(metadata) = exif.json.and_then(|json| serde_json::from_str::<Metadata>(&json).ok()) {
            return Ok(metadata.into());
        }
        match exif.comment {
            Some(comment) if !comment.trim().is_empty() => Self::of_text(&comment),
            _ if exif.has_comfyui_graph => Err(foreign("ComfyUI")),
            _ => Err(no_settings()),
        }
    }

    /// Reads `parameters`, or the JSON of sdshard.
    fn of_text(text: &str) -> Result<Self> {
        if !text.trim_start().starts_with('{') {
            return Ok(Parameters::parse(text).into());
        }
        if let Ok(metadata) = serde_json::from_str::<Metadata>(text) {
            return Ok(metadata.into());
        }
        // ComfyUI writes NaN, which is not JSON, so the words decide.
        let has = |word: &str| text.contains(word);
        let tool = match () {
            () if has("\"sui_image_params\"") => "SwarmUI",
            () if has("\"class_type\"") || (has("\"nodes\"") && has("\"links\"")) => "ComfyUI",
            () if has("\"positive_prompt\"") || has("\"generation_mode\"") => "InvokeAI",
            () if serde_json::from_str::<serde_json::Map<String, Value>>(text).is_ok() => "another program",
            () => return Ok(Parameters::parse(text).into()), // a prompt may begin with a brace
        };
        Err(foreign(tool))
    }

    /// Adds what Civitai says beside the keys of web UIs.
    fn add_civitai(&mut self, said: &Parameters) {
        for (file, hash) in &said.hashes {
            match file.split_once(':') {
                None if file == "model" => _ = self.model_hash.get_or_insert_with(|| hash.clone()),
                None if file == "vae" => _ = self.vae_hash.get_or_insert_with(|| hash.clone()),
                Some(("lora", name)) => self.lora_hashes.push((name.to_string(), hash.clone())),
                Some(("embed", name)) => self.embedding_hashes.push((name.to_string(), hash.clone())),
                _ => self.not_followed.push(format!("Hashes: {file}: {hash}")),
            }
        }
        for resource in &said.resources {
            let text = |key: &str| resource.get(key).and_then(Value::as_str).unwrap_or_default();
            match (text("type"), text("modelName")) {
                ("checkpoint", "") => {}
                ("checkpoint", name) => _ = self.model.get_or_insert_with(|| name.to_string()),
                (kind, name) => {
                    let weight = resource.get("weight").map(|weight| format!(", weight {weight}")).unwrap_or_default();
                    let name = match name {
                        "" => format!("version {}", resource.get("modelVersionId").unwrap_or(&Value::Null)),
                        name => name.to_string(),
                    };
                    self.not_followed.push(format!("Civitai resource: {kind} {name}{weight}"));
                }
            }
        }
    }
}

/// Sets an option, and says whether there is a value.
fn set<T>(option: &mut Option<T>, value: Option<T>) -> bool {
    let is_there = value.is_some();
    if is_there {
        *option = value;
    }
    is_there
}

fn set_size(options: &mut RequestOptions, size: Option<(usize, usize)>) -> bool {
    let (width, height) = size.unzip();
    set(&mut options.width, width) && set(&mut options.height, height)
}

/// Width and height in `512x768`.
fn size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// The size of the first pass, of which web UIs before 2023 drew a larger picture of the `whole` size. 0x0 means about
/// as many pixels as 512x512, in multiples of 64.
fn first_pass(text: &str, whole: Option<&str>) -> Option<(usize, usize)> {
    let (width, height) = size(text)?;
    if width > 0 && height > 0 {
        return Some((width, height));
    }
    let (width, height) = whole.map_or(Some((512, 512)), size).filter(|(width, height)| *width > 0 && *height > 0)?;
    let scale = (512.0 * 512.0 / (width as f64 * height as f64)).sqrt();
    let side = |pixels: usize| (scale * pixels as f64 / 64.0).ceil() as usize * 64;
    Some((side(width), side(height)))
}

/// The generator of the noise in web UIs. "NV" computes the numbers of a GPU on the CPU.
fn generator(text: &str) -> Option<Rng> {
    match text {
        "CPU" => Some(Rng::TorchCpu),
        "GPU" | "NV" => Some(Rng::TorchCuda),
        _ => None,
    }
}

/// Whether a key is that of a ControlNet's settings.
fn is_unit(key: &str) -> bool {
    key.strip_prefix(parameters::CONTROLNET).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Names and hashes of files in `a: 0123456789, b: abcdef0123`.
fn hashes(text: &str) -> Vec<Named> {
    let entries = text.split(',').filter_map(|entry| entry.rsplit_once(':'));
    entries.map(|(name, hash)| (name.trim().to_string(), hash.trim().to_string())).collect()
}

fn no_settings() -> Error {
    Error::input("it says nothing about how it was drawn").hint(
        "a PNG, JPEG or WebP file from sdshard or a web UI that writes `parameters`, or a text file with such settings",
    )
}

fn foreign(tool: &str) -> Error {
    Error::input(format!("it has settings in the form of {tool}, which sdshard does not read"))
        .hint("its prompt, seed, steps, sampler and size as flags; or `parameters` of A1111 in a text file")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            image::{Image, PictureFormat},
            metadata::tests::metadata,
        },
        *,
    };

    fn of(text: &str) -> Settings {
        Settings::of_file(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn settings_of_a_web_ui_become_options() {
        let settings = of("a fox <lora:snow:0.8>,\nsnow\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, \
                           Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 512x768, \
                           Model hash: 0123456789, Model: \"dream, v8\", VAE hash: abcdef0123, VAE: kl.safetensors, Clip skip: 2, ENSD: 31337, \
                           Token merging ratio: 0.5, Lora hashes: \"snow: 111111111111, ice: 2222\", \
                           TI hashes: \"bad: 3333\", Emphasis: Original, Version: v1.10.1");
        let options = RequestOptions {
            prompt_syntax: Some(PromptSyntax::A1111),
            prompt: Some("a fox <lora:snow:0.8>,\nsnow".into()),
            negative_prompt: Some("blurry".into()),
            seed: Some(4_294_967_295),
            steps: Some(20),
            guidance_scale: Some(6.5),
            scheduler: Some("dpm++2m-karras".into()),
            width: Some(512),
            height: Some(768),
            clip_skip: Some(1),
            ..RequestOptions::default()
        };
        let pair = |name: &str, hash: &str| (name.to_string(), hash.to_string());
        let wanted = Settings {
            options,
            rng: Some(Rng::TorchCuda),
            model: Some("dream, v8".into()),
            model_hash: Some("0123456789".into()),
            vae: Some("kl.safetensors".into()),
            vae_hash: Some("abcdef0123".into()),
            lora_hashes: vec![pair("snow", "111111111111"), pair("ice", "2222")],
            embedding_hashes: vec![pair("bad", "3333")],
            is_of_web_ui: true,
            not_followed: vec!["ENSD: 31337".into(), "Token merging ratio: 0.5".into()],
            ..Settings::default()
        };
        assert_eq!(settings, wanted);
    }

    #[test]
    fn what_has_no_counterpart_is_listed() {
        let settings = "Steps: 20, CFG scale: 7, Seed: 1, ";
        for (more, not_followed) in [
            ("Sampler: DPM++ 2S a, Schedule type: Karras", &["Sampler: DPM++ 2S a, Karras"][..]),
            ("Sampler: DPM++ 3M SDE Exponential", &["Sampler: DPM++ 3M SDE Exponential"]),
            ("Sampler: Undefined, Clip skip: 1, VAE: Automatic", &[]),
            (
                "Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent",
                &["Denoising strength: 0.7", "Hires upscale: 2", "Hires upscaler: Latent"],
            ),
            ("Size: big, RNG: dice, Clip skip: x", &["Size: big", "RNG: dice", "Clip skip: x"]),
            ("Hashes: {\"ti:x\": \"12\"}", &["Hashes: ti:x: 12"]),
            (
                "Civitai resources: [{\"type\":\"checkpoint\",\"modelName\":\"A\"},{\"type\":\"lora\",\"weight\":0.8,\
                 \"modelVersionId\":456}]",
                &["Civitai resource: lora version 456, weight 0.8"],
            ),
        ] {
            assert_eq!(of(&format!("a\n{settings}{more}")).not_followed, not_followed, "{more}");
        }
        assert_eq!(of(&format!("a\n{settings}Denoising strength: 0.5")).options.strength, Some(0.5));
        for (more, eta, not_followed) in [
            ("Sampler: DDIM, Eta DDIM: 0.5", Some(0.5), None),
            ("Sampler: TCD, Eta: 0.3", Some(0.3), None),
            ("Sampler: Euler a, Eta: 0.5", None, Some("Eta: 0.5")),
        ] {
            let said = of(&format!("a\n{settings}{more}"));
            assert_eq!(
                (said.options.eta, said.not_followed.first().map(String::as_str)),
                (eta, not_followed),
                "{more}"
            );
        }
        let hashes =
            of(&format!("a\n{settings}Hashes: {{\"model\": \"0123456789\", \"lora:x\": \"ab\", \"embed:y\": \"c\"}}"));
        assert_eq!(hashes.model_hash.as_deref(), Some("0123456789"));
        assert_eq!((hashes.lora_hashes.len(), hashes.embedding_hashes.len()), (1, 1));
    }

    #[test]
    fn controlnets_of_a_web_ui_are_settings_of_their_controls() {
        let unit = "Module: {M}, Model: canny [d14c016b], Weight: 0.8, Resize Mode: {R}, Low Vram: False, \
                    Processor Res: 512, Threshold A: 100, Threshold B: 200, Guidance Start: 0.1, Guidance End: 0.9, \
                    Pixel Perfect: False, Control Mode: Balanced, Hr Option: Both, Save Detected Map: True";
        let settings = |module: &str, resize: &str| {
            let unit = unit.replace("{M}", module).replace("{R}", resize);
            of(&format!(
                "a\nSteps: 20, CFG scale: 7, Seed: 1, ControlNet 0: \"{unit}\", ControlNet 1: \"Module: none\""
            ))
        };
        let said = settings("None", "Just Resize");
        let RequestOptions { control_scale, control_start, control_end, .. } = &said.options;
        assert_eq!((&control_scale[..], &control_start[..], &control_end[..]), (&[0.8][..], &[0.1][..], &[0.9][..]));
        assert_eq!(said.controlnets, ["canny [d14c016b]"]);
        assert_eq!(said.not_followed, ["ControlNet 1: Module: none"], "there is no model");
        let said = settings("canny", "Crop and Resize");
        assert_eq!(
            said.not_followed[..2],
            ["ControlNet 0: Module: canny", "ControlNet 0: Resize Mode: Crop and Resize"]
        );
    }

    #[test]
    fn the_generator_is_the_gpus_unless_one_is_named() {
        for (more, rng) in [
            ("Size: 8x8", Rng::TorchCuda),
            ("RNG: GPU", Rng::TorchCuda),
            ("RNG: NV", Rng::TorchCuda),
            ("RNG: CPU", Rng::TorchCpu),
        ] {
            assert_eq!(of(&format!("a\nSteps: 1, Seed: 2, {more}")).rng, Some(rng), "{more}");
        }
        assert_eq!(of("a prompt alone").rng, None);
    }

    #[test]
    fn old_hires_fix_drew_a_smaller_picture_first() {
        for (first, size, wanted) in [
            ("512x768", "1024x1536", (512, 768)),
            ("0x0", "1024x1024", (512, 512)),
            ("0x0", "1024x1536", (448, 640)), // 418.04 and 627.07, rounded up to multiples of 64
        ] {
            let said =
                of(&format!("a\nSteps: 1, Seed: 2, Size: {size}, First pass size: {first}, Denoising strength: 0.7"));
            assert_eq!(
                (said.options.width.zip(said.options.height), said.options.strength),
                (Some(wanted), None),
                "{first}"
            );
            assert_eq!(said.not_followed, [format!("Size: {size}"), "Denoising strength: 0.7".into()]);
        }
    }

    #[test]
    fn what_is_written_is_read_in_every_format() {
        let mut metadata = metadata();
        metadata.request.prompt = Some("ein \"Füchslein\": rot, 🦊\nNegative prompt of a prompt".into());
        metadata.request.negative_prompt = Some("a, b: c\nd".into());
        metadata.model = "org/dream: v8, \"x\"".into();
        let wanted = Settings::from(metadata.clone());
        let syntax = Some(PromptSyntax::A1111);
        let as_web_uis_read = RequestOptions { prompt_syntax: syntax, ..wanted.options.clone() };
        let image = Image { width: 2, height: 2, rgb: vec![7; 12] };
        for format in [PictureFormat::Png, PictureFormat::Jpeg, PictureFormat::WebP] {
            let bytes = image.encode(format, &metadata).unwrap();
            assert_eq!(Settings::of_file(&bytes).unwrap(), wanted, "{format:?}");
            if format == PictureFormat::Png {
                continue;
            }
            // Web UIs read the other text.
            let exif = container::find_exif(&mut Cursor::new(&bytes)).unwrap().exif;
            let at = exif.windows(8).position(|window| window == b"sdshard:").unwrap();
            let hidden = [&exif[..at], b"sdshare:", &exif[at + 8..]].concat();
            let said = Settings::of_exif(&hidden).unwrap();
            assert!(said.is_of_web_ui && said.not_followed.is_empty(), "{said:?}");
            assert_eq!(said.options, as_web_uis_read);
            assert_eq!((&said.model, &said.model_hash, said.rng), (&wanted.model, &wanted.model_hash, wanted.rng));
        }
        assert_eq!(of(&metadata.json()), wanted);
        assert_eq!(of(&metadata.parameters()).options, as_web_uis_read);
    }

    /// A PNG with these text chunks: keyword, text, and which kind of chunk.
    fn png_with(texts: &[(&str, &str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        for (keyword, text, kind) in texts {
            match *kind {
                "tEXt" => encoder.add_text_chunk(keyword.to_string(), text.to_string()),
                "zTXt" => encoder.add_ztxt_chunk(keyword.to_string(), text.to_string()),
                _ => encoder.add_itxt_chunk(keyword.to_string(), text.to_string()),
            }
            .unwrap();
        }
        encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
        bytes
    }

    #[test]
    fn text_chunks_of_every_kind_are_read() {
        for kind in ["tEXt", "zTXt", "iTXt"] {
            let said =
                Settings::of_file(&png_with(&[("parameters", "a fox\nSteps: 3, Seed: 1, Size: 8x8", kind)])).unwrap();
            assert_eq!((said.options.steps, said.options.prompt.as_deref()), (Some(3), Some("a fox")), "{kind}");
        }
        // `parameters` is preferred to a graph, and JSON of another version is no JSON of ours.
        let both = [("prompt", "{}", "tEXt"), ("sdshard", "{\"x\": 1}", "tEXt"), ("parameters", "b", "tEXt")];
        assert_eq!(Settings::of_file(&png_with(&both)).unwrap().options.prompt.as_deref(), Some("b"));
    }

    #[test]
    fn settings_of_other_programs_are_rejected_with_their_names() {
        let comfy = r#"{"3": {"class_type": "KSampler", "inputs": {"seed": 1, "denoise": NaN}}}"#;
        let png = |keyword: &str, text: &str| png_with(&[(keyword, text, "tEXt")]);
        for (bytes, tool) in [
            (png("prompt", comfy), "ComfyUI"),
            (png("workflow", r#"{"nodes": [], "links": []}"#), "ComfyUI"),
            (png("invokeai_metadata", "{}"), "InvokeAI"),
            (png("sd-metadata", "{}"), "InvokeAI"),
            (png("parameters", r#"{"sui_image_params": {"prompt": "a"}}"#), "SwarmUI"),
            (png_with(&[("fooocus_scheme", "fooocus", "tEXt"), ("parameters", "{}", "tEXt")]), "Fooocus"),
            (png_with(&[("Software", "NovelAI", "tEXt"), ("Comment", "{}", "tEXt")]), "NovelAI"),
            (comfy.into(), "ComfyUI"),
            (r#"{"generation_mode": "txt2img", "positive_prompt": "a"}"#.into(), "InvokeAI"),
            (r#"{"x": 1}"#.into(), "another program"),
        ] {
            let error = Settings::of_file(&bytes).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(&format!("in the form of {tool}, which")), "{tool}: {error}");
        }
        assert_eq!(of("{a|b} fox").options.prompt.as_deref(), Some("{a|b} fox"));
    }

    #[test]
    fn files_without_settings_are_rejected() {
        let image = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let jpeg = image.encode(PictureFormat::Jpeg, &metadata()).unwrap();
        let place = container::find_exif(&mut Cursor::new(&jpeg)).unwrap().place;
        let plain = container::without_exif(&jpeg, &place).unwrap();
        for bytes in
            [&png_with(&[])[..], &plain, b"", b" \n", b"a\0b", b"\xff\xfe", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0"]
        {
            let error = Settings::of_file(bytes).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("says nothing about"), "{error}");
        }
        let error = Settings::of_file(b"\x89PNG\r\n\x1a\n").unwrap_err();
        assert!(error.to_string().contains("the PNG file is damaged"), "{error}");
        let error = Settings::read(Path::new("/nowhere/a.png")).unwrap_err();
        assert!(
            error.exit_code() == 2 && error.to_string().starts_with("reading the settings in /nowhere/a.png"),
            "{error}"
        );
    }
}
