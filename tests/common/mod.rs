//! The program and the small model, for tests from outside.
#![allow(dead_code)] // each test program uses its part

pub mod controlnet;
pub mod formula;
pub mod maps;
pub mod page;
pub mod pictures;
#[cfg(feature = "cuda")]
pub mod rig;

use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use sdshard::{
    pipeline::{
        Model,
        request::{Output as Kind, Request, Rng, Start},
    },
    prompt::PromptSyntax,
    weights::ModelFiles,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The small model, opened.
pub fn model() -> Arc<Model> {
    let files = ModelFiles::folder(format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"))).unwrap();
    Arc::new(Model::open(files, None).unwrap())
}

/// A guided picture of its own text, for the small model.
pub fn request(n: u64) -> Request {
    Request {
        prompt: format!("picture {n}"),
        prompt_syntax: PromptSyntax::Plain,
        chunks: 1,
        prompt_2: None,
        negative_prompt: Some("blur".into()),
        negative_prompt_2: None,
        seed: n,
        steps: 2,
        guidance_scale: 7.5,
        guidance_rescale: 0.0,
        eta: 0.0,
        clip_skip: 0,
        vae_tiling: false,
        scheduler: None,
        width: 64,
        height: 64,
        rng: Rng::TorchCpu,
        start: Start::Noise,
        controls: Vec::new(),
        output: Kind::Image,
        step_latents: false,
    }
}

/// The program, with none of the variables that change what it does.
pub fn sdshard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sdshard"));
    command.args(arguments).stdin(Stdio::null());
    for variable in ["RUST_LOG", "SDSHARD_THREADS", "SDSHARD_CPU_PATH"] {
        command.env_remove(variable);
    }
    command
}

pub fn run(arguments: &[&str]) -> Output {
    sdshard(arguments).output().expect("the program was built for this test")
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

/// Runs what has to work, and gives what it wrote to stdout.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("the program was built for this test");
    assert_eq!(output.status.code(), Some(0), "{command:?}\n{}", text(&output.stderr));
    text(&output.stdout).to_string()
}

/// Runs what has to be refused before anything is done, and gives the message.
#[track_caller]
pub fn refused(arguments: &[&str]) -> String {
    message_of(sdshard(arguments).output().expect("the program was built for this test"), &format!("{arguments:?}"))
}

/// The one message of a run that was refused.
#[track_caller]
pub fn message_of(output: Output, what: &str) -> String {
    let message = text(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(2), "{what}\n{message}");
    assert_eq!(text(&output.stdout), "", "{what}");
    assert_eq!(message.matches("error: ").count(), 1, "{what}\n{message}");
    assert!(message.starts_with("error: "), "{what}\n{message}");
    message
}

/// Fails unless a message has each of these facts, in whatever words: a file, a key, what was found, what is possible.
#[track_caller]
pub fn has_facts(what: impl Debug, message: &str, facts: &[&str]) {
    for fact in facts {
        assert!(message.contains(fact), "{what:?}: wanted: {fact}\n{message}");
    }
    assert!(!message.contains("panicked"), "{what:?}: {message}");
}

/// The same of a message that begins with the place that it is about, as in `map.toml:2:8: components.unet: `.
#[track_caller]
pub fn points_at(message: &str, at: &str, fact: &str) {
    assert!(message.starts_with(at), "wanted: {at}\n{message}");
    has_facts(at, message, &[fact]);
}

/// Where the small model with random weights is.
pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny-sd1")
}

/// A new folder with a copy of the small model in `model`, to be broken.
pub fn copy_of_tiny() -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => copy(&entry.path(), &to),
                false => fs::write(to, fs::read(entry.path()).unwrap()).unwrap(),
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&tiny(), &folder.path().join("model"));
    folder
}

/// The configs of SDXL, and nothing else.
pub fn sdxl() -> TempDir {
    let folder = stable_diffusion("1.5", false);
    let part = |library: &str, class: &str| json!([library, class]);
    for (path, value) in [
        (
            "model_index.json",
            json!({
                "_class_name": "StableDiffusionXLPipeline", "scheduler": part("diffusers", "EulerDiscreteScheduler"),
                "text_encoder": part("transformers", "CLIPTextModel"),
                "text_encoder_2": part("transformers", "CLIPTextModelWithProjection"),
                "tokenizer": part("transformers", "CLIPTokenizer"), "unet": part("diffusers", "UNet2DConditionModel"),
                "tokenizer_2": part("transformers", "CLIPTokenizer"), "vae": part("diffusers", "AutoencoderKL"),
            }),
        ),
        (
            "text_encoder_2/config.json",
            json!({
                "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
                "hidden_act": "gelu", "projection_dim": 1280,
            }),
        ),
        (
            "unet/config.json",
            json!({
                "sample_size": 128, "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
                "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "use_linear_projection": true, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            }),
        ),
        ("scheduler/scheduler_config.json", json!({"_class_name": "EulerDiscreteScheduler"})),
    ] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }
    folder
}

/// The configs of Stable Diffusion 1.5 or 2.1, and nothing else.
pub fn stable_diffusion(version: &str, with_safety_checker: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (down, up) = (["DownEncoderBlock2D"; 4], ["UpDecoderBlock2D"; 4]);
    let cross = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
    let cross_up = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"];
    let (text, heads) = match version {
        "1.5" => (
            json!({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                "hidden_act": "quick_gelu"}),
            json!(8),
        ),
        _ => (
            json!({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
                "hidden_act": "gelu"}),
            json!([5, 10, 20, 20]),
        ),
    };
    let checker = if with_safety_checker {
        json!(["stable_diffusion", "StableDiffusionSafetyChecker"])
    } else {
        json!([null, null])
    };
    for (path, value) in [
        (
            "model_index.json",
            json!({
                "_class_name": "StableDiffusionPipeline", "feature_extractor": ["transformers", "CLIPImageProcessor"],
                "safety_checker": checker, "scheduler": ["diffusers", "PNDMScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            }),
        ),
        ("text_encoder/config.json", text.clone()),
        (
            "unet/config.json",
            json!({
                "sample_size": 64, "attention_head_dim": heads, "cross_attention_dim": text["hidden_size"],
                "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "down_block_types": cross,
                "up_block_types": cross_up, "use_linear_projection": version != "1.5",
            }),
        ),
        (
            "vae/config.json",
            json!({
                "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
                "down_block_types": down, "up_block_types": up,
            }),
        ),
        ("scheduler/scheduler_config.json", json!({"_class_name": "PNDMScheduler", "skip_prk_steps": true})),
        (
            "safety_checker/config.json",
            json!({
                "projection_dim": 768,
                "vision_config": {
                    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                    "patch_size": 14, "image_size": 224,
                },
            }),
        ),
    ] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }
    folder
}

/// The names in a folder, in order; none if it is not there.
pub fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Each line of stdout as JSON.
pub fn json_lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Names and kinds of an object's fields, as in `{"seed": 7}` is `seed: number`.
pub fn fields(object: &Value) -> Vec<String> {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    let object = object.as_object().unwrap_or_else(|| panic!("no object: {object}"));
    object.iter().map(|(name, value)| format!("{name}: {}", kind(value))).collect()
}

/// `sdshard` with the small model at 64x64 and two steps into `out`, unless the arguments say otherwise.
pub struct Tiny {
    pub folder: TempDir,
}

impl Tiny {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// A file beside the output folder.
    pub fn file(&self, name: &str, contents: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_string()
    }

    pub fn draw(&self, arguments: &[&str]) -> Command {
        let mut command = sdshard(arguments);
        command.arg("--output-dir").arg(self.out());
        let model = tiny();
        for (option, value) in
            [("--model", model.to_str().unwrap()), ("--width", "64"), ("--height", "64"), ("--steps", "2")]
        {
            if !arguments.contains(&option) {
                command.args([option, value]);
            }
        }
        command
    }

    /// The bytes of each file that was made, by name.
    pub fn made(&self) -> Vec<(String, Vec<u8>)> {
        let read = |name: String| (name.clone(), fs::read(self.out().join(name)).unwrap());
        files(&self.out()).into_iter().map(read).collect()
    }
}

/// Pixels of a PNG: width, height, RGB.
pub fn pixels(png: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width, info.height, pixels)
}
