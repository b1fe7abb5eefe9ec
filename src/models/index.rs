//! The contents of a model folder: `model_index.json`, the configs that it refers to, and the optional `sdshard.toml`.
//! They are read and checked once; all other code relies on the result.
//!
//! A missing key has the default of its class in diffusers or transformers. A value that the networks here do not
//! implement is an error that names the file and the key, because the picture would be wrong.

use serde_json::Value;

use super::{
    autoencoder::AutoencoderSpec,
    clip::ClipSpec,
    config::{COUNTS, WIDTHS},
    controlnet::{ControlNetSpec, MAX_CONTROLNETS},
    defaults::Defaults,
    network::NetworkSpec,
    pipelines::{self, Family},
    spec::{ComponentSpec, LatentSpec, Listed, ModelSpec, SdxlSpec},
    tiny_vae::TinyVaeSpec,
    unet::UnetSpec,
    vae::VaeSpec,
};
use crate::{
    error::{Error, Result},
    json::Object,
    scheduler::SchedulerFile,
    weights::{CONTROLNET, ModelFiles, files::MODEL_INDEX},
};

/// The optional file of defaults beside `model_index.json`.
pub(super) const DEFAULTS: &str = "sdshard.toml";
/// The path of the scheduler's file.
pub(super) const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// The name of the optional settings in a tokenizer's folder.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The part that checks finished pictures in diffusers.
const SAFETY_CHECKER: &str = "safety_checker";

/// The number of parameters of a `StableDiffusionSafetyChecker`, a CLIP vision tower with a projection and twenty
/// concepts, from the text of its `config.json`.
fn safety_checker_parameters(text: &str, file: &str) -> Result<u64> {
    let config = Object::parse(text, file)?;
    let vision = config.get("vision_config").map_or_else(|| "{}".to_owned(), Value::to_string);
    let vision = Object::parse(&vision, format!("{file}: vision_config"))?;
    let size = |key: &str, default: usize| Ok::<_, Error>(vision.size(key, WIDTHS)?.unwrap_or(default) as u64);
    let (width, inner) = (size("hidden_size", 768)?, size("intermediate_size", 3072)?);
    let layers = vision.size("num_hidden_layers", COUNTS)?.unwrap_or(12) as u64;
    let (image, patch, channels) = (size("image_size", 224)?, size("patch_size", 32)?, size("num_channels", 3)?);
    let projection = config.size("projection_dim", WIDTHS)?.unwrap_or(512) as u64;
    let norm = 2 * width;
    let embeddings = width + channels * patch * patch * width + ((image / patch).pow(2) + 1) * width;
    let layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 2 * norm;
    // Each of 17 concepts and 3 special-care concepts has a direction and a threshold.
    Ok(embeddings + norm + layers * layer + norm + width * projection + 20 * (projection + 1))
}

/// The parts that `index` lists and does not set to null.
fn listed(index: &Object, files: &ModelFiles) -> Result<Vec<Listed>> {
    let is_there = |name: &&str| index.get(name).and_then(|entry| entry.get(1)).is_some_and(Value::is_string);
    let part = |name: &str| {
        let config = format!("{name}/config.json");
        let parameters = match name {
            SAFETY_CHECKER if files.exists(&config) => {
                Some(safety_checker_parameters(&files.text(&config)?, &files.path_of(&config))?)
            }
            _ => None,
        };
        Ok(Listed { name: name.to_owned(), parameters })
    };
    index.keys().filter(is_there).map(part).collect()
}

impl ModelSpec {
    /// Reads `model_index.json`, every component's config and, if it exists, `sdshard.toml`.
    ///
    /// # Errors
    /// If the class of the pipeline or of a component is not supported, a value is not supported, or two components do
    /// not fit together.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let index = Object::parse(&files.text(MODEL_INDEX)?, files.path_of(MODEL_INDEX))?;
        let pipeline = pipelines::class_of(&index)?;
        let read = |path: &str| Ok::<_, Error>((files.text(path)?, files.path_of(path)));
        let is_sdxl = pipeline.family == Family::Sdxl;
        let text_encoder = |number: &str, is_pooled: bool| {
            let (text, file) = read(&format!("text_encoder{number}/config.json"))?;
            let mut encoder = match is_sdxl {
                true => ClipSpec::for_sdxl(&text, &file, is_pooled)?,
                false => ClipSpec::from_json(&text, &file)?,
            };
            let settings = format!("tokenizer{number}/{TOKENIZER_CONFIG}");
            if files.exists(&settings) {
                let (text, file) = read(&settings)?;
                encoder.text_length = text_length(&Object::parse(&text, file)?, encoder.text_length)?;
            }
            Ok::<_, Error>((format!("text_encoder{number}"), encoder))
        };
        let mut text_encoders = Vec::new();
        if pipelines::class_of_part(&index, "text_encoder").is_some() {
            text_encoders.push(text_encoder("", false)?);
        }
        if is_sdxl {
            text_encoders.push(text_encoder("_2", true)?);
        }
        let (text, file) = read("unet/config.json")?;
        let unet =
            UnetSpec::from_json(&pipeline.unet_config(Object::parse(&text, &file)?).to_value().to_string(), &file)?;
        let mut controlnets = Vec::new();
        for name in controlnet_names().take_while(|name| files.own_weights(name).is_some()) {
            let (text, file) = read(&format!("{name}/config.json"))?;
            let spec = ControlNetSpec::from_json(&text, &file, &unet)?;
            controlnets.push(ComponentSpec::new(name, NetworkSpec::ControlNet(spec)));
        }
        if controlnets.len() > MAX_CONTROLNETS {
            return Err(Error::input(format!("a model can have {MAX_CONTROLNETS} ControlNets"))
                .found(controlnets.len().to_string()));
        }
        let (text, file) = read("vae/config.json")?;
        let config = Object::parse(&text, &file)?;
        let vae = match config.text("_class_name")?.or(pipelines::class_of_part(&index, "vae")) {
            Some(TinyVaeSpec::CLASS) => AutoencoderSpec::Tiny(TinyVaeSpec::from_json(&text, &file)?),
            _ if is_sdxl => AutoencoderSpec::Kl(VaeSpec::for_sdxl(&text, &file)?),
            _ => AutoencoderSpec::Kl(VaeSpec::from_json(&text, &file)?),
        };
        let sdxl = match is_sdxl {
            true => Some(SdxlSpec {
                zeros_without_negative: index.flag("force_zeros_for_empty_prompt", true)?,
                takes_aesthetic_score: index.flag("requires_aesthetics_score", false)?,
            }),
            false => None,
        };
        let (text, file) = read(SCHEDULER)?;
        let class = pipelines::class_of_part(&index, "scheduler");
        let class = class.ok_or_else(|| index.refuse("scheduler", "a library and the name of a scheduler's class"))?;
        let scheduler = SchedulerFile::parse(&text, &file, class, pipeline.scheduler)?;
        check_fit(files.name(), &text_encoders, &unet, &vae, sdxl)?;
        let text = if files.exists(DEFAULTS) { files.text(DEFAULTS)? } else { String::new() };
        // The default of diffusers' pipelines.
        let guidance_scale = if is_sdxl { 5.0 } else { 7.5 };
        let size = [unet.sample_height, unet.sample_width];
        let defaults = Defaults::from_toml(&text, &files.path_of(DEFAULTS), guidance_scale, size, vae.scale())?;
        if let Some(kind) = defaults.scheduler {
            scheduler.with_kind(kind)?;
        }
        let latents = LatentSpec {
            channels: vae.latent_channels(),
            scale: vae.scale(),
            height: unet.sample_height,
            width: unet.sample_width,
        };
        let encoders = text_encoders.into_iter().map(|(name, spec)| ComponentSpec::new(name, NetworkSpec::Clip(spec)));
        let component = |(name, network): (&str, NetworkSpec)| ComponentSpec::new(name.to_owned(), network);
        let [unet, vae] = [("unet", NetworkSpec::Unet(unet)), ("vae", NetworkSpec::VaeDecoder(vae))].map(component);
        let others = [unet].into_iter().chain(controlnets).chain([vae]);
        let spec = Self {
            components: encoders.chain(others).collect::<Vec<_>>().into(),
            latents,
            scheduler,
            defaults,
            listed: listed(&index, files)?,
            sdxl,
        };
        Ok(if spec.takes_mask() { spec.with_image_encoder() } else { spec })
    }
}

/// The names of a model's ControlNets: `controlnet`, `controlnet_1`, ….
pub(super) fn controlnet_names() -> impl Iterator<Item = String> {
    (0..).map(|i| if i == 0 { CONTROLNET.to_owned() } else { format!("{CONTROLNET}_{i}") })
}

/// Fails if the networks of a model do not fit together.
fn check_fit(
    model: &str,
    text_encoders: &[(String, ClipSpec)],
    unet: &UnetSpec,
    vae: &AutoencoderSpec,
    sdxl: Option<SdxlSpec>,
) -> Result<()> {
    let specs = || text_encoders.iter().map(|(_, spec)| spec);
    let width = specs().map(|spec| spec.hidden_size).sum();
    let length = specs().next().map_or(0, |spec| spec.text_length);
    let numbers = |sdxl: SdxlSpec| {
        let pooled: usize = specs().filter_map(|spec| spec.pooled).map(|pooled| pooled.width).sum();
        pooled + sdxl.numbers(0, 0, false).len() * unet.added.map_or(0, |added| added.number_width)
    };
    let latents = vae.latent_channels();
    // An inpainting model takes a mask and the latents of the picture around it too.
    let beside = if unet.in_channels == 2 * latents + 1 { latents + 1 } else { 0 };
    let sizes = [
        ("cross_attention_dim of the UNet, the text encoders' hidden_size,", width, unet.cross_attention_dim),
        ("in_channels of the UNet, the VAE's latent_channels,", latents, unet.in_channels - beside),
        ("out_channels of the UNet, the VAE's latent_channels,", latents, unet.out_channels),
        (
            "projection_class_embeddings_input_dim of the UNet, 0 unless the pipeline is one of SDXL,",
            sdxl.map_or(0, numbers),
            unet.added.map_or(0, |added| added.input_width),
        ),
    ];
    let lengths = specs().map(|spec| ("the length of a text of all text encoders", length, spec.text_length));
    match sizes.into_iter().chain(lengths).find(|(_, wanted, found)| wanted != found) {
        None => Ok(()),
        Some((what, wanted, found)) => {
            let parts = format!("the parts of the model {model} do not fit together");
            Err(Error::input(format!("{parts}: {what} must be {wanted}")).found(found.to_string()))
        }
    }
}

/// The number of tokens in one text according to a `tokenizer_config.json`, in which 1e30 means no limit.
fn text_length(config: &Object, positions: usize) -> Result<usize> {
    let key = if config.get("model_max_length").is_some() { "model_max_length" } else { "max_len" };
    Ok(config.float(key, 2.0..=f64::INFINITY)?.map_or(positions, |length| (length as usize).min(positions)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{clip::TextActivation, unet::MidBlock};

    const SD15_UNET: &str = r#"{
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;
    const SD15_VAE: &str = r#"{
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
        "sample_size": 512, "up_block_types":
        ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

    /// Returns `text` with `key` set to the JSON `value`, or without `key` if `value` is empty.
    fn with(text: &str, key: &str, value: &str) -> String {
        let mut object: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
        if value.is_empty() {
            object.remove(key).unwrap();
        } else {
            object.insert(key.to_owned(), serde_json::from_str(value).unwrap());
        }
        Value::Object(object).to_string()
    }

    #[test]
    fn a_text_is_as_long_as_the_tokenizer_says_where_there_are_positions() {
        for (config, length) in [
            (r#"{"model_max_length": 64}"#, 64),
            (r#"{"model_max_length": 77}"#, 77),
            (r#"{"model_max_length": 512}"#, 77),
            (r#"{"model_max_length": 1000000000000000019884624838656}"#, 77),
            (r#"{"max_len": 20, "model_max_length": null}"#, 20),
            (r#"{"max_len": 20, "model_max_length": 32.0}"#, 32),
            ("{}", 77),
        ] {
            assert_eq!(text_length(&Object::parse(config, "x").unwrap(), 77).unwrap(), length, "{config}");
        }
        let error = text_length(&Object::parse(r#"{"model_max_length": 1}"#, "x").unwrap(), 77).unwrap_err();
        assert!(error.to_string().contains("x: `model_max_length` must be"), "{error}");
    }

    #[test]
    fn reads_the_built_in_model() {
        let files = ModelFiles::folder(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji")).unwrap();
        let spec = ModelSpec::load(&files).unwrap();
        let networks: Vec<_> = spec.components.iter().map(|(_, component)| &component.network).collect();
        let [NetworkSpec::Clip(clip), NetworkSpec::Unet(unet), NetworkSpec::VaeDecoder(AutoencoderSpec::Kl(vae))] =
            networks[..]
        else {
            panic!("{:?}", spec.names());
        };
        assert_eq!(spec.names(), ["text_encoder", "unet", "vae"]);
        assert_eq!(clip.max_position_embeddings, 32);
        assert_eq!(clip.activation, TextActivation::QuickGelu);
        assert_eq!(unet.block_out_channels, [64, 128, 224]);
        assert_eq!(unet.down_attention, [false, true, true]);
        assert_eq!(unet.up_attention, [true, true, false]);
        assert_eq!(unet.heads, [4, 4, 4]);
        assert_eq!((vae.norm_num_groups, vae.scale(), vae.force_upcast), (8, 8, true));
        assert_eq!(spec.scheduler.own().unwrap().prediction(), crate::scheduler::Prediction::Velocity);
        let defaults = Defaults { steps: 25, guidance_scale: 2.0, width: 128, height: 128, scheduler: None };
        assert_eq!(spec.defaults, defaults);
    }

    #[test]
    fn reads_stable_diffusion_1_5() {
        let unet = UnetSpec::from_json(SD15_UNET, "unet/config.json").unwrap();
        assert_eq!(unet.heads, [8, 8, 8, 8]);
        assert_eq!(unet.down_attention, [true, true, true, false]);
        assert_eq!((unet.cross_attention_dim, unet.use_linear_projection, unet.norm_eps), (768, false, 1e-5));
        let vae = VaeSpec::from_json(SD15_VAE, "vae/config.json").unwrap();
        assert_eq!((vae.scaling_factor, vae.scale(), vae.force_upcast), (0.18215, 8, false));
        assert!(vae.use_quant_conv && vae.use_post_quant_conv && vae.mid_block_add_attention);
    }

    #[test]
    fn the_safety_checker_is_counted_from_its_config() {
        let sd15 = r#"{"projection_dim": 768, "vision_config": {"hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 224}}"#;
        // The size in f16 is 607,963,176 bytes; with the 257 position ids of 8 bytes that diffusers counts,
        // 607,965,232.
        assert_eq!(2 * safety_checker_parameters(sd15, "x").unwrap() + 257 * 8, 607_965_232);
        // The tower of ViT-B/32 has 87,456,000 parameters, and its projection 768 x 512.
        assert_eq!(safety_checker_parameters("{}", "x").unwrap(), 87_456_000 + 768 * 512 + 20 * 513);
        let error = safety_checker_parameters(r#"{"vision_config": {"patch_size": 0}}"#, "x").unwrap_err().to_string();
        assert!(error.contains("x: vision_config: `patch_size` must be a whole number"), "{error}");
    }

    #[test]
    fn numbers_are_given_once_or_per_level() {
        let unet = |key, value| UnetSpec::from_json(&with(SD15_UNET, key, value), "x");
        assert_eq!(unet("attention_head_dim", "[5, 10, 20, 20]").unwrap().heads, [5, 10, 20, 20]);
        assert_eq!(unet("attention_head_dim", "").unwrap().heads, [8; 4]);
        let spec = unet("transformer_layers_per_block", "[1, 2, 10, 3]").unwrap();
        assert_eq!(spec.down_transformer_layers, [[1, 1], [2, 2], [10, 10], [3, 3]]);
        assert_eq!(spec.mid_transformer_layers, 3);
        assert_eq!(spec.up_transformer_layers, [[3; 3], [10; 3], [2; 3], [1; 3]]);
        assert_eq!(unet("layers_per_block", "[2, 2, 2, 2]").unwrap().layers_per_block, 2);
        assert_eq!(unet("cross_attention_dim", "[768, 768, 768, 768]").unwrap().cross_attention_dim, 768);
        assert!(unet("cross_attention_dim", "[768, 768, 768, 512]").is_err());
        // Without a middle block the last level has no cross attention, so its width does not matter.
        let without = with(SD15_UNET, "mid_block_type", "null");
        let unet = UnetSpec::from_json(&with(&without, "cross_attention_dim", "[768, 768, 768, 512]"), "x").unwrap();
        assert_eq!((unet.cross_attention_dim, unet.mid_block), (768, MidBlock::None));
        let size = |value| UnetSpec::from_json(&with(SD15_UNET, "sample_size", value), "x");
        let sides = |unet: UnetSpec| (unet.sample_height, unet.sample_width);
        assert_eq!(sides(size("[48, 96]").unwrap()), (48, 96));
        for wrong in ["[64]", "[64, 64, 64]", "[64, 0]", "[]", "64.5", "\"64\""] {
            assert!(size(wrong).unwrap_err().to_string().contains("`sample_size`"), "{wrong}");
        }
    }

    #[test]
    fn missing_keys_have_the_defaults_of_their_class() {
        let unet = UnetSpec::from_json(r#"{"sample_size": 64}"#, "x").unwrap();
        let full = UnetSpec::from_json(&with(SD15_UNET, "cross_attention_dim", "1280"), "x").unwrap();
        assert_eq!(unet, full);
        let clip = ClipSpec::from_json("{}", "x").unwrap();
        assert_eq!((clip.vocab_size, clip.hidden_size, clip.num_attention_heads), (49_408, 512, 8));
        assert_eq!(VaeSpec::from_json("{}", "x").unwrap().block_out_channels, [64]);
    }

    #[test]
    fn says_which_value_of_the_unet_it_cannot_run() {
        for (key, value, words) in [
            ("addition_embed_type", r#""text_time""#, "`addition_time_embed_dim` must be a whole number"),
            ("addition_embed_type", r#""image""#, "null or \"text_time\""),
            ("time_cond_proj_dim", "255", "an even number"),
            (
                "transformer_layers_per_block",
                "[[1, 1], [1, 1], [1, 1], [1, 1]]",
                "`reverse_transformer_layers_per_block`",
            ),
            ("transformer_layers_per_block", "[1, 1, 1, [1]]", "for each of 4 levels a number or a list of 2"),
            ("reverse_transformer_layers_per_block", "[1, 1, 1, 0]", "a list of 3"),
            ("class_embed_type", r#""timestep""#, "found: \"timestep\""),
            ("act_fn", r#""gelu""#, "\"silu\""),
            ("mid_block_type", r#""UNetMidBlock2DSimpleCrossAttn""#, "UNetMidBlock2DCrossAttn"),
            ("downsample_padding", "0", "must be 1"),
            ("dual_cross_attention", "true", "must be false"),
            ("only_cross_attention", "[true, true]", "must be false"),
            ("resnet_time_scale_shift", r#""scale_shift""#, "must be \"default\""),
            ("encoder_hid_dim", "64", "must be null"),
            ("block_out_channels", "[1099511627776, 1, 1, 1]", "from 1 to 65536"),
            ("block_out_channels", "[]", "1 to 8 widths"),
            ("block_out_channels", "[320, 640, 1280, 1290]", "a divisor of 1290"),
            ("block_out_channels", "[320, 640, 1280]", "3 blocks"),
            (
                "down_block_types",
                r#"["DownBlock2D", "DownBlock2D", "DownBlock2D", "SkipDownBlock2D"]"#,
                "4 blocks, each",
            ),
            ("down_block_types", "7", "a list of texts"),
            ("layers_per_block", "[2, 2, 2, 3]", "the same number"),
            ("layers_per_block", "0", "from 1 to 1024"),
            ("attention_head_dim", "7", "a divisor of 320"),
            ("attention_head_dim", "[8, 8]", "a list of 4"),
            ("norm_num_groups", "0", "from 1 to"),
            ("norm_eps", "-1", "a number from"),
            ("sample_size", "", "the key is missing"),
            ("num_attention_heads", "8", "must be null"),
            ("cross_attention_dim", "[768, 768]", "a list of 4"),
            ("norm_num_groups", "null", "must have a value"),
            ("_class_name", r#""UNet3DConditionModel""#, "\"UNet2DConditionModel\""),
            ("quantization_config", "{}", "must be null"),
        ] {
            let error = UnetSpec::from_json(&with(SD15_UNET, key, value), "unet/config.json").unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("unet/config.json: `"), "{key}: {error}");
        }
    }

    #[test]
    fn says_which_value_of_the_vae_or_the_text_encoder_it_cannot_run() {
        for (key, value, words) in [
            ("act_fn", r#""relu""#, "\"silu\""),
            ("_class_name", r#""AutoencoderTiny""#, "\"AutoencoderKL\""),
            ("up_block_types", r#"["UpDecoderBlock2D"]"#, "for each of 4 levels"),
            ("down_block_types", r#"["AttnDownEncoderBlock2D"]"#, "\"DownEncoderBlock2D\""),
            ("norm_num_groups", "48", "a divisor of 128"),
            ("out_channels", "4", "red, green and blue"),
            ("scaling_factor", "0", "a number from"),
        ] {
            let error = VaeSpec::from_json(&with(SD15_VAE, key, value), "vae/config.json").unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("vae/config.json: `"), "{key}: {error}");
        }
        for (text, words) in [
            (r#"{"hidden_act": "gelu_new"}"#, "\"quick_gelu\" or \"gelu\""),
            (r#"{"num_attention_heads": 7}"#, "a divisor of 512"),
            (r#"{"vocab_size": -1}"#, "from 2 to"),
            (r#"{"use_attention_mask": true}"#, "must be false"),
            (r#"{"model_type": "t5"}"#, "clip_text_model"),
        ] {
            let error = ClipSpec::from_json(text, "x").unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
