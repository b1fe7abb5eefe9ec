//! Opens all files that other programs or people wrote. A pipe, socket, device or folder in place of a file is an error
//! at once, because reading it might never end.

use std::{
    fs::{File, FileType, OpenOptions},
    io::{Error, ErrorKind, Read, Result},
    path::Path,
};

/// The largest file that is read as a whole, in bytes. Configs, vocabularies and prompts have at most some 5 MB.
pub const LONGEST: u64 = 64 << 20;

/// Opens a regular file, or a link to one.
///
/// # Errors
/// If it cannot be opened or is not a regular file.
pub fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Without this flag, opening a pipe would wait for a writer.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(unsuitable(kind)) }
}

/// Opens a file that the user named as an argument, which may be a pipe, as in `<(command)`, or `/dev/stdin`.
fn open_or_pipe(path: &Path) -> Result<File> {
    let file = File::open(path)?;
    let kind = file.metadata()?.file_type();
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
            return Ok(file);
        }
    }
    if kind.is_file() { Ok(file) } else { Err(unsuitable(kind)) }
}

fn unsuitable(kind: FileType) -> Error {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let what = match kind {
            kind if kind.is_dir() => "a folder",
            kind if kind.is_fifo() => "a pipe",
            kind if kind.is_socket() => "a socket",
            _ => "a device",
        };
        Error::new(ErrorKind::InvalidInput, format!("this is {what}; a regular file is needed"))
    }
    #[cfg(not(unix))]
    {
        let _ = kind;
        Error::new(ErrorKind::InvalidInput, "this is not a regular file")
    }
}

/// Reads all of a regular file.
///
/// # Errors
/// As [`open`], and if it has more than [`LONGEST`] bytes.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    whole(open(path)?)
}

/// Reads all of a regular file as text.
///
/// # Errors
/// As [`read`], and if it is not UTF-8.
pub fn text(path: &Path) -> Result<String> {
    utf8(read(path)?)
}

/// Reads all of a file as text, which may be a pipe, because the user named it.
///
/// # Errors
/// As [`text`].
pub fn text_or_pipe(path: &Path) -> Result<String> {
    utf8(whole(open_or_pipe(path)?)?)
}

/// Reads all of stdin as text.
///
/// # Errors
/// As [`text`].
pub fn text_of_stdin() -> Result<String> {
    utf8(whole(std::io::stdin().lock())?)
}

fn whole(from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One more byte is read, to detect files that are too long.
    from.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {LONGEST} bytes")));
    }
    Ok(bytes)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| Error::new(ErrorKind::InvalidData, format!("this is not UTF-8 text: {}", error.utf8_error())))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_nothing_else_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::fs::write(path("file"), "text").unwrap();
        for name in ["pipe", "file"] {
            std::os::unix::fs::symlink(path(name), path(&format!("link to {name}"))).unwrap();
        }
        assert_eq!(text(&path("file")).unwrap(), "text");
        assert_eq!(text(&path("link to file")).unwrap(), "text");
        for (name, words) in [("pipe", "a pipe"), ("link to pipe", "a pipe"), ("", "a folder")] {
            let error = text(&path(name)).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
        assert!(text(Path::new("/dev/zero")).unwrap_err().to_string().contains("a device"));
        // A socket cannot even be opened.
        assert!(text(&path("socket")).is_err());
        assert!(text_or_pipe(folder.path()).unwrap_err().to_string().contains("a folder"));
    }

    #[test]
    fn files_without_end_are_not_read_to_it() {
        let error = text_or_pipe(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }

    #[test]
    fn a_pipe_that_the_user_named_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::write(pipe, "a dog\n")
        });
        assert_eq!(text_or_pipe(&pipe).unwrap(), "a dog\n");
        writer.join().unwrap().unwrap();
    }
}
