//! Where a model's files are: a diffusers folder on disk, or files compiled into the program.

use std::{
    fs,
    ops::Deref,
    path::{Component, Path, PathBuf},
};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The file that makes a folder a diffusers model.
pub const MODEL_INDEX: &str = "model_index.json";

/// The longest JSON or text file that is read: real ones end at some 5 MB.
pub(super) const LONGEST_TEXT: u64 = 64 << 20;

/// What a clone without git-lfs has in place of a large file begins with this.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// A path inside the model and the file's contents.
pub type EmbeddedFile = (&'static str, &'static [u8]);

/// The files of one model. Paths inside are relative, with `/` between their parts.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    name: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Folder(PathBuf),
    Embedded(&'static [EmbeddedFile]),
}

impl ModelFiles {
    /// The diffusers folder at `path`, named after its last part.
    ///
    /// Fails where `path` is a single file, is not there or has no `model_index.json`.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |what: &str| Error::input(format!("the model {}: {what}", path.display()));
        if path.is_file() {
            return Err(match path.extension().and_then(|extension| extension.to_str()) {
                Some("ckpt" | "pt" | "pth" | "bin") => refuse("this is a pickle file, and sdshard never reads those")
                    .hint("the same model as a diffusers folder with safetensors files"),
                _ => refuse("single-file checkpoints are not supported; a diffusers folder is wanted")
                    .hint("most models are published in that form too: a folder with model_index.json"),
            });
        }
        if !path.is_dir() {
            return Err(refuse("there is no such folder"));
        }
        if !path.join(MODEL_INDEX).is_file() {
            return Err(refuse("this folder has no model_index.json, so it is not a diffusers model")
                .hint("the folder that holds unet/, vae/, text_encoder/ and model_index.json"));
        }
        let full = fs::canonicalize(path).map_err(|error| refuse("cannot be opened").source(error))?;
        let name = full.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, place: Place::Folder(path.to_owned()) })
    }

    /// Files compiled into the program.
    pub fn embedded(name: &'static str, files: &'static [EmbeddedFile]) -> Self {
        Self { name: name.to_owned(), place: Place::Embedded(files) }
    }

    /// The same files under another name, a hub id for one.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the model is called: the folder's name, the hub id, or the name of the embedded files.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is such a file.
    pub fn exists(&self, path: &str) -> bool {
        match &self.place {
            Place::Folder(folder) => is_inside(path) && folder.join(path).is_file(),
            Place::Embedded(files) => files.iter().any(|(name, _)| *name == path),
        }
    }

    /// How messages call the file: its full path, or its path inside the embedded model.
    pub fn path_of(&self, path: &str) -> String {
        match &self.place {
            Place::Folder(folder) => folder.join(path).display().to_string(),
            Place::Embedded(_) => format!("{}:{path}", self.name),
        }
    }

    /// A whole text file. Fails where it is absent, longer than 64 MiB or not UTF-8.
    pub fn text(&self, path: &str) -> Result<String> {
        let refuse = |what: &str| Error::input(format!("{}: {what}", self.path_of(path)));
        let bytes = self.bytes(path)?;
        if bytes.len() as u64 > LONGEST_TEXT {
            return Err(refuse("too long for a text file of a model").found(format!("{} bytes", bytes.len())));
        }
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|error| refuse("this is not UTF-8 text").source(error))
    }

    /// A file's contents, through the page cache: nothing is read before it is looked at.
    pub fn bytes(&self, path: &str) -> Result<Bytes> {
        let refuse = |what: &str| Error::input(format!("{}: {what}", self.path_of(path)));
        match &self.place {
            Place::Embedded(files) => files
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, bytes)| Bytes(Contents::Static(bytes)))
                .ok_or_else(|| refuse("the built-in model has no such file")),
            Place::Folder(_) if !is_inside(path) => Err(refuse("this path leads out of the model's folder")),
            Place::Folder(folder) => {
                let file = fs::File::open(folder.join(path)).map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => refuse("there is no such file"),
                    _ => refuse("cannot be opened").source(error),
                })?;
                // SAFETY: a mapping is sound while nobody shortens or rewrites the file. Model files are written once,
                // aside, and renamed into place by every tool that makes them; as all programs that map weights, we
                // rely on that.
                let map = unsafe { Mmap::map(&file) }.map_err(|error| refuse("cannot be read").source(error))?;
                if map.starts_with(LFS_POINTER) {
                    return Err(refuse("this is a pointer of git-lfs, in place of the file's contents")
                        .hint("git lfs pull in the model's folder fetches the contents"));
                }
                Ok(Bytes(Contents::Map(map)))
            }
        }
    }

    /// The names of the files directly in `folder`, sorted; none where there is no such folder.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.place {
            Place::Folder(root) if is_inside(folder) => fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
            Place::Folder(_) => Vec::new(),
            Place::Embedded(files) => files
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

/// Whether a relative path stays inside the folder it is relative to.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The contents of a file: mapped, or compiled into the program.
#[derive(Debug)]
pub struct Bytes(Contents);

#[derive(Debug)]
enum Contents {
    Map(Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    /// Gives mapped pages back to the system; they are read again where somebody looks again. Best effort.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Contents::Map(map) = &self.0 {
            // SAFETY: the map is a read-only, shared view of a file. Pages that are dropped come back from the file
            // with the same contents, so nobody who borrows the bytes can tell.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Contents::Map(map) => map,
            Contents::Static(bytes) => bytes,
        }
    }
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
            assert!(files.exists("unet/config.json") && !files.exists("unet") && !files.exists("vae/config.json"));
            assert_eq!(files.text("unet/config.json").unwrap(), "{ }");
            assert_eq!(files.text("empty").unwrap(), "");
            assert_eq!(files.list("unet"), ["config.json"]);
            assert!(files.list("vae").is_empty());
            let bytes = files.bytes(MODEL_INDEX).unwrap();
            bytes.release();
            assert_eq!(&*bytes, b"{}");
            let error = files.text("vae/config.json").unwrap_err().to_string();
            assert!(error.contains("vae/config.json") && error.contains("no such file"), "{error}");
        }
        assert_eq!(on_disk.name(), folder.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(on_disk.with_name("org/name").name(), "org/name");
        assert_eq!(embedded.name(), "tiny");
    }

    #[test]
    fn says_what_is_no_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.safetensors"), "").unwrap();
        fs::write(path("a.ckpt"), "").unwrap();
        for (path, words) in [
            (path("a.safetensors"), "single-file checkpoints are not supported"),
            (path("a.ckpt"), "pickle"),
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
            let error = ModelFiles::folder(folder.path()).and_then(|files| files.bytes(path)).unwrap_err().to_string();
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
            assert!(files.bytes(path).unwrap_err().to_string().contains("leads out of"), "{path}");
        }
    }

    #[test]
    fn refuses_text_that_is_no_text() {
        let files = ModelFiles::embedded("bad", &[("x.json", &[0xff, 0xfe])]);
        assert!(files.text("x.json").unwrap_err().to_string().contains("bad:x.json: this is not UTF-8 text"));
    }
}
