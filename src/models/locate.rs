//! Finds the files of the model that a user names.

use std::{ops::ControlFlow, path::Path};

use super::{
    index::{DEFAULTS, SCHEDULER, TOKENIZER_CONFIG},
    pipelines::class_of_part,
    single_file::{self, Overrides},
};
#[cfg(feature = "hub")]
use crate::weights::hub;
use crate::{
    error::{Error, Result},
    json::Object,
    weights::{Components, Download, HubPlace, ModelFiles, ModelLayout, Wanted, files::MODEL_INDEX},
};

/// The files of a Stable Diffusion model in diffusers' layout.
pub const LAYOUT: ModelLayout = ModelLayout {
    index: MODEL_INDEX,
    components,
    configs: &[SCHEDULER],
    optional_configs: &[DEFAULTS, "safety_checker/config.json"],
    texts: &[&["tokenizer.json"], &["vocab.json", "merges.txt"]],
    optional_texts: &[TOKENIZER_CONFIG, "added_tokens.json", "special_tokens_map.json"],
};

/// The components that a `model_index.json` lists and sdshard reads.
fn components(index: &str) -> Result<Components> {
    let index = Object::parse(index, MODEL_INDEX)?;
    let listed = |names: &[&str]| {
        names.iter().filter(|name| class_of_part(&index, name).is_some()).map(|name| (*name).to_owned()).collect()
    };
    Ok(Components {
        networks: listed(&["text_encoder", "text_encoder_2", "unet", "vae"]),
        tokenizers: listed(&["tokenizer", "tokenizer_2"]),
    })
}

/// The files of `model`, changed by `overrides`: a diffusers folder, a single-file checkpoint, or either of these on the
/// hub, which may have a revision and is downloaded if the cache lacks it. The hub's are `org/name`, `org/name/file`, or
/// an address of the site. `on_news` receives the events of the download and can stop it.
///
/// Fails if it is none of these, or if the hub or its cache has no such model.
pub fn locate(
    model: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    overrides: &Overrides,
    wanted: Wanted,
    on_news: &mut dyn FnMut(Download) -> ControlFlow<()>,
) -> Result<ModelFiles> {
    let path = Path::new(model);
    let on_hub = if path.exists() { None } else { HubPlace::parse(model)? };
    let Some(place) = on_hub else {
        if let Some(revision) = revision {
            return Err(Error::input(format!(
                "the model {model}: a revision is given, and only the hub has revisions"
            ))
            .found(format!("revision \"{revision}\"")));
        }
        return match (path.is_file(), path.exists()) {
            (true, _) => single_file::open(path, overrides),
            (false, true) => overrides.apply(ModelFiles::folder(model)?),
            (false, false) => Err(Error::input(format!("the model {model}: there is no such folder or file"))
                .hint("a diffusers folder, a .safetensors file, or a hub id such as org/name")),
        };
    };
    let revision = match (&place.revision, revision) {
        (Some(own), Some(other)) if own != other => {
            return Err(Error::input(format!("the model {model}: its address has a revision already"))
                .found(format!("revision \"{other}\"")));
        }
        (own, other) => own.as_deref().or(other),
    };
    #[cfg(feature = "hub")]
    {
        let hub = hub::Hub::from_environment()?;
        let found = match &place.file {
            None => hub.resolve(&LAYOUT, &place.id, revision, variant, wanted, on_news),
            Some(file) => hub.resolve_file(&place.id, revision, file, on_news),
        };
        let found = found.map_err(|error| match error.scope() {
            crate::error::ErrorScope::Interrupted => error,
            _ => error.context(format!("there is no folder or file {model} here, so it is looked for on the hub")),
        })?;
        match place.file {
            None => overrides.apply(ModelFiles::folder(found)?.with_name(place.id)),
            Some(_) => single_file::open(&found, overrides),
        }
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = (revision, variant, wanted, on_news);
        Err(Error::input(format!("the model {model}: there is no such folder or file"))
            .hint("this sdshard was built without the feature `hub`, so it reads local models only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_folder_or_a_file_or_on_the_hub() {
        let mut ignore = |_| ControlFlow::Continue(());
        let mut locate = |model| locate(model, None, None, &Overrides::default(), Wanted::Everything, &mut ignore);
        assert_eq!(locate("models/emoji").unwrap().name(), "emoji");
        let error = locate("no-such-model").unwrap_err().to_string();
        assert!(error.contains("there is no such folder") && error.contains("org/name"), "{error}");
    }
}
