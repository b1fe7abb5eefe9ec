//! The environment's settings for the hub and its cache, read as Python's huggingface_hub reads them.

use std::{env, fmt, path::PathBuf, time::Duration};

use crate::{
    error::{Error, Result},
    input,
};

/// The default endpoint; `HF_ENDPOINT` changes it.
const ENDPOINT: &str = "https://huggingface.co";
/// The default time without data after which a request fails; `HF_HUB_DOWNLOAD_TIMEOUT` changes it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A hub, and the cache of downloads from it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hub {
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The access token, which is sent only to the endpoint's own scheme, host and port.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
    /// The address of the hub, http or https, without a slash at its end.
    pub endpoint: String,
    /// The time without data after which a request fails.
    pub timeout: Duration,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, token, offline, endpoint, timeout } = self;
        f.debug_struct("Hub")
            .field("cache", cache)
            .field("token", &token.as_ref().map(|_| "(secret)"))
            .field("offline", offline)
            .field("endpoint", endpoint)
            .field("timeout", timeout)
            .finish()
    }
}

impl Hub {
    /// The hub and the cache that the environment selects.
    ///
    /// | what | variables, the first that is set wins |
    /// |---|---|
    /// | cache | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub` |
    /// | token | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, the file `token` in `HF_HOME` |
    /// | offline | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` |
    /// | endpoint | `HF_ENDPOINT` |
    /// | seconds that a server may be silent | `HF_HUB_DOWNLOAD_TIMEOUT` |
    ///
    /// `~`, `$NAME` and `${NAME}` are replaced in paths. A variable that is empty counts as not set.
    ///
    /// # Errors
    /// If there is neither a home directory nor a variable with a path, or a variable has an invalid value.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(|name| env::var(name).ok(), env::home_dir())
    }

    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let text = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let path = |name: &str| Some(expand(&text(name)?, home.as_ref(), &variable));
        let hf_home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home.as_ref()?.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(hf_home.as_ref()?.join("hub")))
            .ok_or_else(|| {
                Error::input("looking for the hub's cache: there is no home directory").hint("set HF_HOME to a folder")
            })?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")));
        let stored = || Some(input::text(&token_file?).ok()?.trim().to_owned());
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(stored);
        let offline = text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE"));
        let is_true = |word: String| ["1", "ON", "YES", "TRUE"].contains(&word.to_ascii_uppercase().as_str());
        let timeout = text("HF_HUB_DOWNLOAD_TIMEOUT").map(|seconds| match seconds.parse::<u32>() {
            Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds.into())),
            _ => Err(Error::input("HF_HUB_DOWNLOAD_TIMEOUT must be a whole number of seconds").found(seconds)),
        });
        Ok(Self {
            cache,
            token: token.filter(|token| !token.is_empty()),
            offline: offline.is_some_and(is_true),
            endpoint: text("HF_ENDPOINT").map_or(ENDPOINT.into(), |url| url.trim_end_matches('/').to_owned()),
            timeout: timeout.transpose()?.unwrap_or(TIMEOUT),
        })
    }
}

/// A path with `~`, `$NAME` and `${NAME}` replaced; names without a value are kept.
fn expand(text: &str, home: Option<&PathBuf>, variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let text = match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", home.display()),
        _ => text.to_owned(),
    };
    let mut expanded = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, length) = match rest[1..].strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((name, _)) => (name, name.len() + 3),
            None => {
                let end = rest[1..].find(|c| !is_name(c)).map_or(rest.len(), |end| end + 1);
                (&rest[1..end], end)
            }
        };
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    PathBuf::from(expanded + rest)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<Hub> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
        Hub::from_variables(variable, Some(PathBuf::from("/home/u")))
    }

    #[test]
    fn variables_have_the_precedence_of_huggingface_hub() {
        for (variables, cache) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/xdg")], "/xdg/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/cache"),
            (&[("HF_HOME", " ")], "/home/u/.cache/huggingface/hub"),
            (&[("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        ] {
            assert_eq!(hub(variables).unwrap().cache, Path::new(cache), "{variables:?}");
        }
        for (variables, offline) in [
            (&[("HF_HUB_OFFLINE", "1")][..], true),
            (&[("HF_HUB_OFFLINE", "true")], true),
            (&[("HF_HUB_OFFLINE", "Yes")], true),
            (&[("HF_HUB_OFFLINE", "0")], false),
            (&[("HF_HUB_OFFLINE", "")], false),
            (&[("TRANSFORMERS_OFFLINE", "ON")], true),
            (&[("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "0")], false),
            (&[("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "")], true),
        ] {
            assert_eq!(hub(variables).unwrap().offline, offline, "{variables:?}");
        }
        assert!(Hub::from_variables(|_| None, None).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn home_and_variables_in_paths_are_replaced() {
        for (written, cache) in [
            ("~/hf", "/home/u/hf"),
            ("~", "/home/u"),
            ("~other/hf", "~other/hf"),
            ("$DATA/hf", "/data/hf"),
            ("${DATA}hf", "/datahf"),
            ("$DATA$DATA", "/data/data"),
            ("$DATAX/hf", "$DATAX/hf"),
            ("${DATAX}/hf", "${DATAX}/hf"),
            ("/a$", "/a$"),
            ("/a${DATA", "/a${DATA"),
        ] {
            let hub = hub(&[("HF_HUB_CACHE", written), ("DATA", "/data")]).unwrap();
            assert_eq!(hub.cache, Path::new(cache), "{written}");
        }
    }

    #[test]
    fn a_token_comes_from_its_variables_or_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        let token = |variables: &[(&str, &str)]| hub(variables).unwrap().token;
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        assert_eq!(token(&[home]).as_deref(), Some("from-file"));
        assert_eq!(token(&[home, ("HUGGING_FACE_HUB_TOKEN", "old")]).as_deref(), Some("old"));
        assert_eq!(token(&[home, ("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", "new")]).as_deref(), Some("new"));
        assert_eq!(token(&[]), None);
    }

    #[test]
    fn a_token_is_not_printed() {
        let hub = hub(&[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{hub:?}").contains("hf_secret"));
    }

    #[test]
    fn a_timeout_that_is_none_is_refused() {
        assert_eq!(hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).unwrap().timeout, Duration::from_secs(3));
        for text in ["soon", "0", "-1", "1.5"] {
            let error = hub(&[("HF_HUB_DOWNLOAD_TIMEOUT", text)]).unwrap_err().to_string();
            assert!(error.contains("HF_HUB_DOWNLOAD_TIMEOUT") && error.contains(text), "{error}");
        }
    }
}
