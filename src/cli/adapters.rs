//! Files on the command line with a weight or a token behind a colon, such as `--lora FILE[:WEIGHT]`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sdshard::{
    error::{Error, Result},
    prompt::LoraTag,
    weights::{EmbeddingChoice, lora::LoraChoice},
};

/// Reads `--lora FILE[:WEIGHT]`.
pub fn lora(argument: &str) -> std::result::Result<LoraChoice, String> {
    let (file, weight) = file_and_weight(argument).map_err(|error| error.to_string())?;
    Ok(LoraChoice { path: file.into(), weight: weight.unwrap_or(1.0) })
}

/// Reads `--embedding FILE[:TOKEN]`.
pub fn embedding(argument: &str) -> std::result::Result<EmbeddingChoice, String> {
    let (file, token) = file_and_token(argument).map_err(|error| error.to_string())?;
    Ok(EmbeddingChoice { path: file.into(), token: token.map(str::to_owned) })
}

/// The textual inversions of `--embedding-dir` whose names are in a text, in any case of letters, and that were not
/// `given` already.
///
/// # Errors
/// If a folder cannot be read.
pub fn embeddings_in<'a>(
    folder: &Path,
    texts: impl Iterator<Item = &'a str>,
    given: &[EmbeddingChoice],
) -> Result<Vec<EmbeddingChoice>> {
    let texts: Vec<String> = texts.map(str::to_lowercase).collect();
    let is_used = |path: &PathBuf| {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
        let is_named = name.is_some_and(|name| texts.iter().any(|text| text.contains(&name)));
        is_named && given.iter().all(|given| given.path != *path)
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
/// If there is no folder, no such file in it or several, or if the tag has two different weights.
pub fn tagged(tag: &LoraTag, folder: Option<&Path>) -> Result<LoraChoice> {
    let (name, weight) = (&tag.name, tag.unet_weight);
    let refuse = |what: &str| Error::input(format!("<lora:{name}:{weight}>: {what}"));
    let Some(folder) = folder else {
        return Err(refuse("it is not said where the LoRAs of prompts are").hint("--lora-dir FOLDER"));
    };
    if weight != tag.text_encoder_weight {
        return Err(refuse("UNet and text encoders get a LoRA with the same weight")
            .found(format!("{} for the text encoders, {weight} for the UNet", tag.text_encoder_weight))
            .hint(format!("<lora:{name}:{weight}>")));
    }
    match &named(folder, name)?[..] {
        [path] => Ok(LoraChoice { path: path.clone(), weight: weight as f32 }),
        [] => Err(refuse(&format!("there is no {name}.safetensors in {} or a folder below", folder.display()))),
        [one, other, ..] => Err(refuse("two files have this name")
            .found(format!("{} and {}", one.display(), other.display()))
            .hint("--lora FILE:WEIGHT, and no tag")),
    }
}

/// The safetensors files of this name, which may come from a picture's settings, in a folder and in those below it, in
/// order.
///
/// # Errors
/// If a folder cannot be read.
pub fn named(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let is_named = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == name);
    Ok(files_in(folder, "--lora-dir")?.into_iter().filter(is_named).collect())
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

/// Splits `FILE[:WEIGHT]` at the last colon if a number follows it. A colon behind a single letter belongs to a drive.
///
/// # Errors
/// If the number is not finite in f32.
pub fn file_and_weight(argument: &str) -> Result<(&str, Option<f32>)> {
    let is_number = |text: &str| {
        text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E')) && text.parse::<f32>().is_ok()
    };
    match split(argument).filter(|(_, text)| is_number(text)) {
        None => Ok((argument, None)),
        Some((file, text)) => match text.parse::<f32>() {
            Ok(weight) if weight.is_finite() => Ok((file, Some(weight))),
            _ => Err(Error::input(format!("--lora {argument}: the weight is too large")).found(text)),
        },
    }
}

/// Splits `FILE[:TOKEN]` at the last colon. A colon behind a single letter belongs to a drive, and one before a
/// separator or a name that ends in `.safetensors` to a path.
///
/// # Errors
/// If there is a colon and no token behind it.
pub fn file_and_token(argument: &str) -> Result<(&str, Option<&str>)> {
    let is_path = |text: &str| text.contains(['/', '\\']) || text.to_ascii_lowercase().ends_with(".safetensors");
    match split(argument).filter(|(_, token)| !is_path(token)) {
        None => Ok((argument, None)),
        Some((_, "")) => Err(Error::input(format!("--embedding {argument}: a token is wanted behind the colon"))
            .hint("--embedding FILE, or --embedding FILE:TOKEN")),
        Some((file, token)) => Ok((file, Some(token))),
    }
}

/// The parts before and after the last colon, unless it is a drive's.
fn split(argument: &str) -> Option<(&str, &str)> {
    let is_drive = |file: &str| file.len() == 1 && file.starts_with(|c: char| c.is_ascii_alphabetic());
    argument.rsplit_once(':').filter(|(file, _)| !file.is_empty() && !is_drive(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_number_behind_the_last_colon() {
        for (argument, want) in [
            ("snow.safetensors", ("snow.safetensors", None)),
            ("snow.safetensors:0.8", ("snow.safetensors", Some(0.8))),
            ("snow.safetensors:-1", ("snow.safetensors", Some(-1.0))),
            ("snow.safetensors:1e-1", ("snow.safetensors", Some(0.1))),
            ("a:b.safetensors", ("a:b.safetensors", None)),
            ("a:1:2", ("a:1", Some(2.0))),
            (r"C:\loras\snow.safetensors", (r"C:\loras\snow.safetensors", None)),
            (r"C:\loras\snow.safetensors:.5", (r"C:\loras\snow.safetensors", Some(0.5))),
            ("C:1", ("C:1", None)),
            ("snow:inf", ("snow:inf", None)),
            ("snow:nan", ("snow:nan", None)),
            ("snow:", ("snow:", None)),
            ("snow:strong", ("snow:strong", None)),
            (":1", (":1", None)),
        ] {
            assert_eq!(file_and_weight(argument).unwrap(), want, "{argument}");
        }
        let error = file_and_weight("snow:1e39").unwrap_err().to_string();
        assert!(error.contains("--lora snow:1e39: the weight is too large\n  found: 1e39"), "{error}");
    }

    #[test]
    fn a_token_is_behind_the_last_colon() {
        for (argument, want) in [
            ("cat.safetensors", ("cat.safetensors", None)),
            ("cat.safetensors:<cat-toy>", ("cat.safetensors", Some("<cat-toy>"))),
            ("cat.safetensors:0.5", ("cat.safetensors", Some("0.5"))),
            (r"C:\cat.safetensors", (r"C:\cat.safetensors", None)),
            (r"C:\cat.safetensors:my cat", (r"C:\cat.safetensors", Some("my cat"))),
            ("C:cat.safetensors", ("C:cat.safetensors", None)),
            ("d:ir/cat.safetensors", ("d:ir/cat.safetensors", None)),
            ("dir:2/cat.safetensors", ("dir:2/cat.safetensors", None)),
            ("a:b.safetensors", ("a:b.safetensors", None)),
            ("cat.pt:toy", ("cat.pt", Some("toy"))),
        ] {
            assert_eq!(file_and_token(argument).unwrap(), want, "{argument}");
        }
        let error = file_and_token("cat.safetensors:").unwrap_err().to_string();
        assert!(error.contains("a token is wanted behind the colon"), "{error}");
    }
}
