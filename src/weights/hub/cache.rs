//! The cache on disk, in the layout of Python's huggingface_hub, so that both programs share their downloads:
//!
//! ```text
//! models--org--name/refs/main                      the commit of a branch
//! models--org--name/blobs/ETAG                     contents; ETAG.incomplete while they are fetched
//! models--org--name/snapshots/COMMIT/unet/config.json  a link to a blob, or a file where there are no links
//! models--org--name/.no_exist/COMMIT/PATH          the hub was asked, and has no such file
//! .locks/models--org--name/ETAG.lock               held by the process that fetches the blob
//! ```
//!
//! Names that a server sends become parts of these paths only after [`is_commit`] or [`blob_name`] accepted them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    input,
};

/// The folder of one model in the cache.
#[derive(Debug, Clone)]
pub(super) struct Repo {
    root: PathBuf,
    locks: PathBuf,
}

impl Repo {
    /// The folder of the model `id`, which has the form `org/name`.
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The cached commit of a branch, a tag or a commit.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let stored = input::text(&self.root.join("refs").join(revision));
        let commit = stored.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
        is_commit(&commit).then_some(commit)
    }

    /// Stores the commit of a branch, a tag or a commit.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(revision);
        if input::text(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        place(&path, |aside| File::create_new(aside)?.write_all(commit.as_bytes()))
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The path of the blob with this name.
    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.root.join("blobs").join(name)
    }

    /// The file that a process locks while it fetches the blob.
    pub(super) fn lock_file(&self, name: &str) -> PathBuf {
        self.locks.join(format!("{name}.lock"))
    }

    /// Adds a blob to a snapshot: as a relative link, or as a hard link or a copy if the system has no symbolic links.
    pub(super) fn link(&self, commit: &str, path: &str, blob: &str) -> Result<()> {
        let target = self.blob(blob);
        place(&self.snapshot(commit).join(path), |aside| {
            let up = "../".repeat(path.split('/').count() + 1);
            symlink(&format!("{up}blobs/{blob}"), aside)
                .or_else(|_| fs::hard_link(&target, aside))
                .or_else(|_| fs::copy(&target, aside).map(drop))
        })
    }

    /// Whether the hub has reported before that a commit has no such file.
    pub(super) fn is_absent(&self, commit: &str, path: &str) -> bool {
        self.root.join(".no_exist").join(commit).join(path).exists()
    }

    /// Stores that a commit has no such file.
    pub(super) fn set_absent(&self, commit: &str, path: &str) -> Result<()> {
        place(&self.root.join(".no_exist").join(commit).join(path), |aside| File::create_new(aside).map(drop))
    }
}

/// Makes a file under a temporary name and renames it, and makes the folders that contain it.
fn place(path: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> Result<()> {
    let folder = path.parent().expect("every path of the cache is inside a folder");
    fs::create_dir_all(folder)
        .and_then(|()| tempfile::Builder::new().prefix(".sdshard-").make_in(folder, make))
        .and_then(|aside| aside.into_temp_path().persist(path).map_err(|error| error.error))
        .map_err(|error| cannot_write(path, error))
}

/// The error for a file of the cache that cannot be written: the disk is full, or the folder belongs to another user.
pub(super) fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::process(format!("writing {} in the hub's cache", path.display()))
        .source(error)
        .hint("HF_HUB_CACHE or HF_HOME takes another folder as the cache")
}

#[cfg(unix)]
fn symlink(target: &str, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(windows)]
fn symlink(target: &str, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target.replace('/', "\\"), at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &str, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a text is a commit: 40 hexadecimal digits, or 64 in repositories that use SHA-256.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of the blob with this ETag. On the hub the ETag is a hash; other servers may send another plain word.
///
/// `None` if the ETag could be anything but the name of a file in the folder of blobs.
pub(super) fn blob_name(etag: &str) -> Option<&str> {
    let name = etag.strip_prefix("W/").unwrap_or(etag);
    let name = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let ends_otherwise = ![".incomplete", ".lock"].iter().any(|end| name.ends_with(end));
    let fits = (1..=128).contains(&name.len()) && !name.starts_with('.') && !name.ends_with('.');
    (fits && ends_otherwise && name.bytes().all(is_plain)).then_some(name)
}

/// Whether a path of a listing stays inside the model: it is relative, with `/` between its parts, none of them `.` or
/// `..`.
pub(super) fn is_inside(path: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_drive = path.as_bytes().get(1) == Some(&b':');
    path.len() <= 1024 && !is_drive && !path.contains(['\\', '\0']) && path.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn what_a_server_names_cannot_leave_its_folder() {
        for good in ["a", COMMIT, "unet-config.json", &"f".repeat(64)] {
            assert_eq!(blob_name(&format!("\"{good}\"")), Some(good));
            assert_eq!(blob_name(&format!("W/\"{good}\"")), Some(good));
            assert_eq!(blob_name(good), Some(good));
        }
        let long = "a".repeat(129);
        for bad in [
            "",
            "\"\"",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "C:x",
            ".hidden",
            "a b",
            "a\0",
            "é",
            "a\"b",
            "x.incomplete",
            "x.lock",
            "x.",
            &long,
        ] {
            assert_eq!(blob_name(bad), None, "{bad:?}");
            assert_eq!(blob_name(&format!("\"{bad}\"")), None, "{bad:?}");
        }
        for bad in ["", "main", "..", &COMMIT[1..], &COMMIT.to_uppercase(), &format!("{COMMIT}/.."), "../../../x"] {
            assert!(!is_commit(bad), "{bad}");
        }
        assert!(is_commit(COMMIT) && is_commit(&"0".repeat(64)));
        for good in ["a", "unet/config.json", ".gitattributes", "a b", "a..b/c"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/a", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "C:/a", "c:a", "a\0b"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn a_branch_names_a_commit_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let repo = Repo::new(folder.path(), "org/name");
        assert_eq!(repo.commit("main"), None);
        assert_eq!(repo.commit(COMMIT).as_deref(), Some(COMMIT));
        repo.set_commit("refs/pr/1", COMMIT).unwrap();
        assert_eq!(repo.commit("refs/pr/1").as_deref(), Some(COMMIT));
        let reference = folder.path().join("models--org--name/refs/main");
        for (text, commit) in [(format!("{COMMIT}\n"), Some(COMMIT)), ("../../x".into(), None), (String::new(), None)] {
            fs::write(&reference, &text).unwrap();
            assert_eq!(repo.commit("main").as_deref(), commit, "{text}");
        }
    }

    #[test]
    fn a_snapshot_has_links_to_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let repo = Repo::new(folder.path(), "org/name");
        fs::create_dir_all(repo.blob("x").parent().unwrap()).unwrap();
        fs::write(repo.blob("x"), "contents").unwrap();
        for path in ["model_index.json", "unet/config.json"] {
            for _ in 0..2 {
                repo.link(COMMIT, path, "x").unwrap();
                assert_eq!(fs::read_to_string(repo.snapshot(COMMIT).join(path)).unwrap(), "contents");
            }
        }
        if cfg!(unix) {
            let link = fs::read_link(repo.snapshot(COMMIT).join("unet/config.json")).unwrap();
            assert_eq!(link, Path::new("../../../blobs/x"));
        }
        assert!(!repo.is_absent(COMMIT, "unet/x"));
        repo.set_absent(COMMIT, "unet/x").unwrap();
        assert!(repo.is_absent(COMMIT, "unet/x"));
    }
}
