//! `--model`: a folder, a hub id, or the model that is built in.

use std::path::Path;

#[cfg(not(all(feature = "hub", feature = "builtin-model")))]
use sdshard::error::Error;
#[cfg(feature = "hub")]
use sdshard::weights::hub;
use sdshard::{
    error::Result,
    pipeline::{Component, Model},
    weights::{ModelFiles, without_variant},
};

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
        Some(name) if !Path::new(name).exists() && is_hub_id(name) => from_hub(name, args, console)?,
        Some(name) => ModelFiles::folder(name)?,
    };
    if let Some(variant) = &args.variant {
        for component in without_variant(&files, &Component::ALL.map(Component::name), variant)? {
            console.note(&format!("model: {component} has no files of the variant {variant}; reading its plain ones"));
        }
    }
    Model::open(files, args.variant.clone())
}

/// `org/name`: two plain words.
fn is_hub_id(name: &str) -> bool {
    let plain = |word: &str| {
        !word.is_empty()
            && !word.starts_with('.')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name))
}

#[cfg(feature = "hub")]
fn from_hub(id: &str, args: &ModelArgs, console: &Console) -> Result<ModelFiles> {
    let folder = hub::resolve(id, args.revision.as_deref(), args.variant.as_deref(), |file| {
        console.note(&format!("downloading {id}: {file}"));
    })?;
    Ok(ModelFiles::folder(folder)?.with_name(id))
}

#[cfg(not(feature = "hub"))]
fn from_hub(id: &str, _: &ModelArgs, _: &Console) -> Result<ModelFiles> {
    Err(Error::input(format!("the model {id}: there is no such folder, and this build does not ask the hub"))
        .hint("--model FOLDER"))
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
