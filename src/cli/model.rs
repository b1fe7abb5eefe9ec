//! `--model`: a folder, a hub id, or the model that is built in.

use sdshard::{
    error::{Error, Result},
    pipeline::{Component, Model},
    weights::{self, ModelFiles, Wanted},
};

use super::{ModelArgs, progress::Console};

/// Where the model is that the arguments name.
pub fn files(args: &ModelArgs, wanted: Wanted, console: &Console) -> Result<ModelFiles> {
    match &args.model {
        None if args.revision.is_some() => {
            Err(Error::input("--revision: only a model on the hub has revisions").hint("--model ORG/NAME"))
        }
        None => built_in(console),
        Some(name) => weights::locate(name, args.revision.as_deref(), args.variant.as_deref(), wanted, |file| {
            console.note(&format!("downloading {name}: {file}"));
        }),
    }
}

/// Opens the model that the arguments name.
pub fn open(args: &ModelArgs, console: &Console) -> Result<Model> {
    let files = files(args, Wanted::Everything, console)?;
    if let Some(variant) = &args.variant {
        for component in weights::without_variant(&files, &Component::ALL.map(Component::name), variant)? {
            console.note(&format!("model: {component} has no files of the variant {variant}; reading its plain ones"));
        }
    }
    Model::open(files, args.variant.clone())
}

/// The model that is built in, without a word about it.
pub fn built_in_alone() -> Result<Model> {
    Model::open(embedded()?, None)
}

#[cfg(feature = "builtin-model")]
fn embedded() -> Result<ModelFiles> {
    Ok(ModelFiles::embedded("emoji", sdshard_emoji::FILES))
}

#[cfg(not(feature = "builtin-model"))]
fn embedded() -> Result<ModelFiles> {
    Err(Error::input("this build has no model of its own").hint("--model FOLDER or --model ORG/NAME"))
}

#[cfg(feature = "builtin-model")]
fn built_in(console: &Console) -> Result<ModelFiles> {
    console.note(
        "model: the built-in toy model, emoji of single things at 128x128; \
         --model ORG/NAME or --model FOLDER takes a real checkpoint",
    );
    embedded()
}

#[cfg(not(feature = "builtin-model"))]
fn built_in(_: &Console) -> Result<ModelFiles> {
    embedded()
}
