//! Finds the files with a component's tensors: one file, or several with an index, under all names that are in use.

use std::collections::BTreeSet;

use super::files::ModelFiles;
use crate::{
    error::{Error, Result},
    json::Object,
};

/// The largest number of shards, which is more than any model has.
const MOST_SHARDS: usize = 1000;

/// A component's files, relative to the model's folder.
#[derive(Debug, PartialEq)]
pub(super) struct Sources {
    pub(super) files: Vec<String>,
    /// For each tensor, the position in `files` of the file that must contain it; empty if there is no index.
    pub(super) homes: Vec<(String, usize)>,
    /// Whether these are the files of the requested variant.
    pub(super) is_variant: bool,
}

/// Finds the files of `component`: a single file that the model has it from, or those of `variant`, or the plain ones.
pub(super) fn find(files: &ModelFiles, component: &str, variant: Option<&str>) -> Result<Sources> {
    check_variant(variant)?;
    if let Some((path, _)) = files.file_of(component) {
        return Ok(Sources { files: vec![path], homes: Vec::new(), is_variant: false });
    }
    let first = |candidates: Vec<String>| candidates.into_iter().find(|path| files.exists(path));
    if let Some(path) = variant.and_then(|variant| first(variant_candidates(component, variant))) {
        return Ok(Sources { is_variant: true, ..read(files, component, path)? });
    }
    match first(plain_candidates(component)) {
        Some(path) => read(files, component, path),
        None => Err(nothing_found(files, component)),
    }
}

/// Fails if the name of a variant cannot be part of a file name.
pub(super) fn check_variant(variant: Option<&str>) -> Result<()> {
    let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    match variant {
        Some(variant) if variant.is_empty() || !is_word(variant) => {
            Err(Error::input("the variant of a model's files must be letters and digits")
                .found(variant)
                .hint("\"fp16\" is the usual one"))
        }
        _ => Ok(()),
    }
}

/// The candidate paths for a variant's tensors, the preferred ones first.
///
/// transformers, which reads the text encoder, prefers the single file; diffusers, which reads the UNet and the VAE,
/// prefers an index, also under the name that its older versions wrote.
pub(super) fn variant_candidates(component: &str, variant: &str) -> Vec<String> {
    let stem = stem(component);
    let path = |name: String| format!("{component}/{stem}.{name}");
    let single = path(format!("{variant}.safetensors"));
    let index = path(format!("safetensors.index.{variant}.json"));
    let older = path(format!("safetensors.{variant}.index.json"));
    let unread_by_them = path(format!("{variant}.safetensors.index.json"));
    match reader(component) {
        Reader::Transformers => vec![single, index, older, unread_by_them],
        Reader::Diffusers => vec![index, older, single, unread_by_them],
    }
}

/// The candidate paths for files without a variant.
pub(super) fn plain_candidates(component: &str) -> Vec<String> {
    let single = format!("{component}/{}.safetensors", stem(component));
    let index = format!("{single}.index.json");
    match reader(component) {
        Reader::Transformers => vec![single, index],
        Reader::Diffusers => vec![index, single],
    }
}

/// The Python library that reads a component.
enum Reader {
    Diffusers,
    Transformers,
}

fn reader(component: &str) -> Reader {
    match component {
        "unet" | "vae" => Reader::Diffusers,
        name if name.starts_with(super::CONTROLNET) => Reader::Diffusers,
        _ => Reader::Transformers,
    }
}

/// The name of a component's weight files up to the first dot.
fn stem(component: &str) -> &'static str {
    match reader(component) {
        Reader::Diffusers => "diffusion_pytorch_model",
        Reader::Transformers => "model",
    }
}

/// The files of a candidate: itself, or those that an index `{"weight_map": {tensor: file}}` names.
fn read(files: &ModelFiles, component: &str, path: String) -> Result<Sources> {
    if path.ends_with(".safetensors") {
        return Ok(Sources { files: vec![path], homes: Vec::new(), is_variant: false });
    }
    let index = Object::parse(&files.text(&path)?, files.path_of(&path))?;
    let map = index.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| index.refuse("weight_map", "an object of tensors and the files that hold them"))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_plain(name));
        names.insert(name.ok_or_else(|| {
            Error::input(format!("{}: `{tensor}` must be in a safetensors file beside the index", index.file()))
                .found(file.to_string())
        })?);
    }
    if !(1..=MOST_SHARDS).contains(&names.len()) {
        return Err(Error::input(format!("{}: an index names 1 to {MOST_SHARDS} files", index.file()))
            .found(format!("{} files", names.len())));
    }
    let names: Vec<&str> = names.into_iter().collect();
    let home = |file: &serde_json::Value| {
        let name = file.as_str().expect("checked above: every file is a text");
        names.binary_search(&name).expect("every file's name was collected above")
    };
    Ok(Sources {
        homes: map.iter().map(|(tensor, file)| (tensor.clone(), home(file))).collect(),
        files: names.iter().map(|name| format!("{component}/{name}")).collect(),
        is_variant: false,
    })
}

/// Whether a name is a plain file name, which cannot lead out of the folder.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0']) && !name.contains("..")
}

/// The error for a component without weights, with the files that were found instead.
fn nothing_found(files: &ModelFiles, component: &str) -> Error {
    let stem = stem(component);
    let single = &format!("{component}/{stem}.safetensors");
    let error =
        Error::input(format!("{}: there is no such file, so {component} has no weights", files.path_of(single)));
    let there = files.list(component);
    let variant = there.iter().find_map(|name| {
        name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".safetensors")?.split(['-', '.']).next()
    });
    if let Some(variant) = variant {
        return error.hint(format!("this folder has the variant \"{variant}\""));
    }
    if there.iter().any(|name| [".bin", ".ckpt", ".pt"].iter().any(|end| name.ends_with(end))) {
        return error
            .found("pickle files, which sdshard never reads")
            .hint("the same model with safetensors files: most are published in both forms");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&'static str], index: &'static str) -> ModelFiles {
        let files: Vec<_> = names.iter().map(|&name| (name, index.as_bytes())).collect();
        ModelFiles::embedded("m", files.leak())
    }

    #[test]
    fn finds_single_files_and_falls_back_to_the_plain_one() {
        let both =
            files(&["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"], "");
        let found = find(&both, "unet", Some("fp16")).unwrap();
        assert_eq!((&*found.files[0], found.is_variant), ("unet/diffusion_pytorch_model.fp16.safetensors", true));
        let found = find(&both, "unet", Some("bf16")).unwrap();
        assert_eq!((&*found.files[0], found.is_variant), ("unet/diffusion_pytorch_model.safetensors", false));
        assert!(find(&files(&["text_encoder/model.safetensors"], ""), "text_encoder", None).is_ok());
    }

    #[test]
    fn reads_an_index_under_each_of_its_names() {
        const INDEX: &str = r#"{"metadata": {"total_size": 8}, "weight_map": {
            "b": "x-00002-of-00002.fp16.safetensors", "a": "x-00001-of-00002.fp16.safetensors"}}"#;
        for name in [
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
            "unet/diffusion_pytorch_model.safetensors.fp16.index.json",
            "unet/diffusion_pytorch_model.fp16.safetensors.index.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ] {
            let found = find(&files(&[name], INDEX), "unet", Some("fp16")).unwrap();
            assert_eq!(
                found.files,
                ["unet/x-00001-of-00002.fp16.safetensors", "unet/x-00002-of-00002.fp16.safetensors"]
            );
            assert_eq!(found.homes, [("b".to_owned(), 1), ("a".to_owned(), 0)]);
            assert_eq!(found.is_variant, name.contains("fp16"));
        }
    }

    #[test]
    fn old_shards_beside_a_single_file_are_read_where_the_reference_reads_them() {
        const INDEX: &str = r#"{"weight_map": {"a": "shard.safetensors"}}"#;
        for (component, variant, there, wanted) in [
            ("text_encoder", None, &["model.safetensors", "model.safetensors.index.json"][..], "model.safetensors"),
            (
                "text_encoder",
                Some("fp16"),
                &["model.fp16.safetensors", "model.safetensors.index.fp16.json", "model.safetensors"],
                "model.fp16.safetensors",
            ),
            // The variant's shards come before another variant's single file, and before the plain one.
            (
                "text_encoder",
                Some("fp16"),
                &["model.safetensors", "model.safetensors.index.fp16.json"],
                "shard.safetensors",
            ),
            (
                "text_encoder",
                Some("bf16"),
                &["model.safetensors", "model.safetensors.index.json", "model.fp16.safetensors"],
                "model.safetensors",
            ),
            (
                "unet",
                None,
                &["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"],
                "shard.safetensors",
            ),
            (
                "vae",
                Some("fp16"),
                &["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"],
                "shard.safetensors",
            ),
            (
                "unet",
                Some("fp16"),
                &["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.fp16.index.json"],
                "shard.safetensors",
            ),
            (
                "unet",
                Some("fp16"),
                &["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.json"],
                "diffusion_pytorch_model.fp16.safetensors",
            ),
        ] {
            let names: Vec<&'static str> = there.iter().map(|name| &*format!("{component}/{name}").leak()).collect();
            let found = find(&files(&names, INDEX), component, variant).unwrap();
            assert_eq!(found.files, [format!("{component}/{wanted}")], "{component}, {variant:?}: {there:?}");
        }
    }

    #[test]
    fn refuses_an_index_that_leads_elsewhere() {
        for (index, words) in [
            (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "found: \"../x.safetensors\""),
            (r#"{"weight_map": {"a": "/x.safetensors"}}"#, "`a` must be in a safetensors file beside the index"),
            (r#"{"weight_map": {"a": "x\\y.safetensors"}}"#, "beside the index"),
            (r#"{"weight_map": {"a": "x.bin"}}"#, "found: \"x.bin\""),
            (r#"{"weight_map": {"a": 1}}"#, "found: 1"),
            (r#"{"weight_map": {}}"#, "found: 0 files"),
            (r#"{"weight_map": []}"#, "`weight_map` must be"),
            (r#"{}"#, "`weight_map` must be"),
            ("", "not JSON"),
        ] {
            let name = "vae/diffusion_pytorch_model.safetensors.index.json";
            let error = find(&files(&[name], index), "vae", None).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn says_what_is_there_instead() {
        let error = |name| find(&files(&[name], ""), "unet", None).unwrap_err().to_string();
        assert!(error("unet/diffusion_pytorch_model.fp16.safetensors").contains("the variant \"fp16\""));
        assert!(error("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors").contains("the variant \"fp16\""));
        assert!(error("unet/diffusion_pytorch_model.bin").contains("pickle"));
        assert!(error("vae/x").contains("m:unet/diffusion_pytorch_model.safetensors: there is no such file"));
        let error = find(&files(&[], ""), "unet", Some("../x")).unwrap_err().to_string();
        assert!(error.contains("found: ../x"), "{error}");
    }
}
