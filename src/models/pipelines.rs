//! The pipeline classes of diffusers that have the components of Stable Diffusion 1 and 2 or of SDXL: which of them are
//! accepted, and the config values that their constructors change.

use serde_json::Value;

use crate::{error::Result, json::Object, scheduler::Repairs};

/// A pipeline class of `model_index.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineClass {
    /// The family of its components.
    pub family: Family,
    /// The changes that its constructor makes to the scheduler's config.
    pub scheduler: Repairs,
    /// Whether its constructor treats a UNet from before diffusers 0.9 with a `sample_size` below 64 as one of 64.
    pub old_sample_size: bool,
}

/// The families of pipelines, which have different components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1 and 2: one text encoder.
    StableDiffusion,
    /// SDXL: two text encoders, of which the first may be absent; a size conditioning.
    Sdxl,
}

const NOTHING: PipelineClass = PipelineClass {
    family: Family::StableDiffusion,
    scheduler: Repairs { steps_offset: false, clip_sample: false, skip_prk_steps: false },
    old_sample_size: false,
};
/// The text-to-image class, and classes that copied its constructor.
const TEXT_TO_IMAGE: PipelineClass = PipelineClass {
    family: Family::StableDiffusion,
    scheduler: Repairs { steps_offset: true, clip_sample: true, skip_prk_steps: false },
    old_sample_size: true,
};
const INPAINTING: PipelineClass = PipelineClass {
    family: Family::StableDiffusion,
    scheduler: Repairs { steps_offset: true, clip_sample: false, skip_prk_steps: true },
    old_sample_size: true,
};
const CYCLE: PipelineClass = PipelineClass {
    family: Family::StableDiffusion,
    scheduler: Repairs { steps_offset: true, clip_sample: false, skip_prk_steps: false },
    old_sample_size: true,
};

/// All classes of SDXL, whose constructors change no config.
const SDXL: PipelineClass = PipelineClass { family: Family::Sdxl, ..NOTHING };

/// The constructors of diffusers 0.42. A class that is not here is user-defined, most likely a copy of text to image.
const CLASSES: [(&str, PipelineClass); 23] = [
    ("StableDiffusionPipeline", TEXT_TO_IMAGE),
    ("StableDiffusionImg2ImgPipeline", TEXT_TO_IMAGE),
    ("StableDiffusionPAGPipeline", TEXT_TO_IMAGE),
    ("StableDiffusionPAGImg2ImgPipeline", TEXT_TO_IMAGE),
    ("StableDiffusionPAGInpaintPipeline", TEXT_TO_IMAGE),
    ("StableDiffusionPipelineSafe", TEXT_TO_IMAGE),
    ("StableDiffusionInpaintPipelineLegacy", TEXT_TO_IMAGE),
    ("LEditsPPPipelineStableDiffusion", TEXT_TO_IMAGE),
    ("StableDiffusionInpaintPipeline", INPAINTING),
    ("StableDiffusionDiffEditPipeline", INPAINTING),
    ("CycleDiffusionPipeline", CYCLE),
    ("StableDiffusionControlNetPipeline", NOTHING),
    ("StableDiffusionAttendAndExcitePipeline", NOTHING),
    ("StableDiffusionPanoramaPipeline", NOTHING),
    ("StableDiffusionSAGPipeline", NOTHING),
    ("StableDiffusionInstructPix2PixPipeline", NOTHING),
    ("StableDiffusionLDM3DPipeline", NOTHING),
    ("StableDiffusionModelEditingPipeline", NOTHING),
    ("StableDiffusionParadigmsPipeline", NOTHING),
    ("StableDiffusionGLIGENPipeline", NOTHING),
    ("SemanticStableDiffusionPipeline", NOTHING),
    ("LatentConsistencyModelPipeline", NOTHING),
    ("LatentConsistencyModelImg2ImgPipeline", NOTHING),
];

const CLIP: &[&str] = &["CLIPTextModel", "CLIPTextModelWithProjection"];
const TOKENIZERS: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
const AUTOENCODERS: &[&str] = &["AutoencoderKL", "AutoencoderTiny"];

/// The components that a pipeline must list, with their classes.
const PARTS: [(&str, &[&str]); 4] =
    [("text_encoder", CLIP), ("tokenizer", TOKENIZERS), ("unet", &["UNet2DConditionModel"]), ("vae", AUTOENCODERS)];
/// As [`PARTS`], for SDXL.
const SDXL_PARTS: [(&str, &[&str]); 4] = [
    ("text_encoder_2", &["CLIPTextModelWithProjection"]),
    ("tokenizer_2", TOKENIZERS),
    ("unet", &["UNet2DConditionModel"]),
    ("vae", AUTOENCODERS),
];
/// Components that a pipeline may list besides: those of the refiner of SDXL are absent, and the others check finished
/// pictures or encode input pictures.
const OPTIONAL_PARTS: [&str; 6] =
    ["text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor", "image_encoder"];

/// The class of the pipeline of a `model_index.json`.
///
/// # Errors
/// If the class is missing, a component is missing or has a class that sdshard does not support, or there is a component
/// that no text-to-image pipeline of Stable Diffusion 1, 2 or SDXL has: it would change the picture.
pub fn class_of(index: &Object) -> Result<PipelineClass> {
    // A pipeline with its own code names a file and a class.
    let class = match index.get("_class_name") {
        Some(Value::Array(names)) => names.last().and_then(Value::as_str),
        _ => index.text("_class_name")?,
    };
    let class = class.ok_or_else(|| index.refuse("_class_name", "the name of a pipeline's class"))?;
    // A class that is not in the list is user-defined, and is known by its components.
    let is_sdxl = class.contains("XL") || class_of_part(index, "text_encoder_2").is_some();
    let parts = if is_sdxl { &SDXL_PARTS } else { &PARTS };
    for (part, classes) in parts {
        if !class_of_part(index, part).is_some_and(|class| classes.contains(&class)) {
            return Err(index.refuse(part, &format!("of the class {}", classes[0])));
        }
    }
    let is_other = |key: &&str| {
        let known = parts.iter().map(|(part, _)| part).chain(&OPTIONAL_PARTS).any(|part| part == key);
        !key.starts_with('_') && !known && class_of_part(index, key).is_some()
    };
    if let Some(other) = index.keys().find(is_other) {
        return Err(index
            .refuse(other, "absent")
            .hint("sdshard runs pipelines of text encoders, a UNet and a VAE; another part would change the picture"));
    }
    if is_sdxl {
        return Ok(SDXL);
    }
    Ok(CLASSES.iter().find(|(name, _)| *name == class).map_or(TEXT_TO_IMAGE, |(_, class)| *class))
}

/// The class of a component that `model_index.json` lists as `[library, class]`; `None` if it is missing or null.
pub fn class_of_part<'a>(index: &'a Object, part: &str) -> Option<&'a str> {
    index.get(part)?.as_array().filter(|entry| entry.len() == 2)?[1].as_str()
}

impl PipelineClass {
    /// Changes a `unet/config.json` as the constructor of this class does.
    pub fn unet_config(self, config: Object) -> Object {
        let is_old = |version: &str| {
            let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
            (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (0, 9)
        };
        let small = config.get("sample_size").and_then(Value::as_u64).is_some_and(|size| size < 64);
        let old = config.get("_diffusers_version").and_then(Value::as_str).is_some_and(is_old);
        if self.old_sample_size && small && old { config.with("sample_size", 64) } else { config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_with_other_parts_is_rejected_by_name() {
        let index = |class: &str, vae: &str| {
            let text = format!(
                r#"{{"_class_name": {class}, "text_encoder": ["transformers", "CLIPTextModel"], "vae": {vae},
                    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"]}}"#
            );
            class_of(&Object::parse(&text, "model_index.json").unwrap())
        };
        let vae = r#"["diffusers", "AutoencoderKL"]"#;
        for (class, want) in [
            (r#""StableDiffusionPipeline""#, TEXT_TO_IMAGE),
            (r#""StableDiffusionInpaintPipeline""#, INPAINTING),
            (r#""StableDiffusionControlNetPipeline""#, NOTHING),
            (r#"["my_pipeline", "MyOwnPipeline"]"#, TEXT_TO_IMAGE),
        ] {
            assert_eq!(index(class, vae).unwrap(), want, "{class}");
        }
        for (class, vae, words) in [
            (
                r#""StableDiffusionXLPipeline""#,
                vae,
                "`text_encoder_2` must be of the class CLIPTextModelWithProjection",
            ),
            (
                r#""StableDiffusionPipeline", "controlnet": ["diffusers", "ControlNetModel"]"#,
                vae,
                "`controlnet` must be absent",
            ),
            ("null", vae, "the name of a pipeline's class"),
            ("7", vae, "a text"),
            (r#""StableDiffusionPipeline""#, "[null, null]", "`vae` must be of the class AutoencoderKL"),
            (r#""StableDiffusionPipeline""#, r#"["diffusers", "AsymmetricAutoencoderKL"]"#, "AsymmetricAutoencoderKL"),
            (r#""StableDiffusionPipeline""#, "7", "`vae` must be"),
        ] {
            let error = index(class, vae).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("model_index.json"), "{error}");
        }
    }

    #[test]
    fn a_unet_from_before_diffusers_0_9_was_made_for_64_latents() {
        for (version, size, want) in [
            (r#""0.6.0.dev0""#, "32", 64),
            (r#""0.8.1""#, "8", 64),
            (r#""0.8.1""#, "96", 96),
            (r#""0.9.0.dev0""#, "32", 32),
            (r#""0.30.0""#, "32", 32),
            ("null", "32", 32),
        ] {
            let text = format!(r#"{{"_diffusers_version": {version}, "sample_size": {size}}}"#);
            let config = |class: PipelineClass| class.unet_config(Object::parse(&text, "unet/config.json").unwrap());
            assert_eq!(config(TEXT_TO_IMAGE).get("sample_size"), Some(&want.into()), "{text}");
            assert_eq!(config(NOTHING).get("sample_size").unwrap().to_string(), size, "{text}");
        }
    }
}
