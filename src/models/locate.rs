//! Finds the files of the model that a user names.

use std::{ops::ControlFlow, path::Path};

use super::index::{DEFAULTS, SCHEDULER};
#[cfg(feature = "hub")]
use crate::weights::hub;
use crate::{
    error::{Error, Result},
    weights::{Download, ModelFiles, ModelLayout, Wanted, files::MODEL_INDEX, is_hub_id},
};

/// The files of a Stable Diffusion model in diffusers' layout.
pub const LAYOUT: ModelLayout = ModelLayout {
    configs: &[MODEL_INDEX, SCHEDULER, "text_encoder/config.json", "unet/config.json", "vae/config.json"],
    optional_configs: &[DEFAULTS, "tokenizer/tokenizer_config.json", "safety_checker/config.json"],
    texts: &[&["tokenizer/tokenizer.json"], &["tokenizer/vocab.json", "tokenizer/merges.txt"]],
    optional_texts: &["tokenizer/added_tokens.json", "tokenizer/special_tokens_map.json"],
    weights: &["text_encoder", "unet", "vae"],
};

/// The files of `model`: a diffusers folder, or the id of a model on the hub, which may have a revision and is
/// downloaded if the cache lacks it. `on_news` receives the events of the download and can stop it.
///
/// Fails if it is neither, or if the hub or its cache has no such model.
pub fn locate(
    model: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    wanted: Wanted,
    on_news: &mut dyn FnMut(Download) -> ControlFlow<()>,
) -> Result<ModelFiles> {
    if !is_hub_id(model) || Path::new(model).exists() {
        if let Some(revision) = revision {
            return Err(Error::input(format!(
                "the model {model}: a revision is given, and only the hub has revisions"
            ))
            .found(format!("revision \"{revision}\"")));
        }
        return ModelFiles::folder(model).map_err(|error| match Path::new(model).exists() {
            true => error,
            false => error.hint("a diffusers folder, or a hub id such as org/name"),
        });
    }
    #[cfg(feature = "hub")]
    {
        let snapshot = hub::Hub::from_environment()
            .and_then(|hub| hub.resolve(&LAYOUT, model, revision, variant, wanted, on_news))
            .map_err(|error| match error.scope() {
                crate::error::ErrorScope::Interrupted => error,
                _ => error.context(format!("there is no folder {model} here, so it is taken for a hub id")),
            })?;
        Ok(ModelFiles::folder(snapshot)?.with_name(model))
    }
    #[cfg(not(feature = "hub"))]
    {
        let _ = (revision, variant, wanted, on_news);
        Err(Error::input(format!("the model {model}: there is no such folder"))
            .hint("this sdshard was built without the feature `hub`, so it reads folders only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_folder_or_a_hub_id() {
        let mut ignore = |_| ControlFlow::Continue(());
        for id in ["org/name", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/b.c_d"] {
            assert!(is_hub_id(id), "{id}");
        }
        for text in [
            "",
            "name",
            "/",
            "/org/name",
            "a/b/c",
            "../x",
            "a/..",
            "./x",
            "~/x",
            "a b/c",
            "a/b:c",
            "a/",
            "a--b/c",
            "a/b--c",
        ] {
            assert!(!is_hub_id(text), "{text}");
        }
        assert_eq!(locate("models/emoji", None, None, Wanted::Everything, &mut ignore).unwrap().name(), "emoji");
        let error = locate("no-such-model", None, None, Wanted::Everything, &mut ignore).unwrap_err().to_string();
        assert!(error.contains("there is no such folder") && error.contains("org/name"), "{error}");
    }
}
