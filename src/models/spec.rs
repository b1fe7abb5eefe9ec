//! Every fact about a checkpoint: widths, heads, latent scale, prediction type. Read from the model's own JSON files,
//! checked once, and trusted everywhere else.
//!
//! A key that a file leaves out has the default of its class in diffusers or transformers. A value that the networks
//! here do not implement is an error that names file and key: a wrong picture would be the alternative.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::Value;

use super::{keys, pipelines};
use crate::{
    error::{Error, Result},
    json::Object,
    scheduler::{SchedulerConfig, SchedulerFile, SchedulerKind},
    weights::{ModelFiles, files::MODEL_INDEX},
};

/// The optional file of defaults beside `model_index.json`.
const DEFAULTS: &str = "sdshard.toml";
/// Where the scheduler's file is.
const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Where the tokenizer's settings are, if they are.
const TOKENIZER: &str = "tokenizer/tokenizer_config.json";

/// Widths that some network could have: a guard against absurd files.
const WIDTHS: RangeInclusive<usize> = 1..=65_536;
/// Counts of layers, heads and groups.
const COUNTS: RangeInclusive<usize> = 1..=1024;
/// Levels of resolution.
const LEVELS: RangeInclusive<usize> = 1..=8;
/// Epsilons of norms.
const EPSILONS: RangeInclusive<f64> = 1e-12..=1e-1;
/// Latents along one side.
const SAMPLES: RangeInclusive<usize> = 1..=2048;
/// Pixels along one side.
const PIXELS: RangeInclusive<usize> = 8..=16_384;

/// Activation of a text encoder's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextActivation {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// The exact (erf) GELU: OpenCLIP.
    Gelu,
}

/// A CLIP text encoder: `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSpec {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Rows of the position embedding: 77 for the published models.
    pub max_position_embeddings: usize,
    /// Tokens in one text, padding included: the tokenizer's `model_max_length`, as far as there are positions.
    pub text_length: usize,
    /// Width of the features.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Activation of the MLP.
    pub activation: TextActivation,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f32,
}

impl ClipSpec {
    /// Reads the text of a `text_encoder/config.json`; `file` is its name in messages.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::TEXT_ENCODER)?;
        let activation = match config.text("hidden_act")? {
            None | Some("quick_gelu") => TextActivation::QuickGelu,
            Some("gelu") => TextActivation::Gelu,
            Some(_) => return Err(config.refuse("hidden_act", "\"quick_gelu\" or \"gelu\"")),
        };
        let positions = config.size("max_position_embeddings", 2..=4096)?.unwrap_or(77);
        let spec = Self {
            vocab_size: config.size("vocab_size", 2..=1 << 20)?.unwrap_or(49_408),
            max_position_embeddings: positions,
            text_length: positions,
            hidden_size: config.size("hidden_size", WIDTHS)?.unwrap_or(512),
            intermediate_size: config.size("intermediate_size", WIDTHS)?.unwrap_or(2048),
            num_hidden_layers: config.size("num_hidden_layers", COUNTS)?.unwrap_or(12),
            num_attention_heads: config.size("num_attention_heads", COUNTS)?.unwrap_or(8),
            activation,
            layer_norm_eps: config.float("layer_norm_eps", EPSILONS)?.unwrap_or(1e-5) as f32,
        };
        divides(&config, "num_attention_heads", spec.num_attention_heads, spec.hidden_size)?;
        Ok(spec)
    }
}

/// A `UNet2DConditionModel`: `unet/config.json`. Levels are counted from the full resolution downwards.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetSpec {
    /// Channels of the latents that go in.
    pub in_channels: usize,
    /// Channels that come out.
    pub out_channels: usize,
    /// Width of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each down level; an up level has one more.
    pub layers_per_block: usize,
    /// Whether each down level has cross attention.
    pub down_attention: Vec<bool>,
    /// Whether each up level has cross attention, in the order of `up_blocks`: lowest resolution first.
    pub up_attention: Vec<bool>,
    /// Attention heads of each level. The configs call this `attention_head_dim`.
    pub heads: Vec<usize>,
    /// Transformer layers in each level's attention blocks.
    pub transformer_layers: Vec<usize>,
    /// Width of the text features.
    pub cross_attention_dim: usize,
    /// `proj_in` and `proj_out` are linear layers (SD 2) rather than 1x1 convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms outside the transformers (those have 1e-6).
    pub norm_eps: f32,
    /// Whether there is a middle block: some distilled networks have none.
    pub has_mid_block: bool,
    /// Default height of the latents.
    pub sample_height: usize,
    /// Default width of the latents.
    pub sample_width: usize,
    /// The sinusoidal time features are `[cos, sin]` rather than `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// Shift in the frequencies of the time features.
    pub freq_shift: f32,
}

impl UnetSpec {
    /// Reads the text of a `unet/config.json`; `file` is its name in messages.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        if config.text("addition_embed_type")? == Some("text_time") {
            return Err(config
                .refuse("addition_embed_type", "null")
                .hint("this is an SDXL UNet; sdshard runs Stable Diffusion 1 and 2 so far"));
        }
        if config.get("time_cond_proj_dim").is_some() {
            return Err(config.refuse("time_cond_proj_dim", "null").hint(
                "this UNet was distilled to take the guidance as an input (LCM), which sdshard does not run yet",
            ));
        }
        config.check(&keys::UNET)?;
        let has_mid_block = match config.text("mid_block_type")? {
            None => !config.has("mid_block_type"),
            Some("UNetMidBlock2DCrossAttn") => true,
            Some(_) => return Err(config.refuse("mid_block_type", "\"UNetMidBlock2DCrossAttn\" or null")),
        };

        let block_out_channels = config.sizes("block_out_channels", WIDTHS)?.unwrap_or(vec![320, 640, 1280, 1280]);
        let levels = block_out_channels.len();
        if !LEVELS.contains(&levels) {
            return Err(config.refuse("block_out_channels", "a list of 1 to 8 widths"));
        }
        const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
        const CROSS_UP: &str = "CrossAttnUpBlock2D";
        let down = [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"];
        let up = ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP];
        let layers_per_block = per_level(&config, "layers_per_block", levels, COUNTS)?.unwrap_or(vec![2; levels]);
        if layers_per_block.iter().any(|&layers| layers != layers_per_block[0]) {
            return Err(config.refuse("layers_per_block", "the same number for every level"));
        }
        let sample_size = match config.get("sample_size") {
            Some(Value::Array(_)) => match config.sizes("sample_size", SAMPLES)?.as_deref() {
                Some(&[height, width]) => [height, width],
                _ => return Err(config.refuse("sample_size", "a whole number, or a list of a height and a width")),
            },
            _ => [required(&config, "sample_size", config.size("sample_size", SAMPLES)?)?; 2],
        };
        let down_attention = attention(&config, "down_block_types", down, levels)?;
        let up_attention = attention(&config, "up_block_types", up, levels)?;
        // The middle block attends at the lowest resolution whatever the blocks around it do.
        let attends = |level: usize| {
            down_attention[level] || up_attention[levels - 1 - level] || (has_mid_block && level == levels - 1)
        };
        let context = per_level(&config, "cross_attention_dim", levels, WIDTHS)?.unwrap_or(vec![1280; levels]);
        let mut contexts = context.iter().enumerate().filter(|(level, _)| attends(*level)).map(|(_, width)| *width);
        let cross_attention_dim = contexts.next().unwrap_or(context[0]);
        if contexts.any(|width| width != cross_attention_dim) {
            let wanted = "the same width for every level that attends to the text: there is one text encoder";
            return Err(config.refuse("cross_attention_dim", wanted));
        }
        let heads = per_level(&config, "attention_head_dim", levels, COUNTS)?.unwrap_or(vec![8; levels]);
        for (level, &channels) in block_out_channels.iter().enumerate().filter(|(level, _)| attends(*level)) {
            divides(&config, "attention_head_dim", heads[level], channels)?;
        }
        let spec = Self {
            in_channels: config.size("in_channels", COUNTS)?.unwrap_or(4),
            out_channels: config.size("out_channels", COUNTS)?.unwrap_or(4),
            layers_per_block: layers_per_block[0],
            down_attention,
            up_attention,
            heads,
            transformer_layers: per_level(&config, "transformer_layers_per_block", levels, COUNTS)?
                .unwrap_or(vec![1; levels]),
            has_mid_block,
            cross_attention_dim,
            use_linear_projection: config.flag("use_linear_projection", false)?,
            norm_num_groups: config.size("norm_num_groups", COUNTS)?.unwrap_or(32),
            norm_eps: config.float("norm_eps", EPSILONS)?.unwrap_or(1e-5) as f32,
            sample_height: sample_size[0],
            sample_width: sample_size[1],
            flip_sin_to_cos: config.flag("flip_sin_to_cos", true)?,
            freq_shift: config.float("freq_shift", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            block_out_channels,
        };
        if spec.in_channels == 9 {
            return Err(config
                .refuse("in_channels", "the number of latent channels")
                .hint("nine input channels is an inpainting checkpoint, which sdshard does not run"));
        }
        if spec.block_out_channels[0] % 2 == 1 {
            return Err(config.refuse("block_out_channels", "a list that begins with an even width"));
        }
        for &channels in &spec.block_out_channels {
            divides(&config, "norm_num_groups", spec.norm_num_groups, channels)?;
        }
        Ok(spec)
    }
}

/// An `AutoencoderKL`: `vae/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeSpec {
    /// Channels of a picture that goes in.
    pub in_channels: usize,
    /// Channels of a picture that comes out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, full resolution first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Latents are `encoded * scaling_factor`.
    pub scaling_factor: f32,
    /// Whether the middle block has self attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// The decoder overflows f16: run it in f32 or bf16.
    pub force_upcast: bool,
}

impl VaeSpec {
    /// Reads the text of a `vae/config.json`; `file` is its name in messages.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        let config = Object::parse(text, file)?;
        config.check(&keys::VAE)?;
        let block_out_channels = config.sizes("block_out_channels", WIDTHS)?.unwrap_or(vec![64]);
        if !LEVELS.contains(&block_out_channels.len()) {
            return Err(config.refuse("block_out_channels", "a list of 1 to 8 widths"));
        }
        for (key, class) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let blocks = config.texts(key)?.unwrap_or(vec![class]);
            if blocks.len() != block_out_channels.len() || blocks.iter().any(|block| *block != class) {
                return Err(config.refuse(key, &format!("\"{class}\" for each of {} levels", block_out_channels.len())));
            }
        }
        let spec = Self {
            in_channels: config.size("in_channels", COUNTS)?.unwrap_or(3),
            out_channels: config.size("out_channels", COUNTS)?.unwrap_or(3),
            latent_channels: config.size("latent_channels", COUNTS)?.unwrap_or(4),
            layers_per_block: config.size("layers_per_block", COUNTS)?.unwrap_or(1),
            norm_num_groups: config.size("norm_num_groups", COUNTS)?.unwrap_or(32),
            scaling_factor: config.float("scaling_factor", 1e-6..=1e6)?.unwrap_or(0.18215) as f32,
            mid_block_add_attention: config.flag("mid_block_add_attention", true)?,
            use_quant_conv: config.flag("use_quant_conv", true)?,
            use_post_quant_conv: config.flag("use_post_quant_conv", true)?,
            // The class says true where the key is missing, and only the pipelines of SDXL, whose files all have the
            // key, ever ask. The VAEs of Stable Diffusion 1 and 2 stay within f16.
            force_upcast: config.flag("force_upcast", false)?,
            block_out_channels,
        };
        if spec.out_channels != 3 {
            return Err(config.refuse("out_channels", "3: red, green and blue"));
        }
        for &channels in &spec.block_out_channels {
            divides(&config, "norm_num_groups", spec.norm_num_groups, channels)?;
        }
        Ok(spec)
    }

    /// Pixels per latent, along each side: 8 for four levels.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// Everything about one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The text encoder.
    pub text_encoder: ClipSpec,
    /// The denoiser.
    pub unet: UnetSpec,
    /// The autoencoder.
    pub vae: VaeSpec,
    /// `scheduler/scheduler_config.json`.
    pub scheduler: SchedulerFile,
    /// What a request uses where the user says nothing.
    pub defaults: Defaults,
    /// What `model_index.json` lists, in its order, as far as it is there.
    pub listed: Vec<Listed>,
}

/// A part of the pipeline that `model_index.json` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its folder.
    pub name: String,
    /// The parameters of a network that is known and not run: the safety checker's.
    pub parameters: Option<u64>,
}

/// The part that looks at finished pictures in diffusers.
const SAFETY_CHECKER: &str = "safety_checker";

/// The parameters of a `StableDiffusionSafetyChecker`, a CLIP vision tower with a projection and twenty concepts, from the
/// text of its `config.json`.
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
    // 17 concepts and 3 that need special care: a direction and a threshold each.
    Ok(embeddings + norm + layers * layer + norm + width * projection + 20 * (projection + 1))
}

/// What `index` lists and does not set to nothing.
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

/// Defaults of a request: from the optional `sdshard.toml` beside `model_index.json`, else from the configs.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Denoising steps: 50 unless the model says otherwise.
    pub steps: usize,
    /// Guidance scale: 7.5 unless the model says otherwise.
    pub guidance_scale: f32,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// A scheduler's name, where the model wants another than its `scheduler_config.json`.
    pub scheduler: Option<SchedulerKind>,
}

impl ModelSpec {
    /// The scheduler that a request asks for, else the model's default.
    ///
    /// # Errors
    /// As [`SchedulerFile::own`] and [`SchedulerFile::with_kind`].
    pub fn scheduler_for(&self, asked: Option<SchedulerKind>) -> Result<SchedulerConfig> {
        asked.or(self.defaults.scheduler).map_or_else(|| self.scheduler.own(), |kind| self.scheduler.with_kind(kind))
    }

    /// Reads `model_index.json`, every component's config and, where there is one, `sdshard.toml`.
    ///
    /// Fails where the pipeline or a component is of another class, where a value is not supported, and where two
    /// components do not fit together.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let index = Object::parse(&files.text(MODEL_INDEX)?, files.path_of(MODEL_INDEX))?;
        let pipeline = pipelines::class_of(&index)?;
        let read = |path: &str| Ok::<_, Error>((files.text(path)?, files.path_of(path)));
        let (text, file) = read("text_encoder/config.json")?;
        let mut text_encoder = ClipSpec::from_json(&text, &file)?;
        if files.exists(TOKENIZER) {
            let (text, file) = read(TOKENIZER)?;
            text_encoder.text_length = text_length(&Object::parse(&text, file)?, text_encoder.text_length)?;
        }
        let (text, file) = read("unet/config.json")?;
        let unet =
            UnetSpec::from_json(&pipeline.unet_config(Object::parse(&text, &file)?).to_value().to_string(), &file)?;
        let (text, file) = read("vae/config.json")?;
        let vae = VaeSpec::from_json(&text, &file)?;
        let (text, file) = read(SCHEDULER)?;
        let class = pipelines::class_of_part(&index, "scheduler");
        let class = class.ok_or_else(|| index.refuse("scheduler", "a library and the name of a scheduler's class"))?;
        let scheduler = SchedulerFile::parse(&text, &file, class, pipeline.scheduler)?;
        for (what, wanted, found) in [
            (
                "cross_attention_dim of the UNet, the text encoder's hidden_size,",
                text_encoder.hidden_size,
                unet.cross_attention_dim,
            ),
            ("in_channels of the UNet, the VAE's latent_channels,", vae.latent_channels, unet.in_channels),
            ("out_channels of the UNet, the VAE's latent_channels,", vae.latent_channels, unet.out_channels),
        ] {
            if wanted != found {
                let parts = format!("the parts of the model {} do not fit together", files.name());
                return Err(Error::input(format!("{parts}: {what} must be {wanted}")).found(found.to_string()));
            }
        }
        let text = if files.exists(DEFAULTS) { files.text(DEFAULTS)? } else { String::new() };
        let defaults =
            Defaults::from_toml(&text, &files.path_of(DEFAULTS), [unet.sample_height, unet.sample_width], vae.scale())?;
        if let Some(kind) = defaults.scheduler {
            scheduler.with_kind(kind)?;
        }
        Ok(Self { text_encoder, unet, vae, scheduler, defaults, listed: listed(&index, files)? })
    }
}

/// Tokens in one text by a `tokenizer_config.json`, which says 1e30 where it does not mean to limit them.
fn text_length(config: &Object, positions: usize) -> Result<usize> {
    let key = if config.get("model_max_length").is_some() { "model_max_length" } else { "max_len" };
    Ok(config.float(key, 2.0..=f64::INFINITY)?.map_or(positions, |length| (length as usize).min(positions)))
}

/// `sdshard.toml` as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DefaultsFile {
    steps: Option<usize>,
    guidance_scale: Option<f32>,
    width: Option<usize>,
    height: Option<usize>,
    scheduler: Option<String>,
}

impl Defaults {
    /// Reads the text of an `sdshard.toml`; `file` is its name in messages. Latents are `[height, width]` where it says
    /// nothing, and each of them is `unit` pixels along each side.
    fn from_toml(text: &str, file: &str, [height, width]: [usize; 2], unit: usize) -> Result<Self> {
        let written: DefaultsFile =
            toml::from_str(text).map_err(|error| Error::input(format!("{file}: cannot be used")).source(error))?;
        let refuse = |key: &str, wanted: String, found: String| {
            Error::input(format!("{file}: `{key}` must be {wanted}")).found(found)
        };
        let side = |key: &str, written: Option<usize>, latents: usize| match written {
            Some(side) if !PIXELS.contains(&side) || side % unit != 0 => {
                let wanted = format!("a multiple of {unit} from {} to {}", PIXELS.start(), PIXELS.end());
                Err(refuse(key, wanted, side.to_string()))
            }
            side => Ok(side.unwrap_or(latents * unit)),
        };
        let steps = written.steps.unwrap_or(50);
        if !(1..=1000).contains(&steps) {
            return Err(refuse("steps", "a whole number from 1 to 1000".to_owned(), steps.to_string()));
        }
        let guidance_scale = written.guidance_scale.unwrap_or(7.5);
        if !(0.0..=1000.0).contains(&guidance_scale) {
            return Err(refuse("guidance_scale", "a number from 0 to 1000".to_owned(), guidance_scale.to_string()));
        }
        let scheduler = written.scheduler.as_deref().map(str::parse).transpose();
        Ok(Self {
            steps,
            guidance_scale,
            width: side("width", written.width, width)?,
            height: side("height", written.height, height)?,
            scheduler: scheduler.map_err(|error: Error| error.context(format!("{file}: `scheduler`")))?,
        })
    }
}

/// Fails where `parts` does not divide `whole`; `key` holds the parts.
fn divides(config: &Object, key: &str, parts: usize, whole: usize) -> Result<()> {
    if whole.is_multiple_of(parts) {
        return Ok(());
    }
    Err(config.refuse(key, &format!("a divisor of {whole}, which is a width of this network")))
}

/// The value of a key that has no default.
fn required<T>(config: &Object, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| config.refuse(key, "a whole number"))
}

/// A number within `range` for each level: a single one stands for all.
fn per_level(config: &Object, key: &str, levels: usize, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>> {
    if config.get(key).is_some_and(Value::is_number) {
        return Ok(config.size(key, range)?.map(|count| vec![count; levels]));
    }
    let list = config.sizes(key, range)?;
    if list.as_ref().is_some_and(|list| list.len() != levels) {
        return Err(config.refuse(key, &format!("a number or a list of {levels}, one for each level")));
    }
    Ok(list)
}

/// Which levels have cross attention, from a list of block types that begins like `CrossAttn` or not.
fn attention(config: &Object, key: &str, default: [&str; 4], levels: usize) -> Result<Vec<bool>> {
    let blocks = config.texts(key)?.unwrap_or(default.to_vec());
    if blocks.len() != levels || blocks.iter().any(|block| !default.contains(block)) {
        let [mut plain, mut cross] = [default[0], default[3]];
        if plain.starts_with("Cross") {
            (plain, cross) = (cross, plain);
        }
        return Err(config.refuse(key, &format!("{levels} blocks, each \"{cross}\" or \"{plain}\"")));
    }
    Ok(blocks.iter().map(|block| block.starts_with("CrossAttn")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// `text` with `key` set to the JSON `value`, or without `key` where `value` is empty.
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
        assert_eq!(spec.text_encoder.max_position_embeddings, 32);
        assert_eq!(spec.text_encoder.activation, TextActivation::QuickGelu);
        assert_eq!(spec.unet.block_out_channels, [64, 128, 224]);
        assert_eq!(spec.unet.down_attention, [false, true, true]);
        assert_eq!(spec.unet.up_attention, [true, true, false]);
        assert_eq!(spec.unet.heads, [4, 4, 4]);
        assert_eq!((spec.vae.norm_num_groups, spec.vae.scale(), spec.vae.force_upcast), (8, 8, true));
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
        // In f16, 607,963,176 bytes; with the 257 position ids of 8 bytes that diffusers counts, 607,965,232.
        assert_eq!(2 * safety_checker_parameters(sd15, "x").unwrap() + 257 * 8, 607_965_232);
        // The tower of ViT-B/32 has 87,456,000 parameters, its projection 768 x 512.
        assert_eq!(safety_checker_parameters("{}", "x").unwrap(), 87_456_000 + 768 * 512 + 20 * 513);
        let error = safety_checker_parameters(r#"{"vision_config": {"patch_size": 0}}"#, "x").unwrap_err().to_string();
        assert!(error.contains("x: vision_config: `patch_size` must be a whole number"), "{error}");
    }

    #[test]
    fn numbers_are_given_once_or_per_level() {
        let unet = |key, value| UnetSpec::from_json(&with(SD15_UNET, key, value), "x");
        assert_eq!(unet("attention_head_dim", "[5, 10, 20, 20]").unwrap().heads, [5, 10, 20, 20]);
        assert_eq!(unet("attention_head_dim", "").unwrap().heads, [8; 4]);
        assert_eq!(unet("transformer_layers_per_block", "[1, 2, 10, 1]").unwrap().transformer_layers, [1, 2, 10, 1]);
        assert_eq!(unet("layers_per_block", "[2, 2, 2, 2]").unwrap().layers_per_block, 2);
        assert_eq!(unet("cross_attention_dim", "[768, 768, 768, 768]").unwrap().cross_attention_dim, 768);
        assert!(unet("cross_attention_dim", "[768, 768, 768, 512]").is_err());
        // Without a middle block the last level attends to no text, so its width does not matter.
        let without = with(SD15_UNET, "mid_block_type", "null");
        let unet = UnetSpec::from_json(&with(&without, "cross_attention_dim", "[768, 768, 768, 512]"), "x").unwrap();
        assert_eq!((unet.cross_attention_dim, unet.has_mid_block), (768, false));
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
            ("addition_embed_type", r#""text_time""#, "SDXL"),
            ("addition_embed_type", r#""image""#, "sdshard supports nothing else"),
            ("time_cond_proj_dim", "256", "LCM"),
            ("class_embed_type", r#""timestep""#, "found: \"timestep\""),
            ("act_fn", r#""gelu""#, "\"silu\""),
            ("mid_block_type", r#""UNetMidBlock2D""#, "UNetMidBlock2DCrossAttn"),
            ("downsample_padding", "0", "must be 1"),
            ("dual_cross_attention", "true", "must be false"),
            ("only_cross_attention", "[true, true]", "must be false"),
            ("resnet_time_scale_shift", r#""scale_shift""#, "must be \"default\""),
            ("encoder_hid_dim", "64", "must be null"),
            ("in_channels", "9", "inpainting"),
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

    #[test]
    fn defaults_are_read_and_checked() {
        let read = |text| Defaults::from_toml(text, "sdshard.toml", [64, 64], 8);
        let plain = Defaults { steps: 50, guidance_scale: 7.5, width: 512, height: 512, scheduler: None };
        assert_eq!(read("").unwrap(), plain);
        let scheduler = Some(SchedulerKind::DpmSolverMultistep);
        assert_eq!(read("scheduler = \"dpm++2m\"\nwidth = 640").unwrap(), Defaults { width: 640, scheduler, ..plain });
        for (text, words) in [
            ("step = 4", "unknown field `step`"),
            ("steps = 0", "`steps` must be"),
            ("steps = \"4\"", "invalid type"),
            ("guidance_scale = nan", "`guidance_scale` must be"),
            ("width = 500", "`width` must be a multiple of 8"),
            ("height = 0", "`height` must be"),
            ("scheduler = \"dpm\"", "`scheduler`: \"dpm\" is not a scheduler"),
            ("steps = ", "cannot be used"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("sdshard.toml"), "{error}");
        }
    }
}
