//! Writes all files except the downloads in the hub's cache: completely or not at all, never in place of something that
//! is not a regular file, and to the disk before they count as written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// The beginning and end of the names of unfinished files, which are hidden and used by no other program.
const PREFIX: &str = ".sdshard-";
const SUFFIX: &str = ".unfinished";
/// An unfinished file is locked as soon as it exists. An unlocked one of this age is left over from another run.
const STALE: Duration = Duration::from_secs(60);

/// The condition under which a file counts as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The file and its name are on the disk and survive a power failure.
    Synced,
    /// The operating system has the data.
    Buffered,
}

/// Writes a file. An existing regular file is replaced in one step, so that a reader never sees a mixture; a symbolic
/// link keeps pointing to the file that is replaced. Anything else that exists (a device, a FIFO) is written into and
/// not replaced.
///
/// # Errors
/// If the file cannot be written. An existing file is unchanged then, unless it is not a regular file.
pub fn write(path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    replace(path, bytes, durability).map_err(|error| refuse(path, error))
}

/// As [`write()`], but nothing is replaced: `false` if anything with this name exists. If several processes create one
/// name at the same time, one succeeds.
///
/// # Errors
/// If the file cannot be written.
pub fn create(path: &Path, bytes: &[u8], durability: Durability) -> Result<bool> {
    create_new(path, bytes, durability).map_err(|error| refuse(path, error))
}

fn refuse(path: &Path, error: io::Error) -> Error {
    Error::process(format!("writing {}", path.display())).source(error)
}

/// As [`write()`], for a file of a cache: its folder is created, and it need not survive a power failure.
pub(crate) fn write_cache(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder_of(path))?;
    replace(path, bytes, Durability::Buffered)
}

fn replace(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => match fs::canonicalize(path) {
            Ok(target) if target.is_file() => replace(&target, bytes, durability),
            _ => write_into(path, bytes, durability),
        },
        Ok(there) if !there.is_file() => write_into(path, bytes, durability),
        _ => {
            let folder = folder_of(path);
            aside(folder, bytes, durability)?.persist(path).map_err(|error| error.error)?;
            sync_folder(folder, durability)
        }
    }
}

fn create_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<bool> {
    let folder = folder_of(path);
    match aside(folder, bytes, durability)?.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) if is_unsupported(&error.error) => {
            // The file system can neither rename without replacing nor link, so an empty file reserves the name.
            match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(_) => error.file.persist(path).map_err(|error| error.error)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                Err(error) => return Err(error),
            };
        }
        Err(error) => return Err(error.error),
    }
    sync_folder(folder, durability)?;
    Ok(true)
}

/// Whether a file system does not support an operation.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
}

/// Writes into what exists, or into the file that a dangling symbolic link names.
fn write_into(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // A FIFO without a reader is an error rather than an endless wait.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let mut file = options.open(path)?;
    #[cfg(unix)]
    rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - rustix::fs::OFlags::NONBLOCK)?;
    file.write_all(bytes)?;
    if durability == Durability::Synced && file.metadata()?.is_file() { file.sync_all() } else { Ok(()) }
}

/// A new file with these bytes and a temporary name, locked, and removed unless it is persisted.
fn aside(folder: &Path, bytes: &[u8], durability: Durability) -> io::Result<NamedTempFile> {
    let mut file = unfinished(folder)?;
    // Not every file system has locks; a file without one is protected only by its age.
    let _ = file.as_file().try_lock();
    file.write_all(bytes)?;
    if durability == Durability::Synced {
        file.as_file().sync_all()?;
    }
    Ok(file)
}

/// Makes the names in a folder durable, if the folder may be read and its file system supports the operation.
fn sync_folder(folder: &Path, durability: Durability) -> io::Result<()> {
    if durability == Durability::Buffered || !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).map(|folder| folder.sync_all()) {
        Ok(Err(error)) if !is_unsupported(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Checks, before anything is computed, that a file can be written, as far as this can be known.
///
/// # Errors
/// If it is a folder, or its own folder can neither be created nor written to.
pub fn check_possible(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            Err(Error::input(format!("{} cannot be written: this is a folder", path.display()))
                .hint("the path of a file"))
        }
        Ok(there) if !there.is_file() => Ok(()),
        _ => check_writable(folder_of(path)),
    }
}

/// Checks, before anything is computed, that files can be written in a folder. Creates the folder if it is missing.
pub fn check_writable(folder: &Path) -> Result<()> {
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    let refuse = |error: io::Error| {
        Error::input(format!("the output folder {} cannot be written to", folder.display())).source(error)
    };
    make(folder).and_then(|()| unfinished(folder)?.close()).map_err(refuse)
}

/// Creates a folder and its parents.
///
/// # Errors
/// If that is not possible, or there is something else with this name.
pub fn make_folder(folder: &Path) -> Result<()> {
    make(folder).map_err(|error| Error::process(format!("making the folder {}", folder.display())).source(error))
}

fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    sync_folder(folder_of(folder), Durability::Synced)
}

/// Removes unfinished files of earlier runs, and returns their number. Files of a run that is still going are kept, and
/// so are files that cannot be removed: they do no harm.
pub fn sweep(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let is_stale = |entry: &fs::DirEntry| {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let is_old = || entry.metadata().is_ok_and(|m| m.is_file() && m.modified().is_ok_and(is_old));
        ours && is_old() && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
    };
    entries.flatten().filter(is_stale).filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
}

fn is_old(time: SystemTime) -> bool {
    // An error means that the time is in the future.
    time.elapsed().is_ok_and(|age| age > STALE)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new file that is removed unless it is persisted, with the usual permissions of new files (tempfile's own default
/// denies access to other users).
fn unfinished(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // reduced by the umask
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::{Durability::*, *};

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
            write(&path, bytes, Synced).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(names(folder.path()), ["a.png"]);
        }
        let error = write(&folder.path().join("missing/a.png"), b"x", Synced).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("missing/a.png"), "{error}");
    }

    #[test]
    fn a_failed_rename_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x", Synced).is_err());
        assert_eq!(names(folder.path()), ["a.png"]);
    }

    #[test]
    fn a_file_is_created_once_and_never_in_place_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let count = 8;
        let won: Vec<bool> = std::thread::scope(|scope| {
            let create = |i: u8| create(&path, &vec![i; 100_000], Buffered).unwrap();
            let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || create(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        let winner = won.iter().position(|won| *won).unwrap() as u8;
        assert!(fs::read(&path).unwrap() == vec![winner; 100_000]);
        for taken in ["folder", "link"] {
            let taken = folder.path().join(taken);
            if taken.ends_with("folder") {
                fs::create_dir(&taken).unwrap();
            } else {
                #[cfg(unix)]
                std::os::unix::fs::symlink("nowhere", &taken).unwrap();
                #[cfg(not(unix))]
                continue;
            }
            assert!(!create(&taken, b"x", Synced).unwrap(), "{}", taken.display());
        }
        assert_eq!(names(folder.path()).iter().filter(|name| name.starts_with('.')).count(), 0);
    }

    /// FIFOs, devices and links are not replaced; their readers get the data.
    #[cfg(unix)]
    #[test]
    fn a_file_that_is_not_regular_is_written_into_and_not_replaced() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);

        let fifo = path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let error = write(&fifo, b"x", Synced).unwrap_err();
        assert!(error.to_string().contains("fifo"), "nobody reads it: {error}");
        let large = vec![7; 300_000]; // more than a pipe holds
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        // The reader opens it as soon as it can.
        while write(&fifo, &large, Synced).is_err() {
            std::thread::yield_now();
        }
        // This is checked first, because otherwise the reader would wait for ever.
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
        assert!(reader.join().unwrap() == large);

        // A link to a device: the data is discarded, and the link still exists.
        symlink("/dev/null", path("null")).unwrap();
        write(&path("null"), b"x", Synced).unwrap();
        assert!(fs::metadata(path("null")).unwrap().file_type().is_char_device());
        if Path::new("/dev/full").exists() {
            symlink("/dev/full", path("full")).unwrap();
            assert!(write(&path("full"), b"x", Synced).is_err());
        }

        // A link to a file in another folder: the file is replaced, or created.
        fs::create_dir(path("other")).unwrap();
        fs::write(path("other/file"), "before").unwrap();
        for (link, target) in [("to-file", "other/file"), ("to-nothing", "other/new")] {
            symlink(target, path(link)).unwrap();
            write(&path(link), b"after", Synced).unwrap();
            assert!(fs::symlink_metadata(path(link)).unwrap().is_symlink(), "{link}");
            assert_eq!(fs::read(path(target)).unwrap(), b"after", "{link}");
        }
        assert_eq!(names(&path("other")), ["file", "new"]);

        let socket = path("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(write(&socket, b"x", Synced).is_err());
        assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    }

    #[test]
    fn an_unfinished_file_that_somebody_still_writes_is_not_swept() {
        let folder = tempfile::tempdir().unwrap();
        let file = aside(folder.path(), b"x", Buffered).unwrap();
        file.as_file().set_modified(SystemTime::now() - 2 * STALE).unwrap();
        assert_eq!(sweep(folder.path()), 0);
        let (_, left) = file.keep().unwrap(); // as after a killed process
        assert_eq!((sweep(folder.path()), left.exists()), (1, false));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write(&ours, b"x", Buffered).unwrap();
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
