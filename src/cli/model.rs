//! `--model` and `--device-map`: finds and opens the model in a folder, on the hub or built in; and reads the map, with
//! the changes that other flags make.

use std::{ops::ControlFlow, path::Path, sync::atomic::Ordering};

use sdshard::{
    device_map::{DeviceMap, Located, Strategy},
    error::{Error, Result},
    models::{locate::locate, spec::ModelSpec},
    pipeline::Model,
    weights::{self, Download, EmbeddingChoice, HubPlace, ModelFiles, Wanted},
};

use super::{
    args::{MapArgs, ModelArgs},
    interrupt::Interrupt,
    progress::Console,
};

/// The files of the model that the arguments name.
///
/// Missing files of a hub model are downloaded; `interrupt` stops the download.
pub fn files(args: &ModelArgs, wanted: Wanted, console: &Console, interrupt: Option<&Interrupt>) -> Result<ModelFiles> {
    match &args.model {
        None if args.revision.is_some() => {
            Err(Error::input("--revision: only a model on the hub has revisions").hint("--model ORG/NAME"))
        }
        None => args.overrides().apply(built_in(console)?),
        Some(name) => {
            let mut transfer = None;
            let mut on_news = |news: Download| {
                let title = |path: &str| format!("downloading {name}: {path}");
                match news {
                    Download::File { path, bytes } => transfer = Some(console.transfer(&title(&path), bytes)),
                    Download::Bytes(bytes) => transfer.iter_mut().for_each(|transfer| transfer.at(bytes)),
                    Download::Complete => transfer = None,
                    Download::Waiting { path } => {
                        console.note(&format!("{}: waiting for another process that fetches it", title(&path)));
                    }
                    Download::Retry { what, why } => {
                        console.note(&format!("downloading {name}: {what}: {why}; trying again"));
                    }
                    _ => {}
                }
                match interrupt {
                    Some(interrupt) if interrupt.requested().load(Ordering::Relaxed) => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            };
            locate(name, args.revision.as_deref(), args.variant.as_deref(), &args.overrides(), wanted, &mut on_news)
        }
    }
}

/// Opens the model that the arguments name, with the encoder of its VAE if pictures are to start from others.
pub fn open(args: &ModelArgs, for_images: bool, console: &Console, interrupt: Option<&Interrupt>) -> Result<Model> {
    // The parts of a hub model that need no weights are checked before the weights are downloaded.
    let place = args.model.as_deref().filter(|name| !Path::new(name).exists()).map(HubPlace::parse).transpose()?;
    if place.flatten().is_some_and(|place| place.file.is_none()) {
        ModelSpec::load(&files(args, Wanted::Configs, console, interrupt)?)?;
        Model::without_weights(files(args, Wanted::Texts, console, interrupt)?, args.variant.clone())?;
    }
    let files = with_found(files(args, Wanted::Everything, console, interrupt)?, args)?;
    if let Some(variant) = &args.variant {
        for component in weights::without_variant(&files, &ModelSpec::load(&files)?.folders(), variant)? {
            console.note(&format!("model: {component} has no files of the variant {variant}; reading its plain ones"));
        }
    }
    match for_images {
        true => Model::open_for_images(files, args.variant.clone()),
        false => Model::open(files, args.variant.clone()),
    }
}

/// The model with the textual inversions that were found in a folder, but for those that do not fit it: a folder may
/// have those of several kinds of models.
pub fn with_found(files: ModelFiles, args: &ModelArgs) -> Result<ModelFiles> {
    if args.found_embeddings.is_empty() {
        return Ok(files);
    }
    let model = Model::without_weights(files.clone(), None)?;
    let mut all = files.embeddings().to_vec();
    for choice in &args.found_embeddings {
        let is_same = |other: &&EmbeddingChoice| {
            let name = |choice: &EmbeddingChoice| choice.token.as_deref().map(str::to_lowercase);
            name(other) == name(choice)
        };
        let checked = match all.iter().find(is_same) {
            Some(other) => Err(Error::input(format!("the embedding {}: another has its name", choice.path.display()))
                .found(other.path.display().to_string())),
            None => model.check_embedding(choice),
        };
        match checked {
            Ok(()) => all.push(choice.clone()),
            Err(error) => tracing::warn!("--embedding-dir: {error}; it is left out"),
        }
    }
    Ok(files.with_embeddings(&all))
}

/// Opens the built-in model without printing a message.
pub fn built_in_alone() -> Result<Model> {
    Model::open(embedded()?, None)
}

#[cfg(feature = "builtin-model")]
fn embedded() -> Result<ModelFiles> {
    Ok(ModelFiles::embedded("emoji", sdshard_emoji::FILES))
}

#[cfg(not(feature = "builtin-model"))]
fn embedded() -> Result<ModelFiles> {
    Err(Error::input("this build has no built-in model")
        .hint("--model FOLDER, --model FILE.safetensors or --model ORG/NAME"))
}

#[cfg(feature = "builtin-model")]
fn built_in(console: &Console) -> Result<ModelFiles> {
    console.note(
        "model: the built-in toy model, emoji of single things at 128x128; \
         --model ORG/NAME, FOLDER or FILE.safetensors takes a real checkpoint",
    );
    embedded()
}

#[cfg(not(feature = "builtin-model"))]
fn built_in(_: &Console) -> Result<ModelFiles> {
    embedded()
}

/// The map that the arguments select; without one, as many replicas as fit on the devices.
pub fn device_map(args: &MapArgs) -> Result<DeviceMap> {
    let mut map = match &args.device_map {
        Some(name) => DeviceMap::load(name)?,
        None => DeviceMap::from_strategy(Strategy::Throughput),
    };
    if let Some(dtype) = args.dtype {
        map.dtype = dtype.dtypes();
    }
    if !args.device.is_empty() {
        if !map.replica.is_empty() {
            return Err(Error::input("--device: the device map writes out its replicas, with devices of their own")
                .hint("another --device-map, or leave --device out"));
        }
        map.devices = args.device.iter().map(|device| Located::flag("--device", *device)).collect();
        map.check()?;
    }
    Ok(map)
}
