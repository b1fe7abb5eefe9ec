//! Access to a model's files: in a diffusers folder on disk, or compiled into the program; with files added that are
//! elsewhere, such as a single-file checkpoint.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use super::{EmbeddingChoice, lora::LoraChoice};
use crate::{
    backend::ReadAt,
    error::{Error, Result},
    input,
};

/// The file that every folder of a diffusers model has.
pub const MODEL_INDEX: &str = "model_index.json";

/// The path at which a single-file checkpoint, with all components, is added to a model.
pub(super) const CHECKPOINT: &str = "checkpoint.safetensors";

/// The largest JSON or text file that is read, in bytes: a `tokenizer.json` of CLIP has up to 4 MB.
pub(super) const LONGEST_TEXT: u64 = 8 << 20;

/// The beginning of a file that a clone without git-lfs has in place of a large file.
const LFS_POINTER: [u8; 40] = *b"version https://git-lfs.github.com/spec/";
/// The length in bytes below which a pointer of git-lfs stays, according to its specification.
const LONGEST_LFS_POINTER: u64 = 1024;

/// A path inside the model, and the file's contents.
pub type EmbeddedFile = (&'static str, &'static [u8]);

/// The files of one model. Paths inside the model are relative, with `/` between their parts.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    name: String,
    storage: Storage,
    /// Files at other places, by their path in the model: they replace those of the storage.
    added: BTreeMap<String, Added>,
    /// Whether all other files follow from the single-file checkpoint.
    is_derived: bool,
    /// Whether the UNet has the averages of its weights in the single-file checkpoint.
    is_averaged: bool,
    /// The state of each file when it was first opened.
    seen: Arc<Mutex<HashMap<String, Stamp>>>,
    /// The LoRAs that change its weights, and whether their modules may be missing in the model.
    loras: (Arc<[LoraChoice]>, bool),
    /// The textual inversions.
    embeddings: Arc<[EmbeddingChoice]>,
}

#[derive(Debug, Clone)]
enum Storage {
    Folder(PathBuf),
    Embedded(&'static [EmbeddedFile]),
}

/// A file that was added to a model.
#[derive(Debug, Clone)]
enum Added {
    /// Its contents.
    Text(Arc<[u8]>),
    /// Its path.
    File(PathBuf),
}

impl ModelFiles {
    /// The diffusers folder at `path`, named after its last part.
    ///
    /// Fails if `path` is a single file, does not exist, or has no `model_index.json`.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |what: &str| Error::input(format!("the model {}: {what}", path.display()));
        if path.is_file() {
            return Err(refuse("this is a file; a diffusers folder is wanted here"));
        }
        if !path.is_dir() {
            return Err(refuse("there is no such folder"));
        }
        if !path.join(MODEL_INDEX).exists() {
            return Err(refuse("this folder has no model_index.json, so it is not a diffusers model")
                .hint("the folder that holds unet/, vae/, text_encoder/ and model_index.json"));
        }
        let full = fs::canonicalize(path).map_err(|error| refuse("cannot be opened").source(error))?;
        let name = full.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self::of(name, Storage::Folder(path.to_owned())))
    }

    /// A single-file checkpoint, named after the file without its extension. Its weights are those of every component;
    /// configs and tokenizers are added by [`ModelFiles::with_text`] or [`ModelFiles::with_configs_of`].
    pub(crate) fn single_file(path: &Path) -> Self {
        let name = path.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        let added = BTreeMap::from([(CHECKPOINT.to_owned(), Added::File(path.to_owned()))]);
        Self { added, is_derived: true, ..Self::of(name, Storage::Embedded(&[])) }
    }

    fn of(name: String, storage: Storage) -> Self {
        Self {
            name,
            storage,
            added: BTreeMap::new(),
            is_derived: false,
            is_averaged: false,
            seen: Arc::default(),
            loras: Default::default(),
            embeddings: Default::default(),
        }
    }

    /// Files that are compiled into the program.
    pub fn embedded(name: &'static str, files: &'static [EmbeddedFile]) -> Self {
        Self::of(name.to_owned(), Storage::Embedded(files))
    }

    /// The same files with the file at `path` replaced or added. A text that is there already changes nothing.
    #[must_use]
    pub(crate) fn with_text(mut self, path: &str, text: impl Into<Vec<u8>>) -> Self {
        let text: Vec<u8> = text.into();
        if !self.text(path).is_ok_and(|known| known.as_bytes() == text) {
            self.added.insert(path.to_owned(), Added::Text(text.into()));
            self.is_derived = false;
        }
        self
    }

    /// The same files with texts that follow from the single-file checkpoint.
    #[must_use]
    pub(crate) fn with_derived(mut self, texts: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        self.added.extend(texts.into_iter().map(|(path, text)| (path, Added::Text(text.into()))));
        self
    }

    /// The same weights with configs and tokenizers of another model.
    #[must_use]
    pub(crate) fn with_configs_of(self, other: Self) -> Self {
        Self { storage: other.storage, is_derived: false, ..self }
    }

    /// The same files with the weights of one component in a file of their own.
    #[must_use]
    pub(crate) fn with_weights(mut self, component: &str, file: &Path) -> Self {
        self.added.insert(own_file(component), Added::File(file.to_owned()));
        self.is_derived = false;
        self
    }

    /// The file of the weights of `component`, if they were added as a file of their own.
    pub fn own_weights(&self, component: &str) -> Option<&Path> {
        match self.added.get(&own_file(component))? {
            Added::File(path) => Some(path),
            Added::Text(_) => None,
        }
    }

    /// The path of the single file that has the weights of `component`, and whether it has no other component's; `None`
    /// if they are in the component's folder.
    pub(super) fn file_of(&self, component: &str) -> Option<(String, bool)> {
        let own = own_file(component);
        match self.added.contains_key(&own) {
            true => Some((own, true)),
            false => self.added.contains_key(CHECKPOINT).then(|| (CHECKPOINT.to_owned(), false)),
        }
    }

    /// The path of the single-file checkpoint, if everything else about the model follows from it.
    pub(crate) fn sole_file(&self) -> Option<String> {
        self.is_derived.then(|| CHECKPOINT.to_owned())
    }

    /// The same files under another name, for example a hub id.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The same model, whose UNet has the averages (EMA) of its weights over the training in place of the last ones.
    #[must_use]
    pub(crate) fn with_averages(self, is_averaged: bool) -> Self {
        Self { is_averaged, ..self }
    }

    /// Whether the UNet has the averages of its weights.
    pub(crate) fn is_averaged(&self) -> bool {
        self.is_averaged
    }

    /// The same model with LoRAs. If it is `lenient`, their modules that the model lacks are ignored.
    #[must_use]
    pub fn with_loras(mut self, loras: &[LoraChoice], lenient: bool) -> Self {
        self.loras = (loras.into(), lenient);
        self
    }

    /// The LoRAs, and whether their modules that the model lacks are ignored.
    pub fn loras(&self) -> (&[LoraChoice], bool) {
        (&self.loras.0, self.loras.1)
    }

    /// The same model with textual inversions, which prompts use by their names.
    #[must_use]
    pub fn with_embeddings(mut self, embeddings: &[EmbeddingChoice]) -> Self {
        self.embeddings = embeddings.into();
        self
    }

    /// The textual inversions.
    pub fn embeddings(&self) -> &[EmbeddingChoice] {
        &self.embeddings
    }

    /// The name of the model: the folder's name, the hub id, or the name of the embedded files.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is such a file. Anything with this name counts, even if it is not a regular file: opening it gives
    /// the error.
    pub fn exists(&self, path: &str) -> bool {
        match (self.added.get(path), &self.storage) {
            (Some(Added::Text(_)), _) => true,
            (Some(Added::File(file)), _) => file.exists(),
            (None, Storage::Folder(folder)) => is_inside(path) && folder.join(path).exists(),
            (None, Storage::Embedded(files)) => files.iter().any(|(name, _)| *name == path),
        }
    }

    /// The file's name in messages: its full path, or its path inside the embedded model.
    pub fn path_of(&self, path: &str) -> String {
        match (self.added.get(path), &self.storage) {
            (Some(Added::File(file)), _) => file.display().to_string(),
            (None, Storage::Folder(folder)) => folder.join(path).display().to_string(),
            (Some(Added::Text(_)), _) | (None, Storage::Embedded(_)) => format!("{}:{path}", self.name),
        }
    }

    /// The path of the file on disk, whether it exists or not; `None` for a file that is compiled into the program, and
    /// for a path that leads out of the folder.
    pub fn location(&self, path: &str) -> Option<PathBuf> {
        match (self.added.get(path), &self.storage) {
            (Some(Added::File(file)), _) => Some(file.clone()),
            (None, Storage::Folder(folder)) => is_inside(path).then(|| folder.join(path)),
            (Some(Added::Text(_)), _) | (None, Storage::Embedded(_)) => None,
        }
    }

    /// Reads a whole text file. Fails if it does not exist, is longer than 8 MiB or is not UTF-8.
    pub fn text(&self, path: &str) -> Result<String> {
        let refuse = |what: &str| Error::input(format!("{}: {what}", self.path_of(path)));
        let stored = self.open(path)?;
        if stored.bytes() > LONGEST_TEXT {
            return Err(refuse("too long for a text file of a model").found(format!("{} bytes", stored.bytes())));
        }
        let mut bytes = vec![0; stored.bytes() as usize];
        stored.read_at(0, &mut bytes)?;
        String::from_utf8(bytes).map_err(|error| refuse("this is not UTF-8 text").source(error))
    }

    /// Opens a file without reading it.
    ///
    /// Fails if it does not exist, is not a regular file, or has changed since it was first opened under this path, so
    /// that everything that is read belongs to one version of the model.
    pub fn open(&self, path: &str) -> Result<Stored> {
        let name = self.path_of(path);
        let refuse = |what: &str| Error::input(format!("{name}: {what}"));
        match (self.added.get(path), &self.storage) {
            (Some(Added::Text(text)), _) => Ok(Stored(Contents::Memory(text.clone()))),
            (Some(Added::File(file)), _) => self.open_at(path, file),
            (None, Storage::Embedded(files)) => files
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, bytes)| Stored(Contents::Static(bytes)))
                .ok_or_else(|| refuse("the built-in model has no such file")),
            (None, Storage::Folder(_)) if !is_inside(path) => Err(refuse("this path leads out of the model's folder")),
            (None, Storage::Folder(folder)) => self.open_at(path, &folder.join(path)),
        }
    }

    /// Opens the file of the model at `path`, which is at `place`.
    fn open_at(&self, path: &str, place: &Path) -> Result<Stored> {
        let name = self.path_of(path);
        let stored = Stored::open(place, name.clone())?;
        let Contents::File { stamp, .. } = &stored.0 else { return Ok(stored) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.entry(path.to_owned()).or_insert_with(|| stamp.clone()) != stamp {
            return Err(changed(&name));
        }
        Ok(stored)
    }

    /// The names of the files directly in `folder`, sorted; empty if there is no such folder.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.storage {
            Storage::Folder(root) if is_inside(folder) => fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
            Storage::Folder(_) => Vec::new(),
            Storage::Embedded(files) => files
                .iter()
                .filter_map(|(name, _)| name.strip_prefix(folder)?.strip_prefix('/'))
                .filter(|name| !name.contains('/'))
                .map(str::to_owned)
                .collect(),
        };
        names.sort();
        names
    }
}

/// The path at which a component's own file is added to a model.
fn own_file(component: &str) -> String {
    format!("{component}.safetensors")
}

/// Whether a relative path stays inside the folder that it is relative to.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// An open file of the model, which is read in pieces, or a file that is compiled into the program.
#[derive(Debug)]
pub struct Stored(Contents);

#[derive(Debug)]
enum Contents {
    File {
        file: fs::File,
        /// The file's name in messages.
        name: String,
        stamp: Stamp,
    },
    Static(&'static [u8]),
    Memory(Arc<[u8]>),
}

/// The values by which a change of a file is detected.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// The device and inode numbers, if the system has them.
    inode: (u64, u64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        #[cfg(unix)]
        let inode = (std::os::unix::fs::MetadataExt::dev(metadata), std::os::unix::fs::MetadataExt::ino(metadata));
        #[cfg(not(unix))]
        let inode = (0, 0);
        Self { bytes: metadata.len(), modified: metadata.modified().ok(), inode }
    }
}

impl Stored {
    /// A file whose contents are these bytes.
    #[cfg(test)]
    pub(super) fn in_memory_of(bytes: Vec<u8>) -> Self {
        Self(Contents::Memory(bytes.into()))
    }

    /// Opens a file on disk without reading it; `name` is its name in messages.
    ///
    /// Fails if it does not exist, is not a regular file, or is a pointer of git-lfs.
    pub(super) fn open(path: &Path, name: String) -> Result<Self> {
        let refuse = |what: &str| Error::input(format!("{name}: {what}"));
        let file = input::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => refuse("there is no such file"),
            _ => refuse("cannot be opened").source(error),
        })?;
        let metadata = file.metadata().map_err(|error| refuse("cannot be read").source(error))?;
        let mut start = [0; LFS_POINTER.len()];
        if metadata.len() < LONGEST_LFS_POINTER && read_exact_at(&file, &mut start, 0).is_ok() && start == LFS_POINTER {
            return Err(refuse("this is a pointer of git-lfs, in place of the file's contents")
                .hint("git lfs pull in the model's folder fetches the contents"));
        }
        Ok(Self(Contents::File { file, name, stamp: Stamp::of(&metadata) }))
    }

    /// The length in bytes when the file was opened.
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Contents::File { stamp, .. } => stamp.bytes,
            Contents::Static(bytes) => bytes.len() as u64,
            Contents::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// The whole contents, unless the file is on disk.
    pub(super) fn in_memory(&self) -> Option<&[u8]> {
        match &self.0 {
            Contents::Static(bytes) => Some(bytes),
            Contents::Memory(bytes) => Some(bytes),
            Contents::File { .. } => None,
        }
    }

    /// Fails if the file was changed since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let Contents::File { file, name, stamp } = &self.0 else { return Ok(()) };
        let now = file.metadata().map_err(|error| unreadable(name).source(error))?;
        if Stamp::of(&now) == *stamp { Ok(()) } else { Err(changed(name)) }
    }
}

impl ReadAt for Stored {
    fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()> {
        match &self.0 {
            Contents::Static(bytes) => to.copy_from_slice(&bytes[start..start + to.len()]),
            Contents::Memory(bytes) => to.copy_from_slice(&bytes[start..start + to.len()]),
            Contents::File { file, name, .. } => {
                read_exact_at(file, to, start as u64).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => changed(name).found("a shorter file"),
                    _ => unreadable(name).source(error),
                })?;
            }
        }
        Ok(())
    }
}

fn changed(name: &str) -> Error {
    Error::request(format!("{name} was changed while it was in use")).hint("start again with the file as it is now")
}

fn unreadable(name: &str) -> Error {
    Error::request(format!("{name}: cannot be read any more"))
}

#[cfg(unix)]
fn read_exact_at(file: &fs::File, to: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, start)
}

#[cfg(windows)]
fn read_exact_at(file: &fs::File, mut to: &mut [u8], mut start: u64) -> io::Result<()> {
    while !to.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, to, start)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => (to, start) = (&mut to[count..], start + count as u64),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_folder_and_embedded_files_alike() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("unet")).unwrap();
        fs::write(folder.path().join(MODEL_INDEX), "{}").unwrap();
        fs::write(folder.path().join("unet/config.json"), "{ }").unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        let on_disk = ModelFiles::folder(folder.path()).unwrap();
        let embedded =
            ModelFiles::embedded("tiny", &[(MODEL_INDEX, b"{}"), ("unet/config.json", b"{ }"), ("empty", b"")]);
        for files in [&on_disk, &embedded] {
            assert!(files.exists("unet/config.json") && !files.exists("vae/config.json"));
            assert_eq!(files.text("unet/config.json").unwrap(), "{ }");
            assert_eq!(files.text("empty").unwrap(), "");
            assert_eq!(files.list("unet"), ["config.json"]);
            assert!(files.list("vae").is_empty());
            let (stored, mut last) = (files.open(MODEL_INDEX).unwrap(), [0]);
            stored.read_at(1, &mut last).unwrap();
            assert_eq!((stored.bytes(), &last), (2, b"}"));
            let error = files.text("vae/config.json").unwrap_err().to_string();
            assert!(error.contains("vae/config.json") && error.contains("no such file"), "{error}");
        }
        assert_eq!(on_disk.name(), folder.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(on_disk.with_name("org/name").name(), "org/name");
        assert_eq!(embedded.name(), "tiny");
    }

    #[test]
    fn added_files_replace_those_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("My model.v1.safetensors");
        fs::write(&file, "12345").unwrap();
        let files = ModelFiles::single_file(&file).with_derived([("unet/config.json".to_owned(), b"{}".to_vec())]);
        assert_eq!((files.name(), files.text("unet/config.json").unwrap().as_str()), ("My model.v1", "{}"));
        assert_eq!(files.file_of("unet"), Some((CHECKPOINT.to_owned(), false)));
        assert_eq!((files.open(CHECKPOINT).unwrap().bytes(), files.location(CHECKPOINT)), (5, Some(file.clone())));
        assert_eq!(files.path_of("unet/config.json"), "My model.v1:unet/config.json");
        assert!(files.exists("unet/config.json") && !files.exists("vae/config.json"));
        // Only what differs makes it another model.
        let same = files.clone().with_text("unet/config.json", "{}");
        assert_eq!(same.sole_file().as_deref(), Some(CHECKPOINT));
        let other = files.clone().with_text("unet/config.json", "{ }");
        assert_eq!((other.text("unet/config.json").unwrap().as_str(), other.sole_file()), ("{ }", None));
        let other = files.with_weights("vae", &file);
        assert_eq!((other.file_of("vae"), other.sole_file()), (Some(("vae.safetensors".to_owned(), true)), None));

        // A file of a folder that has such a name by chance is not taken for an added one.
        fs::write(folder.path().join(MODEL_INDEX), "{}").unwrap();
        fs::write(folder.path().join(CHECKPOINT), "").unwrap();
        assert_eq!(ModelFiles::folder(folder.path()).unwrap().file_of("unet"), None);
    }

    #[test]
    fn says_what_is_no_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.safetensors"), "").unwrap();
        for (path, words) in [
            (path("a.safetensors"), "this is a file"),
            (path("absent"), "no such folder"),
            (path(""), "no model_index.json"),
        ] {
            let error = ModelFiles::folder(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&*path.to_string_lossy()), "{error}");
        }
    }

    #[test]
    fn a_pointer_of_git_lfs_is_not_taken_for_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n", "0".repeat(64));
        fs::create_dir(folder.path().join("unet")).unwrap();
        for path in [MODEL_INDEX, "unet/diffusion_pytorch_model.safetensors", "vocab.json"] {
            fs::write(folder.path().join(path), &pointer).unwrap();
            let error = ModelFiles::folder(folder.path()).and_then(|files| files.open(path)).err().unwrap().to_string();
            assert!(error.contains(path) && error.contains("git lfs pull"), "{error}");
        }
    }

    #[test]
    fn does_not_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MODEL_INDEX), "{}").unwrap();
        let files = ModelFiles::folder(folder.path()).unwrap();
        for path in ["../x", "/etc/hostname", "unet/../../x", ""] {
            assert!(!files.exists(path));
            assert!(files.open(path).unwrap_err().to_string().contains("leads out of"), "{path}");
        }
    }

    #[test]
    fn a_file_that_changes_under_a_model_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path(MODEL_INDEX), "{}").unwrap();
        let earlier = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let written = |bytes: &[u8]| {
            fs::write(path("weights"), bytes).unwrap();
            // The system's clock may be too coarse to distinguish two writes in a row.
            fs::File::options().write(true).open(path("weights")).unwrap().set_modified(earlier).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 4] = [
            ("cut off", &|| fs::write(path("weights"), "12").unwrap()),
            ("longer", &|| fs::write(path("weights"), "123456").unwrap()),
            ("rewritten", &|| fs::write(path("weights"), "abcd").unwrap()),
            ("emptied", &|| fs::write(path("weights"), "").unwrap()),
        ];
        for (what, change) in changes {
            written(b"1234");
            let files = ModelFiles::folder(folder.path()).unwrap();
            let stored = files.open("weights").unwrap();
            let mut bytes = [0; 4];
            stored.read_at(0, &mut bytes).and_then(|()| stored.check_unchanged()).unwrap();
            change();
            let error = stored.read_at(0, &mut bytes).and_then(|()| stored.check_unchanged()).unwrap_err();
            assert_eq!(*error.scope(), crate::error::ErrorScope::Request, "{what}");
            assert!(error.to_string().contains("was changed while it was in use"), "{what}: {error}");
            assert!(
                files.open("weights").is_err(),
                "{what}: the same model has other weights when they are opened anew"
            );
        }
        // Replaced by another file: the open file keeps its contents, and parts of two versions are never mixed.
        written(b"1234");
        let files = ModelFiles::folder(folder.path()).unwrap();
        let stored = files.open("weights").unwrap();
        fs::write(path("other"), "abcd").unwrap();
        fs::rename(path("other"), path("weights")).unwrap();
        let mut bytes = [0; 4];
        stored.read_at(0, &mut bytes).and_then(|()| stored.check_unchanged()).unwrap();
        assert_eq!(&bytes, b"1234");
        assert!(files.open("weights").unwrap_err().to_string().contains("was changed"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_or_a_folder_in_the_place_of_a_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path(MODEL_INDEX), "{}").unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        fs::create_dir(path("folder")).unwrap();
        let files = ModelFiles::folder(folder.path()).unwrap();
        for name in ["pipe", "folder"] {
            assert!(files.exists(name));
            let error = files.text(name).unwrap_err().to_string();
            assert!(error.contains(&format!("this is a {name}; a regular file is needed")), "{error}");
        }
    }

    #[test]
    fn refuses_text_that_is_no_text() {
        let files = ModelFiles::embedded("bad", &[("x.json", &[0xff, 0xfe])]);
        assert!(files.text("x.json").unwrap_err().to_string().contains("bad:x.json: this is not UTF-8 text"));
    }
}
