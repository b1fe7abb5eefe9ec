//! The files that are needed of a model, and the events of their download.

/// The files of a model that are read, as paths in its folder. The list for Stable
/// Diffusion is `LAYOUT` in `models/locate.rs`.
#[derive(Debug, Clone, Copy)]
pub struct ModelLayout {
    /// The configs that a model must have.
    pub configs: &'static [&'static str],
    /// The configs that are read if they exist.
    pub optional_configs: &'static [&'static str],
    /// What a text needs to become ids: all files of one of these lists.
    pub texts: &'static [&'static [&'static str]],
    /// Files for texts that are read if they exist.
    pub optional_texts: &'static [&'static str],
    /// The folders with weights.
    pub weights: &'static [&'static str],
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
