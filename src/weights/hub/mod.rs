//! Finds a hub model's files: in the standard cache, or on the hub.
//!
//! The cache is that of Python's huggingface_hub, so that both programs share their downloads. No reply of a server
//! decides where a file is stored, files that were truncated or changed on the way are not kept, and the token is sent
//! to its own host only.

mod cache;
mod request;
mod settings;
mod transfer;

use std::{
    collections::HashSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::Duration,
};

pub use self::settings::Hub;
use self::{
    cache::Repo,
    request::{Client, refused, shown},
    transfer::{Line, Session},
};
use super::{
    download::{Components, Download, ModelLayout, Wanted, is_hub_id},
    files::ModelFiles,
    index,
};
use crate::error::{Error, ErrorScope, Result};

/// The longest time of a download until its caller can stop it again.
const GLANCE: Duration = Duration::from_millis(100);

impl Hub {
    /// The folder with the files of the model `id`, in the form `org/name`, at a branch, tag or commit, `main` by
    /// default.
    ///
    /// Files in the cache are used without a request to the hub. Otherwise the files that sdshard needs and the cache
    /// lacks are downloaded into it, from the cached commit or, if there is none, from the newest: the files of
    /// `layout` that `wanted` includes, and of each component's weights the safetensors of `variant` or, if there are
    /// none, the plain ones.
    ///
    /// The download runs in a separate thread. `on_news` receives its events in the calling thread, several times a
    /// second, and stops it with [`ControlFlow::Break`]: the call returns at once, and the next call uses what has
    /// arrived.
    ///
    /// # Errors
    /// If the cache lacks the model and the hub is offline or cannot be reached, does not have the model, or sends an
    /// invalid reply; with [`ErrorScope::Interrupted`] if `on_news` stopped it.
    pub fn resolve(
        &self,
        layout: &'static ModelLayout,
        id: &str,
        revision: Option<&str>,
        variant: Option<&str>,
        wanted: Wanted,
        on_news: &mut dyn FnMut(Download) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        let revision = checked(id, revision)?;
        index::check_variant(variant)?;
        let (id_text, revision_text) = (id.to_owned(), revision.to_owned());
        let model = Asked { layout, id: id_text, revision: revision_text, variant: variant.map(str::to_owned), wanted };

        let repo = Repo::new(&self.cache, id);
        let known = repo.commit(revision);
        let cached = known.as_ref().map(|commit| (commit, repo.snapshot(commit))).filter(|(_, folder)| folder.is_dir());
        let lacking = match &cached {
            None => "no such model and revision".to_owned(),
            Some((commit, folder)) => {
                match model.missing(folder, |path| self.offline || repo.is_absent(commit, path)) {
                    None => return Ok(folder.clone()),
                    Some(missing) => format!("a copy without {missing}"),
                }
            }
        };
        if self.offline {
            return Err(Error::input(format!("the model {id} ({revision}) is not whole in {}", self.cache.display()))
                .found(lacking)
                .hint("HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE forbid downloads: unset them, or give a folder as the model"));
        }
        let hub = self.clone();
        let doing = format!("downloading the model {id} ({revision}) into {}", self.cache.display());
        in_thread(move |line| hub.download(&model, &repo, known.as_deref(), line), &doing, on_news)
    }

    /// The file at `path` in the repository `id`, with the other parameters and errors of [`Hub::resolve`].
    pub fn resolve_file(
        &self,
        id: &str,
        revision: Option<&str>,
        path: &str,
        on_news: &mut dyn FnMut(Download) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        let revision = checked(id, revision)?;
        if !cache::is_inside(path) {
            return Err(Error::input("a file on the hub is inside its repository").found(shown(path)));
        }
        let repo = Repo::new(&self.cache, id);
        let known = repo.commit(revision);
        let cached = known.as_ref().map(|commit| repo.snapshot(commit).join(path)).filter(|file| file.is_file());
        if let Some(file) = cached {
            return Ok(file);
        }
        if self.offline {
            return Err(Error::input(format!("{id}/{path} ({revision}) is not in {}", self.cache.display())).hint(
                "HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE forbid downloads: unset them, or give a file as the model",
            ));
        }
        let doing = format!("downloading {id}/{path} ({revision}) into {}", self.cache.display());
        let (hub, id, revision, path) = (self.clone(), id.to_owned(), revision.to_owned(), path.to_owned());
        let download = move |line: &Line| {
            let session = Session { hub: &hub, client: Client::new(&hub)?, repo: &repo, id: &id, line };
            let listing = session.listing(&revision, known.as_deref())?;
            if !listing.files.contains(&path) {
                let checkpoints = listing.files.iter().filter(|file| file.ends_with(".safetensors"));
                let mut found: Vec<&str> = checkpoints.map(String::as_str).collect();
                found.sort_unstable();
                return Err(Error::input(format!("the model on the hub has no {path}")).found(match found.len() {
                    0 => "no .safetensors file".to_owned(),
                    count => format!("{count} .safetensors files: {}", shown(&found.join(", "))),
                }));
            }
            session.fetch(&listing.commit, &path)?;
            repo.set_commit(&revision, &listing.commit)?;
            Ok(repo.snapshot(&listing.commit).join(path))
        };
        in_thread(download, &doing, on_news)
    }

    fn download(&self, model: &Asked, repo: &Repo, known: Option<&str>, line: &Line) -> Result<PathBuf> {
        let session = Session { hub: self, client: Client::new(self)?, repo, id: &model.id, line };
        let listing = session.listing(&model.revision, known)?;
        let snapshot = repo.snapshot(&listing.commit);
        let fetch = |path: &str| match snapshot.join(path).is_file() {
            true => Ok(()),
            false => session.fetch(&listing.commit, path),
        };
        let index = model.layout.index;
        if !listing.files.contains(index) {
            return Err(Error::input(format!("the model on the hub has no {index}"))
                .hint("only models in the diffusers layout can be read"));
        }
        fetch(index)?;
        let files = ModelFiles::folder(&snapshot)?;
        let components = (model.layout.components)(&files.text(index)?)?;
        for path in model.listed(&components, &listing.files)? {
            fetch(&path)?;
        }
        for component in model.weight_folders(&components) {
            let sources = index::find(&files, component, model.variant.as_deref())?;
            sources.files.iter().try_for_each(|path| fetch(path))?;
            if let Some(variant) = model.variant.as_ref().filter(|_| !sources.is_variant) {
                repo.set_absent(&listing.commit, &variant_file(component, variant))?;
            }
        }
        repo.set_commit(&model.revision, &listing.commit)?;
        Ok(snapshot)
    }
}

/// The revision, `main` by default, once it and the id have been checked.
fn checked<'a>(id: &str, revision: Option<&'a str>) -> Result<&'a str> {
    let revision = revision.unwrap_or("main");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if !is_hub_id(id) {
        return Err(Error::input("the id of a model on the hub has the form org/name").found(shown(id)));
    }
    if !cache::is_inside(revision) || revision.contains("..") || !revision.bytes().all(is_plain) {
        return Err(Error::input("a revision is a branch, a tag or a commit").found(shown(revision)));
    }
    Ok(revision)
}

impl Session<'_> {
    /// The files of the cached commit `known`, or if the hub no longer has it, of the newest commit of `revision`.
    fn listing(&self, revision: &str, known: Option<&str>) -> Result<Listing> {
        let mut listing = known.map(|commit| self.list(commit)).transpose()?.flatten();
        if listing.is_none() {
            listing = self.list(revision)?;
        }
        match listing {
            Some(listing) => Listing::parse(&listing),
            None => Err(Error::input("the hub has no such model or revision")
                .hint("is the id right? A gated or private model needs a token that may read it, in HF_TOKEN")),
        }
    }
}

/// Runs `work` in a thread, forwards its events, and abandons it if `on_news` stops the download. Other errors say what
/// was being done.
fn in_thread<T: Send + 'static>(
    work: impl FnOnce(&Line) -> Result<T> + Send + 'static,
    doing: &str,
    on_news: &mut dyn FnMut(Download) -> ControlFlow<()>,
) -> Result<T> {
    let (news, heard) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let line = Line { news, stop: stop.clone() };
    let worker = thread::Builder::new().name("download".into()).spawn(move || work(&line));
    let worker = worker.map_err(|error| Error::process("starting a thread for the download").source(error))?;
    loop {
        let news = match heard.recv_timeout(GLANCE) {
            Ok(news) => news,
            Err(mpsc::RecvTimeoutError::Timeout) => Download::Nothing,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        if on_news(news).is_break() {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            return Err(Error::interrupted());
        }
    }
    let done = worker.join().unwrap_or_else(|_| Err(Error::process("the thread that downloads has panicked")));
    done.map_err(|error| match error.scope() {
        ErrorScope::Interrupted => error,
        _ => error.context(doing),
    })
}

/// The commit and the files that the hub lists for a model.
struct Listing {
    commit: String,
    files: HashSet<String>,
}

impl Listing {
    /// Parses a reply to `/api/models/...`.
    fn parse(reply: &[u8]) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Reply {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let Ok(reply) = serde_json::from_slice::<Reply>(reply) else {
            return Err(refused("the list of the model's files is not what a hub answers")
                .found(shown(&String::from_utf8_lossy(&reply[..reply.len().min(1000)]))));
        };
        if !cache::is_commit(&reply.sha) {
            return Err(refused("the hub names an invalid commit").found(shown(&reply.sha)));
        }
        let files: HashSet<String> = reply.siblings.into_iter().map(|file| file.rfilename).collect();
        match files.iter().find(|path| !cache::is_inside(path)) {
            Some(path) => Err(refused("the hub lists a file whose path leads out of the model").found(shown(path))),
            None => Ok(Self { commit: reply.sha, files }),
        }
    }
}

/// The files of a model that the caller needs.
struct Asked {
    layout: &'static ModelLayout,
    id: String,
    revision: String,
    variant: Option<String>,
    wanted: Wanted,
}

impl Asked {
    /// The folders whose weights are needed.
    fn weight_folders<'a>(&self, components: &'a Components) -> &'a [String] {
        match self.wanted {
            Wanted::Configs | Wanted::Texts => &[],
            Wanted::Everything => &components.networks,
        }
    }

    /// The configs that are needed.
    fn configs(&self, components: &Components) -> Vec<String> {
        let networks = components.networks.iter().map(|folder| format!("{folder}/config.json"));
        self.layout.configs.iter().map(|path| (*path).to_owned()).chain(networks).collect()
    }

    /// The files to download of those that the hub has; for a component in shards its index, which names them.
    ///
    /// Fails if a config or a component's safetensors are missing.
    fn listed(&self, components: &Components, on_hub: &HashSet<String>) -> Result<Vec<String>> {
        let refuse = |what: String| Error::input(format!("the model on the hub has no {what}"));
        let mut paths = self.configs(components);
        if let Some(path) = paths.iter().find(|path| !on_hub.contains(*path)) {
            return Err(refuse(path.clone()).hint("only models in the diffusers layout can be read"));
        }
        let ModelLayout { optional_configs, texts, optional_texts, .. } = *self.layout;
        // Without texts only the tokenizer's config is needed, which has the length of texts.
        let in_tokenizer: Vec<&str> = match self.wanted {
            Wanted::Configs => optional_texts.iter().take(1).copied().collect(),
            Wanted::Texts | Wanted::Everything => {
                texts.iter().copied().flatten().chain(optional_texts).copied().collect()
            }
        };
        let of_tokenizer =
            |folder: &String| -> Vec<String> { in_tokenizer.iter().map(|name| format!("{folder}/{name}")).collect() };
        let texts = components.tokenizers.iter().flat_map(of_tokenizer);
        let optional = optional_configs.iter().map(|path| (*path).to_owned()).chain(texts);
        paths.extend(optional.filter(|path| on_hub.contains(path)));
        for component in self.weight_folders(components) {
            let variant = self.variant.as_ref().map(|variant| index::variant_candidates(component, variant));
            let candidates = variant.unwrap_or_default().into_iter().chain(index::plain_candidates(component));
            let path = candidates.into_iter().find(|path| on_hub.contains(path)).ok_or_else(|| {
                refuse(format!("safetensors files in {component}/")).hint(
                    "a pickle file (.bin, .ckpt) is never read; a variant such as \"fp16\" may have what is wanted",
                )
            })?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// The first file that a snapshot lacks, or `None` if it is complete. `is_absent` tells whether the hub has
    /// reported that there is no such file.
    fn missing(&self, snapshot: &Path, is_absent: impl Fn(&str) -> bool) -> Option<String> {
        let Ok(files) = ModelFiles::folder(snapshot) else { return Some(self.layout.index.to_owned()) };
        // An index that cannot be read is reported when the model is opened.
        let components = files.text(self.layout.index).and_then(|text| (self.layout.components)(&text)).ok()?;
        let missing_of = |list: &[String]| list.iter().find(|path| !files.exists(path)).cloned();
        let missing_text = |tokenizer: &String| {
            let paths = |names: &&[&str]| names.iter().map(|name| format!("{tokenizer}/{name}")).collect::<Vec<_>>();
            let missing: Option<Vec<String>> =
                self.layout.texts.iter().map(|names| missing_of(&paths(names))).collect();
            missing.and_then(|each| each.last().cloned())
        };
        let tokenizers = if self.wanted >= Wanted::Texts { &components.tokenizers[..] } else { &[] };
        let missing = missing_of(&self.configs(&components)).or_else(|| tokenizers.iter().find_map(missing_text));
        if missing.is_some() {
            return missing;
        }
        self.weight_folders(&components).iter().find_map(|component| {
            match index::find(&files, component, self.variant.as_deref()) {
                Ok(sources) => {
                    let of_variant = self.variant.as_ref().filter(|_| !sources.is_variant);
                    let unknown = of_variant.map(|variant| variant_file(component, variant));
                    let missing = sources.files.into_iter().find(|path| !files.exists(path));
                    missing.or(unknown.filter(|path| !is_absent(path)))
                }
                Err(_) => Some(format!("safetensors files in {component}/")),
            }
        })
    }
}

/// The file whose absence is stored to record that a component has no files of the variant.
fn variant_file(component: &str, variant: &str) -> String {
    index::variant_candidates(component, variant).pop().expect("there is a name for every variant")
}
