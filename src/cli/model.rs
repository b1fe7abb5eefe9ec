//! `--model`: a folder, a hub id, or the model that is built in.

use std::path::Path;

use sdshard::{error::Result, pipeline::Model, weights::ModelFiles};

use super::{ModelArgs, progress::Console};

#[cfg(feature = "builtin-model")]
macro_rules! embed {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../models/emoji/", $path)))),*]
    };
}

#[cfg(feature = "builtin-model")]
const BUILT_IN: &[sdshard::weights::files::EmbeddedFile] = embed![
    "model_index.json",
    "sdshard.toml",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Opens the model that the arguments name.
pub fn open(args: &ModelArgs, console: &Console) -> Result<Model> {
    let files = match &args.model {
        None => built_in(console)?,
        // An existing folder is a folder, also where it looks like an id.
        Some(name) if Path::new(name).exists() => ModelFiles::folder(name)?,
        Some(name) => ModelFiles::folder(name)?,
    };
    Model::open(files, args.variant.clone())
}

#[cfg(feature = "builtin-model")]
fn built_in(console: &Console) -> Result<ModelFiles> {
    console.note(
        "model: the built-in toy model, emoji of single things at 128x128; \
         --model ORG/NAME or --model FOLDER takes a real checkpoint",
    );
    Ok(ModelFiles::embedded("emoji", BUILT_IN))
}

#[cfg(not(feature = "builtin-model"))]
fn built_in(_: &Console) -> Result<ModelFiles> {
    Err(Error::input("this build has no model of its own").hint("--model FOLDER or --model ORG/NAME"))
}
