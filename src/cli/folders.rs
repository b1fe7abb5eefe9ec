//! Files that prompts name, in the folders of `--lora-dir` and `--embedding-dir`. Nothing else is searched.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sdshard::{
    error::{Error, Result},
    prompt::LoraTag,
    weights::{EmbeddingChoice, lora::LoraChoice},
};

/// The textual inversions in the folder of `--embedding-dir` whose names are in a text, in any case of letters, and
/// that were not `given` already. Whether they fit the model is not known here.
///
/// # Errors
/// If a folder cannot be read.
pub fn embeddings<'a>(
    folder: &Path,
    texts: impl Iterator<Item = &'a str>,
    given: &[EmbeddingChoice],
) -> Result<Vec<EmbeddingChoice>> {
    let texts: Vec<String> = texts.map(str::to_lowercase).collect();
    let is_used = |path: &PathBuf| {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
        let is_named = name.is_some_and(|name| texts.iter().any(|text| text.contains(&name)));
        is_named && given.iter().all(|given| !is_same_file(&given.path, path))
    };
    let files = files_in(folder, "--embedding-dir")?.into_iter().filter(is_used);
    let choice = |path: PathBuf| {
        // In plain prompts too, these are known by the names of their files.
        let token = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        EmbeddingChoice { path, token }
    };
    Ok(files.map(choice).collect())
}

/// The LoRA of a tag in a prompt, from the folder of `--lora-dir`.
///
/// # Errors
/// If there is no folder, no such file in it or several, or if it was `given` already: the web UI has no flags that
/// could say which weight counts.
pub fn lora(tag: &LoraTag, folder: Option<&Path>, given: &[LoraChoice]) -> Result<LoraChoice> {
    let refuse = |what: &str| Error::input(format!("{tag}: {what}"));
    let Some(folder) = folder else {
        return Err(refuse("it is not said where the LoRAs of prompts are").hint("--lora-dir FOLDER"));
    };
    let name = &tag.name;
    let path = match &loras(folder, name)?[..] {
        [path] => path.clone(),
        [] => return Err(refuse(&format!("there is no {name}.safetensors in {} or a folder below", folder.display()))),
        [one, other, ..] => {
            return Err(refuse("two files have this name")
                .found(format!("{} and {}", one.display(), other.display()))
                .hint("--lora FILE:WEIGHT, and no tag"));
        }
    };
    if let Some(other) = given.iter().find(|given| is_same_file(&given.path, &path)) {
        return Err(refuse("--lora adds this LoRA already")
            .found(format!("--lora {}:{}", other.path.display(), other.weight))
            .hint("the tag alone, or --lora alone"));
    }
    let text_encoder_weight = tag.text_encoder_weight as f32;
    Ok(LoraChoice { path, weight: tag.unet_weight as f32, text_encoder_weight })
}

/// The safetensors files of this name, which may come from a picture's settings, in a folder and in those below it, in
/// order.
fn loras(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let is_named = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == name);
    Ok(files_in(folder, "--lora-dir")?.into_iter().filter(is_named).collect())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| fs::canonicalize(path).ok();
    one == other || place(one).is_some_and(|one| Some(one) == place(other))
}

/// The safetensors files in a folder, which `flag` names, and in those below it, in order.
fn files_in(folder: &Path, flag: &str) -> Result<Vec<PathBuf>> {
    /// Folders are at most this deep.
    const DEPTH: usize = 8;
    fn walk(folder: &Path, depth: usize, flag: &str, found: &mut Vec<PathBuf>) -> Result<()> {
        let refuse = |error| Error::input(format!("{flag}: reading the folder {}", folder.display())).source(error);
        for entry in fs::read_dir(folder).map_err(refuse)? {
            let entry = entry.map_err(refuse)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(refuse)?);
            if kind.is_dir() && depth > 0 {
                walk(&path, depth - 1, flag, found)?;
            } else if !kind.is_dir() && path.extension().is_some_and(|extension| extension == "safetensors") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, DEPTH, flag, &mut found)?;
    found.sort();
    Ok(found)
}
