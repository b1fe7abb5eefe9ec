//! The files that are needed of a model, the events of their download, and how models on the hub are named.

use crate::error::{Error, Result};

/// The files of a model that are read. The layout of diffusers is `LAYOUT` in `models/locate.rs`.
#[derive(Debug, Clone, Copy)]
pub struct ModelLayout {
    /// The file that lists the model's components.
    pub index: &'static str,
    /// The components according to the text of that file.
    pub components: fn(&str) -> Result<Components>,
    /// The other configs that a model must have.
    pub configs: &'static [&'static str],
    /// The configs that are read if they exist.
    pub optional_configs: &'static [&'static str],
    /// What a text needs to become ids: in the folder of each tokenizer, all files of one of these lists.
    pub texts: &'static [&'static [&'static str]],
    /// Files in the folder of each tokenizer that are read if they exist. The first is a config.
    pub optional_texts: &'static [&'static str],
}

/// The components of one model, as the names of their folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Components {
    /// Those with a config and weights.
    pub networks: Vec<String>,
    /// The tokenizers.
    pub tokenizers: Vec<String>,
}

/// The files of a model that a caller needs: each variant includes the files of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// The configs, a few kilobytes: enough to make a plan.
    Configs,
    /// Configs and tokenizer: enough to check whether the model is supported.
    Texts,
    /// Configs, tokenizer and weights.
    Everything,
}

/// An event of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Download {
    /// The download of a file begins.
    File {
        /// The file's path in the model.
        path: String,
        /// The file's size in bytes, if the hub reports it.
        bytes: Option<u64>,
    },
    /// The number of bytes of the file that have arrived.
    Bytes(u64),
    /// The file is complete.
    Complete,
    /// Another process downloads this file, and this one waits.
    Waiting {
        /// The file's path in the model.
        path: String,
    },
    /// A request failed and is tried again.
    Retry {
        /// The file or list that was requested.
        what: String,
        /// The reason for the failure.
        why: String,
    },
    /// Nothing has changed: sent regularly, so that the caller can stop the download.
    Nothing,
}

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubPlace {
    /// The repository, as `org/name`.
    pub id: String,
    /// The branch, tag or commit, if the address has one.
    pub revision: Option<String>,
    /// The path of a single-file checkpoint in the repository; `None` for a diffusers folder.
    pub file: Option<String>,
}

/// The addresses of the hub's site.
const SITES: [&str; 4] = ["https://huggingface.co/", "https://hf.co/", "http://huggingface.co/", "huggingface.co/"];

impl HubPlace {
    /// Reads `org/name`, `org/name/file.safetensors`, or the address of such a repository, revision or file on the
    /// hub's site; `None` if the text is none of these.
    ///
    /// # Errors
    /// If it is an address that names no model.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let address = SITES.iter().find_map(|site| text.strip_prefix(site));
        let refuse = |what: &str| {
            Err(Error::input(format!("the model {text}: {what}"))
                .hint("the address of a model's page or of one .safetensors file, or ORG/NAME/FILE.safetensors"))
        };
        let Some(path) = address else {
            if text.contains("://") {
                return refuse("this is not an address on the hub");
            }
            let mut parts = text.splitn(3, '/');
            let id = [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()].join("/");
            let file = parts.next().map(str::to_owned);
            let is_file = file.as_ref().is_none_or(|file| is_checkpoint(file));
            return Ok((is_hub_id(&id) && is_file).then_some(Self { id, revision: None, file }));
        };
        let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let Some(parts) = path.split('/').map(decoded).collect::<Option<Vec<String>>>() else {
            return refuse("this address cannot be read");
        };
        let (id, rest) = match &parts[..] {
            [org, name, rest @ ..] => (format!("{org}/{name}"), rest),
            _ => (String::new(), &[][..]),
        };
        if !is_hub_id(&id) {
            return refuse("this address names no model");
        }
        match rest {
            [] => Ok(Some(Self { id, revision: None, file: None })),
            [tree, revision] if tree == "tree" => Ok(Some(Self { id, revision: Some(revision.clone()), file: None })),
            [kind, revision, file @ ..] if (kind == "blob" || kind == "resolve") && !file.is_empty() => {
                match file.join("/") {
                    file if is_checkpoint(&file) => {
                        Ok(Some(Self { id, revision: Some(revision.clone()), file: Some(file) }))
                    }
                    _ => refuse("this address is not that of a .safetensors file"),
                }
            }
            _ => refuse("this address is not that of a model"),
        }
    }
}

/// Whether a path in a repository may be that of a single-file checkpoint.
fn is_checkpoint(path: &str) -> bool {
    path.ends_with(".safetensors") && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A part of an address with its escapes (`%20`) decoded; `None` if one of them is invalid.
fn decoded(part: &str) -> Option<String> {
    let (first, escapes) = part.split_once('%').map_or((part, None), |(first, rest)| (first, Some(rest)));
    let mut bytes = first.as_bytes().to_vec();
    for escape in escapes.into_iter().flat_map(|escapes| escapes.split('%')) {
        let (digits, rest) = escape.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Whether a text has the form `org/name`.
pub fn is_hub_id(text: &str) -> bool {
    let is_name = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // "--" joins the two names in the cache: if a name contained it, two models could share a folder.
        let joins = name.contains("..") || name.contains("--");
        (1..=96).contains(&name.len()) && !name.starts_with('.') && !joins && name.bytes().all(plain)
    };
    text.split_once('/').is_some_and(|(org, name)| is_name(org) && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_two_plain_names() {
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
    }

    #[test]
    fn a_place_on_the_hub_is_an_id_a_file_or_an_address() {
        let place = |id: &str, revision: Option<&str>, file: Option<&str>| HubPlace {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        };
        for (text, want) in [
            ("org/name", place("org/name", None, None)),
            ("org/name/x.safetensors", place("org/name", None, Some("x.safetensors"))),
            ("org/name/a/b c.safetensors", place("org/name", None, Some("a/b c.safetensors"))),
            ("https://huggingface.co/org/name", place("org/name", None, None)),
            ("https://huggingface.co/org/name/", place("org/name", None, None)),
            ("huggingface.co/org/name/tree/main", place("org/name", Some("main"), None)),
            ("https://hf.co/org/name/tree/refs%2Fpr%2F1", place("org/name", Some("refs/pr/1"), None)),
            (
                "https://huggingface.co/org/name/blob/main/x.safetensors",
                place("org/name", Some("main"), Some("x.safetensors")),
            ),
            (
                "https://huggingface.co/org/name/resolve/fp16/a/b%20c.safetensors?download=true",
                place("org/name", Some("fp16"), Some("a/b c.safetensors")),
            ),
        ] {
            assert_eq!(HubPlace::parse(text).unwrap(), Some(want), "{text}");
        }
        for text in ["", "name", "org/name/x", "org/name/../x.safetensors", "a b/c", "/org/name", "x.safetensors"] {
            assert_eq!(HubPlace::parse(text).unwrap(), None, "{text}");
        }
        for text in [
            "https://example.org/org/name",
            "https://huggingface.co/org",
            "https://huggingface.co/datasets/org/name",
            "https://huggingface.co/org/name/blob/main/README.md",
            "https://huggingface.co/org/name/blob/main",
            "https://huggingface.co/org/name/tree/main/unet",
            "https://huggingface.co/org/name/blob/main/%zz.safetensors",
            "https://huggingface.co/org/name/blob/main/%2e%2e/x.safetensors",
        ] {
            let error = HubPlace::parse(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("ORG/NAME/FILE.safetensors"), "{error}");
        }
    }
}
