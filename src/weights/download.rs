//! What is wanted of a model's files, and what is heard of their download.

/// Which of a model's files somebody is going to read: each step has all of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// The configs, a few kilobytes: enough for a plan.
    Configs,
    /// Configs and tokenizer: enough to tell whether the model can be run.
    Texts,
    /// Configs, tokenizer and weights.
    Everything,
}

/// How a download goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Download {
    /// A file is fetched.
    File {
        /// Its path in the model.
        path: String,
        /// Its size, if the hub says.
        bytes: Option<u64>,
    },
    /// So many bytes of the file are there.
    Bytes(u64),
    /// The file is whole.
    Complete,
    /// Another process fetches the file at this path, and this one waits.
    Waiting {
        /// The file's path in the model.
        path: String,
    },
    /// Something failed and is tried again.
    Retry {
        /// What is tried.
        what: String,
        /// Why it failed.
        why: String,
    },
    /// Nothing new: an opportunity to end it.
    Nothing,
}

/// Whether a text has the form `org/name`.
pub fn is_hub_id(text: &str) -> bool {
    let is_name = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // "--" joins the two names in the cache: with it inside one of them, two models would share a folder.
        let joins = name.contains("..") || name.contains("--");
        (1..=96).contains(&name.len()) && !name.starts_with('.') && !joins && name.bytes().all(plain)
    };
    text.split_once('/').is_some_and(|(org, name)| is_name(org) && is_name(name))
}
