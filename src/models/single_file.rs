//! Single-file checkpoints: which model the file holds is found from the shapes of its UNet, and the configs and the
//! tokenizer that it lacks are built in.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{
    built_in,
    config::COUNTS,
    index::{SCHEDULER, controlnet_names},
    keys,
    tiny_vae::TinyVaeSpec,
};
use crate::{
    error::{Error, Result},
    json::Object,
    scheduler::Prediction,
    weights::{EmbeddingChoice, ModelFiles, Weights, files::MODEL_INDEX, lora::LoraChoice},
};

/// The config of a component in its folder.
const CONFIG: &str = "config.json";
/// The path of the VAE's config.
const VAE: &str = "vae/config.json";

/// What a user says about a model beside its name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overrides<'a> {
    /// A diffusers folder whose configs and tokenizers a single-file checkpoint has, in place of built-in ones.
    pub config: Option<&'a Path>,
    /// Whether the UNet of a single-file checkpoint has the averages (EMA) of its weights.
    pub averages: bool,
    /// The meaning of the UNet's output.
    pub prediction: Option<Prediction>,
    /// The folder or the safetensors file of another `AutoencoderKL`, or of an `AutoencoderTiny`.
    pub vae: Option<&'a Path>,
    /// The folders or safetensors files of ControlNets, in order.
    pub controlnets: &'a [PathBuf],
    /// The LoRAs that change the weights.
    pub loras: &'a [LoraChoice],
    /// Textual inversions.
    pub embeddings: &'a [EmbeddingChoice],
    /// Whether modules of the LoRAs that the model lacks are ignored.
    pub lora_lenient: bool,
}

impl Overrides<'_> {
    /// The model `files` with another VAE and another prediction type, if they were asked for.
    ///
    /// # Errors
    /// If a file is missing or invalid, or if configs are given for a model that has its own.
    pub fn apply(&self, files: ModelFiles) -> Result<ModelFiles> {
        if self.averages {
            return Err(Error::input("--ema is for single-file checkpoints, which have two sets of a UNet's weights")
                .found(files.name().to_owned()));
        }
        if let Some(config) = self.config {
            return Err(Error::input("--config is for single-file checkpoints: this model has configs of its own")
                .found(config.display().to_string()));
        }
        self.applied(files)
    }

    fn applied(&self, mut files: ModelFiles) -> Result<ModelFiles> {
        if let Some(prediction) = self.prediction {
            let scheduler = Object::parse(&files.text(SCHEDULER)?, files.path_of(SCHEDULER))?;
            if scheduler.text("prediction_type")?.unwrap_or(Prediction::Epsilon.name()) != prediction.name() {
                let scheduler = scheduler.with("prediction_type", prediction.name());
                files = files.with_text(SCHEDULER, scheduler.to_value().to_string());
            }
        }
        files = files.with_loras(self.loras, self.lora_lenient).with_embeddings(self.embeddings);
        for (name, path) in controlnet_names().zip(self.controlnets) {
            files = with_controlnet(files, &name, path)?;
        }
        match self.vae {
            Some(vae) => with_vae(files, vae),
            None => Ok(files),
        }
    }
}

/// The model `files` with the weights of another VAE, and with its config if `vae` is a folder or has an
/// `AutoencoderTiny`. The scale of an `AutoencoderKL`'s latents is the model's own: it is trained for latents that a
/// UNet already knows.
fn with_vae(files: ModelFiles, vae: &Path) -> Result<ModelFiles> {
    let refuse = |what: &str| Error::input(format!("the VAE {}: {what}", vae.display()));
    let is_tiny = |config: &Object| Ok::<_, Error>(config.text("_class_name")? == Some(TinyVaeSpec::CLASS));
    let own = Object::parse(&files.text(VAE)?, files.path_of(VAE))?;
    let (mut config, files) = if vae.is_file() {
        let files = files.with_weights("vae", vae);
        match tiny_config(&Weights::open(&files, "vae", None)?) {
            Some(config) => (Object::parse(&config.to_string(), vae.display().to_string())?, files),
            None if is_tiny(&own)? => {
                return Err(refuse("the config of this model's VAE is that of an AutoencoderTiny")
                    .hint("--vae FOLDER, the folder of the VAE with its config.json"));
            }
            None => return Ok(files),
        }
    } else if vae.is_dir() {
        // The folder of the component, or that of a model.
        let folder = if vae.join(MODEL_INDEX).exists() { vae.join("vae") } else { vae.to_owned() };
        let (weights, config, text) = component_in(&folder, refuse)?;
        (Object::parse(&text, config.display().to_string())?, files.with_weights("vae", &weights))
    } else {
        return Err(refuse("there is no such file or folder").hint("--vae takes a safetensors file or a folder"));
    };
    let channels = |config: &Object| Ok::<_, Error>(config.size("latent_channels", COUNTS)?.unwrap_or(4));
    let (wanted, found) = (channels(&own)?, channels(&config)?);
    if found != wanted {
        return Err(refuse(&format!("the latents of this model have {wanted} channels")).found(found.to_string()));
    }
    // An AutoencoderTiny has a scale of its own.
    if !is_tiny(&config)? && !is_tiny(&own)? {
        let default = Value::from(0.18215);
        config = config.with("scaling_factor", own.get("scaling_factor").unwrap_or(&default).clone());
    }
    Ok(files.with_text(VAE, config.to_value().to_string()))
}

/// The config of the `AutoencoderTiny` that a file holds; `None` if it holds another VAE.
fn tiny_config(vae: &Weights) -> Option<Value> {
    let &[width, latent_channels, ..] = vae.stored_shape("decoder.layers.0.weight")? else { return None };
    Some(json!({
        "_class_name": TinyVaeSpec::CLASS, "latent_channels": latent_channels,
        "encoder_block_out_channels": vec![width; 4], "decoder_block_out_channels": vec![width; 4]
    }))
}

/// The file of weights in the folder of a component of diffusers, the path of its config, and the text of this.
fn component_in(folder: &Path, refuse: impl Fn(&str) -> Error) -> Result<(PathBuf, PathBuf, String)> {
    const NAMES: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
    let weights = NAMES.map(|name| folder.join(name)).into_iter().find(|path| path.exists());
    let weights = weights.ok_or_else(|| refuse("this folder has no weights").hint(NAMES[0]))?;
    let config = folder.join(CONFIG);
    let text = crate::input::text(&config).map_err(|error| refuse("its config.json cannot be read").source(error))?;
    Ok((weights, config, text))
}

/// The model `files` with the ControlNet at `path` as its component `name`.
fn with_controlnet(files: ModelFiles, name: &str, path: &Path) -> Result<ModelFiles> {
    let refuse = |what: &str| Error::input(format!("the ControlNet {}: {what}", path.display()));
    let config_path = format!("{name}/{CONFIG}");
    if path.is_dir() {
        let (weights, _, text) = component_in(path, refuse)?;
        return Ok(files.with_text(&config_path, text).with_weights(name, &weights));
    }
    if !path.is_file() {
        let hint = "--controlnet takes a safetensors file, or a folder with config.json and weights";
        return Err(refuse("there is no such file or folder").hint(hint));
    }
    let files = files.with_weights(name, path);
    // A file in a folder of diffusers, or one by itself.
    let beside = path.with_file_name(CONFIG);
    let text = match crate::input::text(&beside).ok().filter(|text| text.contains(keys::CONTROLNET.class)) {
        Some(text) => text,
        None => controlnet_config(&Weights::open(&files, name, None)?)
            .map_err(|error| error.context(format!("the ControlNet {}", path.display())))?,
    };
    Ok(files.with_text(&config_path, text))
}

/// A published ControlNet: the kind of the UNet that it is a copy of, the widths of its first level, of the text features
/// (0 without them) and of other conditions, the depths of its transformers, and the keys that differ from the UNet's.
type PublishedControlNet = (&'static str, [usize; 3], &'static [usize], &'static str);

const CONTROLNETS: [PublishedControlNet; 5] = [
    ("sd1", [320, 768, 0], &[1, 1, 1, 1, 1, 1, 0, 0, 1], "{}"),
    ("sd2", [320, 1024, 0], &[1, 1, 1, 1, 1, 1, 0, 0, 1], "{}"),
    ("sdxl", [320, 2048, 2816], &[0, 0, 2, 2, 10, 10, 10], "{}"),
    // Of middle size: only the transformers of the last level and of the middle have layers, one each.
    ("sdxl", [320, 2048, 2816], &[0, 0, 0, 0, 1, 1, 1], r#"{"transformer_layers_per_block": [0, 0, 1]}"#),
    // The small one.
    (
        "sdxl",
        [320, 0, 2816],
        &[0, 0, 0, 0, 0, 0, 0],
        r#"{"transformer_layers_per_block": [0, 0, 0],
            "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"]}"#,
    ),
];

/// The config of a stored ControlNet that has none, found from its shapes.
fn controlnet_config(weights: &Weights) -> Result<String> {
    let shapes = Shapes(weights);
    let sizes = shapes.sizes();
    let mut depths = shapes.depths("down_blocks");
    depths.push(shapes.depth("mid_block.attentions.0"));
    let published = CONTROLNETS.iter().find(|(_, of, of_depths, _)| *of == sizes && *of_depths == depths);
    let Some((kind, .., differences)) = published else {
        let [width, context, added] = sizes;
        return Err(Error::input("no config is built in for it")
            .found(format!(
                "{width} channels, text features of {context}, other conditions of {added}, transformers of {depths:?} \
                 layers"
            ))
            .hint("a folder with its config.json and its weights"));
    };
    let mut config = built_in::configs(kind).remove("unet/config.json").expect("every kind has a UNet");
    let Value::Object(keys) = &mut config else { unreachable!("a config is an object") };
    keys.retain(|key, _| keys::CONTROLNET.followed.contains(&key.as_str()));
    keys.insert("_class_name".to_owned(), keys::CONTROLNET.class.into());
    let differences: Map<String, Value> = serde_json::from_str(differences).expect("written above");
    keys.extend(differences);
    Ok(config.to_string())
}

/// The single-file checkpoint at `path`, with the configs of its kind of model, or with those of a folder.
///
/// # Errors
/// If it is not a safetensors file, or holds something else than a Stable Diffusion 1, 2 or XL whose configs are built
/// in; with configs of a folder, if that is not a diffusers folder.
pub fn open(path: &Path, overrides: &Overrides) -> Result<ModelFiles> {
    let files = ModelFiles::single_file(path).with_averages(overrides.averages);
    let unet = Weights::open(&files, "unet", None)?;
    if let Some(config) = overrides.config {
        return overrides.applied(files.with_configs_of(ModelFiles::folder(config)?));
    }
    let training = Training::of(&unet)?;
    let texts = |training: &Training| {
        let kind = kind(&unet, training).map_err(|error| error.context(format!("the model {}", path.display())))?;
        Ok::<_, Error>(texts(kind, training))
    };
    let mut files = files.with_derived(texts(&training)?);
    match overrides.prediction {
        Some(prediction) if prediction != training.prediction => {
            let told = Training { prediction, zero_terminal_snr: false, is_guess: false };
            files = texts(&told)?.into_iter().fold(files, |files, (path, text)| files.with_text(&path, text));
        }
        None if training.is_guess => tracing::warn!(
            "the model {}: its file does not say what its UNet predicts; the weights look like {}; --prediction-type \
             epsilon or v decides it",
            files.name(),
            training.prediction.name()
        ),
        _ => {}
    }
    overrides.applied(files)
}

/// All files of a model but its weights, by their paths in a diffusers folder.
fn texts(kind: &str, training: &Training) -> Vec<(String, Vec<u8>)> {
    let mut configs = built_in::configs(kind);
    training.describe(&mut configs);
    let has_config = |folder: &&str| configs.contains_key(&format!("{folder}/tokenizer_config.json"));
    let tokenizers = ["tokenizer", "tokenizer_2"]
        .into_iter()
        .filter(has_config)
        .flat_map(|folder| built_in::clip_tokenizer().map(|(name, text)| (format!("{folder}/{name}"), text)));
    let mut texts: Vec<_> = tokenizers.collect();
    texts.extend(configs.into_iter().map(|(path, config)| (path, config.to_string().into_bytes())));
    texts
}

/// How a model was trained, which the shapes of its weights do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Training {
    prediction: Prediction,
    /// Whether the last training timestep was pure noise. Lin et al. 2023.
    zero_terminal_snr: bool,
    /// Whether nothing but the values of weights tells the prediction.
    is_guess: bool,
}

impl Training {
    /// Reads it from the metadata of the file, from marks among its tensors, or from the statistics of a bias; without
    /// any of these, models predict the noise.
    fn of(unet: &Weights) -> Result<Self> {
        let text = |key: &str| unet.metadata(&format!("modelspec.{key}"));
        let zero_terminal_snr = unet.has_stored("ztsnr");
        let said = match (text("prediction_type"), text("architecture")) {
            (Some("epsilon"), _) => Some(Prediction::Epsilon),
            (Some("v" | "v_prediction"), _) => Some(Prediction::Velocity),
            (_, Some("stable-diffusion-v2-768-v")) => Some(Prediction::Velocity),
            (_, Some("stable-diffusion-v2-512")) => Some(Prediction::Epsilon),
            _ => (unet.has_stored("v_pred") || zero_terminal_snr).then_some(Prediction::Velocity),
        };
        let (prediction, is_guess) = match said {
            Some(prediction) => (prediction, false),
            None => match bias_deviation(unet)? {
                Some(deviation) if deviation > 0.09 => (Prediction::Velocity, true),
                Some(_) => (Prediction::Epsilon, true),
                None => (Prediction::Epsilon, false),
            },
        };
        let zero_terminal_snr = zero_terminal_snr && prediction == Prediction::Velocity;
        Ok(Self { prediction, zero_terminal_snr, is_guess })
    }

    /// Writes it into a model's configs.
    fn describe(self, configs: &mut Map<String, Value>) {
        let Some(Value::Object(scheduler)) = configs.get_mut(SCHEDULER) else { return };
        let known = scheduler.get("prediction_type").and_then(Value::as_str).unwrap_or(Prediction::Epsilon.name());
        if known != self.prediction.name() {
            scheduler.insert("prediction_type".to_owned(), self.prediction.name().into());
        }
        if self.zero_terminal_snr {
            scheduler.insert("rescale_betas_zero_snr".to_owned(), true.into());
            scheduler.insert("timestep_spacing".to_owned(), "trailing".into());
            // PNDM has no such option.
            if scheduler.get("_class_name").is_some_and(|class| class == "PNDMScheduler") {
                scheduler.insert("_class_name".to_owned(), "DDIMScheduler".into());
                configs[MODEL_INDEX]["scheduler"][1] = "DDIMScheduler".into();
            }
        }
    }
}

/// The standard deviation of a bias by which UNets of Stable Diffusion 2 that predict the velocity (above 0.09) differ
/// from those that predict the noise; `None` for other UNets.
fn bias_deviation(unet: &Weights) -> Result<Option<f64>> {
    const BIAS: &str = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias";
    let shapes = Shapes(unet);
    match unet.stored_shape(BIAS) {
        Some(&[width]) if shapes.context() == Some(1024) && shapes.inputs() == Some(4) => {
            let values: Vec<f64> = unet.get(BIAS, &[width])?.to_f32()?.into_iter().map(f64::from).collect();
            let mean = values.iter().sum::<f64>() / width as f64;
            Ok(Some((values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64).sqrt()))
        }
        _ => Ok(None),
    }
}

/// The shapes of a stored UNet.
struct Shapes<'a>(&'a Weights);

impl Shapes<'_> {
    fn size(&self, name: &str, axis: usize) -> Option<usize> {
        self.0.stored_shape(name)?.get(axis).copied()
    }

    /// The number of input channels.
    fn inputs(&self) -> Option<usize> {
        self.size("conv_in.weight", 1)
    }

    /// The width of the text features.
    fn context(&self) -> Option<usize> {
        let key = |block: &str| format!("{block}.attentions.0.transformer_blocks.0.attn2.to_k.weight");
        let down = (0..4).find_map(|level| self.size(&key(&format!("down_blocks.{level}")), 1));
        down.or_else(|| self.size(&key("mid_block"), 1))
    }

    /// The widths of the first level, of the text features and of other conditions, 0 without them.
    fn sizes(&self) -> [usize; 3] {
        let added = self.size("add_embedding.linear_1.weight", 1);
        [self.size("conv_in.weight", 0), self.context(), added].map(Option::unwrap_or_default)
    }

    /// The number of layers of a transformer; 0 if there is none.
    fn depth(&self, transformer: &str) -> usize {
        (0..).take_while(|n| self.0.has(&format!("{transformer}.transformer_blocks.{n}.norm1.weight"))).count()
    }

    /// The number of transformer layers behind each residual block of a path, level by level: 0 without attention.
    fn depths(&self, path: &str) -> Vec<usize> {
        let has = |name: String| self.0.has(&name);
        let level = |level: usize| -> Vec<usize> {
            let is_there = |i: &usize| has(format!("{path}.{level}.resnets.{i}.conv1.weight"));
            (0..).take_while(is_there).map(|i| self.depth(&format!("{path}.{level}.attentions.{i}"))).collect()
        };
        (0..).map(level).take_while(|level| !level.is_empty()).flatten().collect()
    }
}

/// A published UNet: the kind of model, the widths of the first level, of the text features and of other conditions (0
/// without them), and the depths of its transformers on the way down and up.
type Published = (&'static str, [usize; 3], &'static [usize], &'static [usize]);

const PUBLISHED: [Published; 6] = [
    ("sd1", [320, 768, 0], &[1, 1, 1, 1, 1, 1, 0, 0], &[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("sd2", [320, 1024, 0], &[1, 1, 1, 1, 1, 1, 0, 0], &[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("sdxl", [320, 2048, 2816], &[0, 0, 2, 2, 10, 10], &[10, 10, 10, 2, 2, 2, 0, 0, 0]),
    ("sdxl-refiner", [384, 1280, 2560], &[0, 0, 4, 4, 4, 4, 0, 0], &[0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0]),
    ("ssd-1b", [320, 2048, 2816], &[0, 0, 2, 2, 4, 4], &[4, 4, 10, 2, 1, 1, 0, 0, 0]),
    ("segmind-vega", [320, 2048, 2816], &[0, 0, 1, 1, 2, 2], &[2, 2, 2, 1, 1, 1, 0, 0, 0]),
];

/// The kind of model with this UNet, whose configs are built in.
fn kind(unet: &Weights, training: &Training) -> Result<&'static str> {
    let refuse = |what: &str| {
        Error::input(format!("no configs are built in for it: {what}"))
            .hint("--config FOLDER, a diffusers folder with the configs and the tokenizer of this model")
    };
    let shapes = Shapes(unet);
    let sizes = shapes.sizes();
    let inputs = shapes.inputs().unwrap_or(0);
    if unet.has_stored("edm_mean") || unet.has_stored("edm_vpred.sigma_max") {
        return Err(refuse("it was trained with the noise levels of EDM (Playground 2.5, CosXL)"));
    }
    if unet.has("time_embedding.cond_proj.weight") {
        return Err(refuse("it was distilled to take the guidance as an input (LCM)"));
    }
    match inputs {
        5 => return Err(refuse("5 input channels: it draws from a depth map as well")),
        7 => return Err(refuse("7 input channels: it is an upscaler")),
        8 => return Err(refuse("8 input channels: it edits pictures as told (InstructPix2Pix)")),
        _ => {}
    }
    let (down, up) = (shapes.depths("down_blocks"), shapes.depths("up_blocks"));
    let Some((kind, ..)) =
        PUBLISHED.iter().find(|(_, of, of_down, of_up)| *of == sizes && *of_down == down && *of_up == up)
    else {
        let reduced = PUBLISHED.iter().find(|(_, of, ..)| *of == sizes);
        let [width, context, added] = sizes;
        return Err(match reduced {
            Some((kind, ..)) => {
                refuse(&format!("its UNet is a changed one of the kind {kind}, as those of small distilled models are"))
                    .found(format!("transformers of {down:?} layers on the way down and {up:?} on the way up"))
            }
            None => refuse("its UNet is none of Stable Diffusion 1, 2 or XL").found(format!(
                "{width} channels, text features of {context}, other conditions of {added}, {inputs} input channels"
            )),
        });
    };
    match (*kind, inputs, training.prediction) {
        ("sd2", 4, Prediction::Velocity) => Ok("sd2-768-v"),
        (kind, 4, _) => Ok(kind),
        ("sd1", 9, _) => Ok("sd1-inpainting"),
        ("sd2", 9, _) => Ok("sd2-inpainting"),
        ("sdxl", 9, _) => Ok("sdxl-inpainting"),
        _ => Err(refuse("its number of input channels is not known").found(inputs.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;

    /// A file with some tensors of zeros.
    fn file(shapes: &BTreeMap<String, Vec<usize>>) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape) in shapes {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            let about = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), about);
        }
        let header = Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + end, 0);
        fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn the_config_of_a_published_controlnet_is_found_from_its_shapes() {
        // The width of the text features, that of other conditions, the depths of the transformers level by level, that
        // of the middle, and what the config has.
        for (context, added, down, mid, wanted) in [
            (768, 0, &[1, 1, 1, 0][..], 1, [Value::Null, Value::Null, 768.into()]),
            (1024, 0, &[1, 1, 1, 0], 1, [Value::Null, Value::Bool(true), 1024.into()]),
            (2048, 2816, &[0, 2, 10], 10, [serde_json::json!([1, 2, 10]), Value::Bool(true), 2048.into()]),
            (2048, 2816, &[0, 0, 1], 1, [serde_json::json!([0, 0, 1]), Value::Bool(true), 2048.into()]),
            (2048, 2816, &[0, 0, 0], 0, [serde_json::json!([0, 0, 0]), Value::Bool(true), 2048.into()]),
        ] {
            let mut shapes = BTreeMap::from([
                ("conv_in.weight".to_owned(), vec![320, 4, 3, 3]),
                ("controlnet_cond_embedding.conv_in.weight".to_owned(), vec![1]),
            ]);
            if added > 0 {
                shapes.insert("add_embedding.linear_1.weight".to_owned(), vec![2, added]);
            }
            let mut transformer = |name: String, depth: usize| {
                for layer in 0..depth {
                    let block = format!("{name}.transformer_blocks.{layer}");
                    shapes.insert(format!("{block}.norm1.weight"), vec![2]);
                    shapes.insert(format!("{block}.attn2.to_k.weight"), vec![2, context]);
                }
            };
            transformer("mid_block.attentions.0".to_owned(), mid);
            for (level, &depth) in down.iter().enumerate() {
                (0..2).for_each(|i| transformer(format!("down_blocks.{level}.attentions.{i}"), depth));
            }
            for level in 0..down.len() {
                (0..2)
                    .for_each(|i| _ = shapes.insert(format!("down_blocks.{level}.resnets.{i}.conv1.weight"), vec![1]));
            }
            let stored = file(&shapes);
            let files = ModelFiles::embedded("m", &[]).with_weights("controlnet", stored.path());
            let weights = Weights::open(&files, "controlnet", None).unwrap();
            let config: Value = serde_json::from_str(&controlnet_config(&weights).unwrap()).unwrap();
            let keys = ["transformer_layers_per_block", "use_linear_projection", "cross_attention_dim"];
            assert_eq!(keys.map(|key| config.get(key).cloned().unwrap_or(Value::Null)), wanted, "{config}");
            assert_eq!(config["block_out_channels"].as_array().unwrap().len(), down.len());
            // Another width is none of them.
            shapes.insert("conv_in.weight".to_owned(), vec![384, 4, 3, 3]);
            let stored = file(&shapes);
            let files = ModelFiles::embedded("m", &[]).with_weights("controlnet", stored.path());
            let error = controlnet_config(&Weights::open(&files, "controlnet", None).unwrap()).unwrap_err();
            assert!(error.to_string().contains("no config is built in"), "{error}");
        }
    }
}
