//! Where a hub model's files are: in the standard cache, or on the hub.
//!
//! The cache and its variables are those of Python's huggingface_hub, so that both programs share their downloads:
//! `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` and `HF_ENDPOINT`.

use std::{env, path::PathBuf};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};

use super::{
    Wanted,
    files::{MODEL_INDEX, ModelFiles},
    index,
};
use crate::{
    error::{Error, Result},
    input,
};

/// Files that a model must have.
const REQUIRED: [&str; 5] =
    [MODEL_INDEX, "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"];
/// Files that are read where there are any.
const OPTIONAL: [&str; 8] = [
    "safety_checker/config.json",
    "sdshard.toml",
    "tokenizer/added_tokens.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
];
/// Folders with weights.
const WEIGHTS: [&str; 3] = ["text_encoder", "unet", "vae"];

/// The folder with the files of the model `id`, in the form `org/name`, at a branch, tag or commit, `main` by default.
///
/// What the cache has is used without asking the hub. Otherwise the files that sdshard reads are downloaded into it:
/// configs, tokenizer, and each component's safetensors of `variant` or, where there are none, the plain ones; for a plan
/// the configs alone. Files of the same commit that the cache has already are left as they are.
///
/// `on_download` gets the name of each file before it is fetched.
///
/// Fails where the cache lacks the model and the hub may not or cannot be reached, or does not have it.
pub fn resolve(
    id: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    wanted: Wanted,
    on_download: impl FnMut(&str),
) -> Result<PathBuf> {
    Settings::new(|name| env::var(name).ok(), env::home_dir())?.resolve(id, revision, variant, wanted, on_download)
}

/// What the environment says.
#[derive(Debug, PartialEq)]
struct Settings {
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    endpoint: Option<String>,
}

impl Settings {
    fn new(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let text = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let path = |name: &str| {
            let text = text(name)?;
            match (text.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => Some(home.join(rest)),
                _ => Some(PathBuf::from(text)),
            }
        };
        let hf_home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home.as_ref()?.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| Some(hf_home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::input("looking for the hub's cache: there is no home directory").hint("set HF_HOME to a folder")
        })?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home?.join("token")));
        let stored = || input::text(&token_file?).ok();
        let token = text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        let offline = text("HF_HUB_OFFLINE").map(|word| word.to_ascii_uppercase());
        Ok(Self {
            cache,
            token: token.filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|word| ["1", "ON", "YES", "TRUE"].contains(&word.as_str())),
            endpoint: text("HF_ENDPOINT"),
        })
    }

    fn resolve(
        &self,
        id: &str,
        revision: Option<&str>,
        variant: Option<&str>,
        wanted: Wanted,
        on_download: impl FnMut(&str),
    ) -> Result<PathBuf> {
        let revision = revision.unwrap_or("main");
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if !super::is_hub_id(id) {
            return Err(Error::input("the id of a model on the hub has the form org/name").found(id));
        }
        if revision.is_empty()
            || revision.starts_with('/')
            || revision.contains("..")
            || !revision.bytes().all(is_plain)
        {
            return Err(Error::input("a revision is a branch, a tag or a commit").found(revision));
        }
        index::check_variant(variant)?;

        let cached = self.cached(id, revision);
        let lacking = match &cached {
            None => "no such model and revision".to_owned(),
            Some(snapshot) => match first_missing(snapshot, variant, wanted) {
                None => return Ok(snapshot.clone()),
                Some(missing) => format!("a copy without {missing}"),
            },
        };
        if self.offline {
            return Err(Error::input(format!("the model {id} ({revision}) is not whole in {}", self.cache.display()))
                .found(lacking)
                .hint("HF_HUB_OFFLINE forbids downloads: unset it, or give a folder as the model"));
        }
        self.download(id, revision, variant, wanted, on_download)
    }

    /// The model's snapshot in the cache, whole or not.
    fn cached(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let root = self.cache.join(repo.folder_name());
        let commit = input::text(&root.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim();
        let is_name = !commit.is_empty() && !commit.contains(['/', '\\']) && !commit.starts_with('.');
        let snapshot = root.join("snapshots").join(commit);
        (is_name && snapshot.is_dir()).then_some(snapshot)
    }

    fn download(
        &self,
        id: &str,
        revision: &str,
        variant: Option<&str>,
        wanted: Wanted,
        mut on_download: impl FnMut(&str),
    ) -> Result<PathBuf> {
        let doing = |error: ApiError| {
            Error::input(format!("downloading the model {id} ({revision}) into {}", self.cache.display()))
                .source(error)
                .hint("is the id right, and the network there? A gated model needs HF_TOKEN; a folder needs neither")
        };
        let mut builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_progress(false)
            .with_token(self.token.clone())
            .with_user_agent("sdshard", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(doing)?;
        let named = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let info = api.repo(named.clone()).info().map_err(doing)?;
        let on_hub: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();

        // All files of one commit, even if somebody pushes another one meanwhile.
        let repo: ApiRepo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone()));
        let snapshot = Cache::new(self.cache.clone()).repo(named.clone()).pointer_path(&info.sha);
        // hf_hub looks in a snapshot only if it made the snapshot itself, so it would fetch what Python's left there again.
        let mut fetch = |path: &str| {
            if !snapshot.join(path).exists() {
                on_download(path);
                repo.download(path).map_err(doing)?;
            }
            Ok(())
        };
        for path in listed(id, &on_hub, variant, wanted)? {
            fetch(&path)?;
        }
        let files = ModelFiles::folder(&snapshot)?;
        for component in weight_folders(wanted) {
            index::find(&files, component, variant)?.files.iter().try_for_each(|path| fetch(path))?;
        }
        let reference = Cache::new(self.cache.clone()).repo(named).create_ref(&info.sha);
        reference.map_err(|error| doing(ApiError::IoError(error)))?;
        Ok(snapshot)
    }
}

/// The files to fetch of those that the hub has; of a component in shards its index, which names them.
///
/// Fails where a config or a component's safetensors are not there.
fn listed(id: &str, on_hub: &[&str], variant: Option<&str>, wanted: Wanted) -> Result<Vec<String>> {
    let refuse = |what: String| Error::input(format!("the model {id} on the hub has no {what}"));
    let mut paths = Vec::new();
    for path in REQUIRED {
        if !on_hub.contains(&path) {
            return Err(refuse(path.to_owned()).hint("only models in the diffusers layout can be read"));
        }
        paths.push(path.to_owned());
    }
    // The tokenizer's config says how long a text is.
    let is_config = |path: &&&str| {
        wanted == Wanted::Everything || !path.starts_with("tokenizer/") || **path == "tokenizer/tokenizer_config.json"
    };
    let optional = OPTIONAL.iter().filter(|path| on_hub.contains(path)).filter(is_config);
    paths.extend(optional.map(|path| (*path).to_owned()));
    for component in weight_folders(wanted) {
        let candidates = variant.map(|variant| index::variant_candidates(component, variant)).unwrap_or_default();
        let mut candidates = candidates.into_iter().chain(index::plain_candidates(component));
        let Some(path) = candidates.find(|path| on_hub.contains(&path.as_str())) else {
            return Err(refuse(format!("safetensors files in {component}/")).hint(
                "a pickle file (.bin, .ckpt) is never read; a variant such as \"fp16\" may have what is wanted",
            ));
        };
        paths.push(path);
    }
    Ok(paths)
}

/// The folders whose weights are wanted.
fn weight_folders(wanted: Wanted) -> &'static [&'static str] {
    match wanted {
        Wanted::Configs => &[],
        Wanted::Everything => &WEIGHTS,
    }
}

/// The first file that a snapshot lacks, or `None` where it is whole.
fn first_missing(snapshot: &std::path::Path, variant: Option<&str>, wanted: Wanted) -> Option<String> {
    let Ok(files) = ModelFiles::folder(snapshot) else { return Some(MODEL_INDEX.to_owned()) };
    if let Some(missing) = REQUIRED.iter().find(|path| !files.exists(path)) {
        return Some((*missing).to_owned());
    }
    let has_tokenizer = ["tokenizer/tokenizer.json", "tokenizer/vocab.json"].iter().any(|path| files.exists(path));
    if wanted == Wanted::Everything && !has_tokenizer {
        return Some("tokenizer/tokenizer.json".to_owned());
    }
    weight_folders(wanted).iter().find_map(|component| match index::find(&files, component, variant) {
        Ok(sources) => sources.files.into_iter().find(|path| !files.exists(path)),
        Err(_) => Some(format!("safetensors files in {component}/")),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        path::Path,
    };

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
        Settings::new(variable, Some(PathBuf::from("/home/u"))).unwrap()
    }

    /// A cache with one whole model `org/name`, and settings that forbid the network.
    fn cache(weights: &[&str]) -> (tempfile::TempDir, Settings) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("models--org--name");
        fs::create_dir_all(root.join("refs")).unwrap();
        fs::write(root.join("refs/main"), format!("{COMMIT}\n")).unwrap();
        let snapshot = root.join("snapshots").join(COMMIT);
        for path in REQUIRED.iter().chain(&["tokenizer/vocab.json", "tokenizer/merges.txt"]).chain(weights) {
            let path = snapshot.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        let settings = settings(&[("HF_HUB_CACHE", folder.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "1")]);
        (folder, settings)
    }

    const PLAIN: [&str; 3] = [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ];

    #[test]
    fn variables_have_the_precedence_of_huggingface_hub() {
        for (variables, cache) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/xdg")], "/xdg/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HOME", "~/hf")], "/home/u/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")], "/cache"),
            (&[("HF_HOME", " ")], "/home/u/.cache/huggingface/hub"),
        ] {
            assert_eq!(settings(variables).cache, Path::new(cache), "{variables:?}");
        }
        for (word, offline) in [("1", true), ("true", true), ("Yes", true), ("0", false), ("", false)] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", word)]).offline, offline, "{word}");
        }
        assert!(Settings::new(|_| None, None).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn a_token_comes_from_its_variable_or_its_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "from-file\n").unwrap();
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        assert_eq!(settings(&[home]).token.as_deref(), Some("from-file"));
        assert_eq!(settings(&[home, ("HF_TOKEN", "from-variable")]).token.as_deref(), Some("from-variable"));
        assert_eq!(settings(&[]).token, None);
    }

    #[test]
    fn a_whole_model_in_the_cache_is_used_as_it_is() {
        let (folder, settings) = cache(&PLAIN);
        let wanted = folder.path().join("models--org--name/snapshots").join(COMMIT);
        for revision in [None, Some("main"), Some(COMMIT)] {
            let found = settings
                .resolve("org/name", revision, None, Wanted::Everything, |_| panic!("nothing to fetch"))
                .unwrap();
            assert_eq!(found, wanted);
        }
        // Without files of the variant the plain ones do.
        assert_eq!(settings.resolve("org/name", None, Some("fp16"), Wanted::Everything, |_| ()).unwrap(), wanted);
    }

    #[test]
    fn a_plan_is_content_with_configs() {
        let (_folder, settings) = cache(&[]);
        settings.resolve("org/name", None, None, Wanted::Configs, |_| panic!("nothing to fetch")).unwrap();
        let error = settings.resolve("org/name", None, None, Wanted::Everything, |_| ()).unwrap_err().to_string();
        assert!(error.contains("a copy without safetensors files in text_encoder/"), "{error}");
    }

    #[test]
    fn offline_it_says_what_the_cache_lacks() {
        let (_folder, settings) = cache(&PLAIN[..2]);
        let error =
            |id, revision| settings.resolve(id, revision, None, Wanted::Everything, |_| ()).unwrap_err().to_string();
        assert!(error("org/name", None).contains("found: a copy without safetensors files in vae/"));
        assert!(error("org/name", Some("v2")).contains("found: no such model and revision"));
        let error = error("org/other", None);
        assert!(error.contains("the model org/other (main)") && error.contains("HF_HUB_OFFLINE forbids"), "{error}");
    }

    #[test]
    fn a_hub_that_cannot_be_reached_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        // Nobody listens on the discard port of this machine.
        let settings =
            settings(&[("HF_HUB_CACHE", folder.path().to_str().unwrap()), ("HF_ENDPOINT", "http://127.0.0.1:9")]);
        let error = settings.resolve("org/name", None, None, Wanted::Everything, |_| ()).unwrap_err().to_string();
        assert!(error.contains("downloading the model org/name (main)") && error.contains("try:"), "{error}");
    }

    /// A hub on this machine with one model `org/name` of these files; it serves for as long as the test process lives.
    fn hub(files: BTreeMap<&'static str, &'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
                let asked = lines.next().unwrap_or_default();
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let path = asked.split(' ').nth(1).unwrap_or_default();
                let range =
                    head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=")?.parse().ok());
                let (first, last): (usize, Option<usize>) = range.map_or((0, None), |range: String| {
                    let (first, last) = range.split_once('-').unwrap();
                    (first.parse().unwrap(), last.parse().ok())
                });
                let file = path
                    .strip_prefix(&format!("/org/name/resolve/{COMMIT}/"))
                    .and_then(|path| files.get_key_value(path));
                let answer = match (path, file) {
                    ("/api/models/org/name/revision/main", _) => {
                        let siblings: Vec<_> =
                            files.keys().map(|path| serde_json::json!({ "rfilename": path })).collect();
                        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len())
                            + "Connection: close\r\n\r\n"
                            + &body
                    }
                    (_, Some((name, text))) => {
                        let end = last.map_or(text.len(), |last| text.len().min(last + 1));
                        let body = &text[first.min(end)..end];
                        let etag = name.replace('/', "-");
                        format!(
                            "HTTP/1.1 206 Partial Content\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\n\
                             Content-Range: bytes {first}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                            end.max(1) - 1,
                            text.len(),
                            body.len()
                        )
                    }
                    _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
                };
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        endpoint
    }

    #[test]
    fn a_run_after_a_plan_fetches_only_what_is_missing() {
        let mut on_hub: BTreeMap<_, _> = REQUIRED.iter().chain(&PLAIN).map(|path| (*path, "{}")).collect();
        on_hub.insert("tokenizer/vocab.json", "{\"a\": 0}");
        on_hub.insert("safety_checker/config.json", "{}");
        on_hub.insert("safety_checker/model.safetensors", "nobody reads it");
        let cache = tempfile::tempdir().unwrap();
        let endpoint = hub(on_hub);
        let settings = settings(&[("HF_HUB_CACHE", cache.path().to_str().unwrap()), ("HF_ENDPOINT", &endpoint)]);
        let fetched = |wanted: Wanted| {
            let mut fetched = Vec::new();
            let snapshot =
                settings.resolve("org/name", None, None, wanted, |path| fetched.push(path.to_owned())).unwrap();
            (snapshot, fetched)
        };
        let (snapshot, configs) = fetched(Wanted::Configs);
        assert_eq!(configs, [&REQUIRED[..], &["safety_checker/config.json"]].concat());
        assert!(fetched(Wanted::Configs).1.is_empty(), "a second plan asks for nothing");

        // As Python leaves a snapshot: the branch is known, the commit is no name of its own.
        fs::remove_file(cache.path().join("models--org--name/refs").join(COMMIT)).unwrap();
        let (same, rest) = fetched(Wanted::Everything);
        assert_eq!(same, snapshot);
        assert_eq!(rest, [&["tokenizer/vocab.json"], &PLAIN[..]].concat());
        assert_eq!(fs::read_to_string(snapshot.join("tokenizer/vocab.json")).unwrap(), "{\"a\": 0}");
        assert!(fetched(Wanted::Everything).1.is_empty());
    }

    #[test]
    fn a_missing_shard_is_noticed() {
        let (folder, settings) = cache(&[PLAIN[0], PLAIN[2], "unet/1.safetensors"]);
        let unet = folder.path().join("models--org--name/snapshots").join(COMMIT).join("unet");
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        fs::write(unet.join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
        let error = settings.resolve("org/name", None, None, Wanted::Everything, |_| ()).unwrap_err().to_string();
        assert!(error.contains("a copy without unet/2.safetensors"), "{error}");
        fs::write(unet.join("2.safetensors"), "").unwrap();
        settings.resolve("org/name", None, None, Wanted::Everything, |_| ()).unwrap();
    }

    #[test]
    fn ids_and_revisions_stay_inside_the_cache() {
        let (_folder, settings) = cache(&PLAIN);
        for (id, revision) in [("../name", "main"), ("org/name/x", "main"), ("org/name", "../main"), ("org/name", "/x")]
        {
            let error = settings.resolve(id, Some(revision), None, Wanted::Everything, |_| ()).unwrap_err().to_string();
            assert!(
                error.contains("found: ") && error.contains(if id == "org/name" { revision } else { id }),
                "{error}"
            );
        }
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let mut on_hub = REQUIRED.to_vec();
        on_hub.extend(PLAIN);
        on_hub.extend([
            "v1-5.ckpt",
            "README.md",
            "safety_checker/model.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "tokenizer/vocab.json",
        ]);
        let plain = listed("org/name", &on_hub, None, Wanted::Everything).unwrap();
        assert_eq!(plain[REQUIRED.len()..], ["tokenizer/vocab.json", PLAIN[0], PLAIN[1], PLAIN[2]]);
        assert_eq!(listed("org/name", &on_hub, None, Wanted::Configs).unwrap(), REQUIRED, "a plan needs no weights");
        let half = listed("org/name", &on_hub, Some("fp16"), Wanted::Everything).unwrap();
        assert_eq!(half[REQUIRED.len() + 2], "unet/diffusion_pytorch_model.fp16.safetensors");
        assert_eq!(half[REQUIRED.len() + 3], PLAIN[2]);
        on_hub.push("unet/diffusion_pytorch_model.safetensors.index.json");
        let sharded = listed("org/name", &on_hub, None, Wanted::Everything).unwrap();
        assert!(sharded.contains(&"unet/diffusion_pytorch_model.safetensors.index.json".to_owned()));

        let error = listed("org/name", &["x.ckpt"], None, Wanted::Everything).unwrap_err().to_string();
        assert!(error.contains("the model org/name on the hub has no model_index.json"), "{error}");
        let error = listed("org/name", &REQUIRED, None, Wanted::Everything).unwrap_err().to_string();
        assert!(error.contains("safetensors files in text_encoder/") && error.contains("pickle"), "{error}");
    }
}
