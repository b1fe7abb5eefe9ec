//! Files that appear whole or not at all.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// How the names of unfinished files begin and end; hidden, and no one else's.
const PREFIX: &str = ".sdshard-";
const SUFFIX: &str = ".unfinished";
/// Writing takes a moment, so an unfinished file this old has nobody who finishes it.
const STALE: Duration = Duration::from_secs(60);

/// Writes a file: beside its place under another name first, then renamed, so that a reader never sees half of it. A
/// file that was there is replaced.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let refuse = |error: io::Error| Error::process(format!("writing {}", path.display())).source(error);
    let mut file = unfinished(folder_of(path)).map_err(refuse)?;
    io::Write::write_all(&mut file, bytes).map_err(refuse)?;
    file.persist(path).map_err(|error| refuse(error.error))?;
    Ok(())
}

/// Makes sure, before anything is computed, that files can be written in a folder. Makes the folder if it is missing.
pub fn check_writable(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).and_then(|()| unfinished(folder)?.close()).map_err(|error| {
        Error::input(format!("the output folder {} cannot be written to", folder.display())).source(error)
    })
}

/// Removes unfinished files that an earlier run left behind, and says how many. Those of a run that is still going are
/// left alone, and so is whatever cannot be removed: it does no harm.
pub fn sweep(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let is_stale = |entry: &fs::DirEntry| {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        ours && entry.metadata().is_ok_and(|m| m.is_file() && m.modified().is_ok_and(is_old))
    };
    entries.flatten().filter(is_stale).filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
}

fn is_old(time: SystemTime) -> bool {
    // An error is a time to come.
    time.elapsed().is_ok_and(|age| age > STALE)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new file that is removed unless it is persisted, with the permissions of any new file (tempfile's own choice is
/// to let nobody else read it).
fn unfinished(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_whole_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        for bytes in [&b"one"[..], b"two and more", b""] {
            write(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(names(folder.path()), ["a.png"]);
        }
        let error = write(&folder.path().join("missing/a.png"), b"x").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("missing/a.png"), "{error}");
    }

    #[test]
    fn a_failed_rename_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x").is_err());
        assert_eq!(names(folder.path()), ["a.png"]);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_it_as_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write(&ours, b"x").unwrap();
        fs::write(&plain, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn a_folder_is_made_and_one_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        check_writable(&inner).unwrap();
        assert!(names(&inner).is_empty());

        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = check_writable(&file).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("the output folder"), "{error}");
    }

    #[test]
    fn only_our_own_old_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, seconds: u64| {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        make(".sdshard-old.unfinished", 120);
        make(".sdshard-new.unfinished", 0);
        make(".sdshard-other", 120);
        make("picture.png", 120);
        assert_eq!(sweep(folder.path()), 1);
        assert_eq!(names(folder.path()), [".sdshard-new.unfinished", ".sdshard-other", "picture.png"]);
        assert_eq!(sweep(&folder.path().join("missing")), 0);
    }
}
