//! Downloads one file of a model from the hub into the cache: complete and checked, or not at all.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use ureq::{
    Body,
    http::{Method, Response, StatusCode, header},
};

use super::{
    cache::{self, Repo},
    request::{self, Client, Failure, refused, shown},
    settings::Hub,
};
use crate::{
    error::{Error, Result},
    weights::{download::Download, files::LONGEST_TEXT},
};

/// The largest number of tries of one request or file without progress.
const TRIES: u32 = 5;
/// A try that advanced by this many bytes is not counted.
const PROGRESS: u64 = 1 << 20;
/// The least number of bytes that a server must send within three times its timeout.
const LEAST: u64 = 1 << 10;
/// The interval at which a waiting thread checks for changes.
const GLANCE: Duration = Duration::from_millis(50);
/// The largest list of a model's files, in bytes.
const LONGEST_LIST: u64 = 16 << 20;
const CHUNK: usize = 256 << 10;

/// The connection between a thread that downloads and the thread that waits for it.
pub(super) struct Line {
    pub(super) news: Sender<Download>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Line {
    fn send(&self, news: Download) {
        // A caller that has stopped the download no longer receives events.
        let _ = self.news.send(news);
    }

    fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
    }

    fn wait(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.check()?;
            thread::sleep(left.min(GLANCE));
        }
        self.check()
    }
}

/// The number of tries that are left, and the furthest position that one of them reached.
struct Tries {
    left: u32,
    reached: u64,
}

impl Tries {
    fn new(reached: u64) -> Self {
        Self { left: TRIES, reached }
    }

    /// Waits before another try; fails if there were too many.
    fn wait_for_retry(&mut self, line: &Line, timeout: Duration, reached: u64, what: &str, why: String) -> Result<()> {
        if reached >= self.reached + PROGRESS {
            *self = Self::new(reached);
        }
        self.left -= 1;
        if self.left == 0 {
            return Err(Error::input(format!("{what} failed {TRIES} times")).found(why).hint(
                "is the network there? HF_HUB_OFFLINE=1 uses what the cache has; a folder as the model needs neither",
            ));
        }
        line.send(Download::Retry { what: what.to_owned(), why });
        line.wait(timeout / 20 * (1 << (TRIES - 1 - self.left)))
    }
}

/// A model on the hub, at one commit, or before its commit is known.
pub(super) struct Session<'a> {
    pub(super) hub: &'a Hub,
    pub(super) client: Client,
    pub(super) repo: &'a Repo,
    pub(super) id: &'a str,
    pub(super) line: &'a Line,
}

/// The hub's facts about a file, which are requested before the download.
struct Remote {
    blob: String,
    bytes: Option<u64>,
}

impl Remote {
    /// The contents' SHA-256 as lower-case hexadecimal digits: the ETag of every large file of the hub.
    fn sha256(&self) -> Option<&str> {
        (self.blob.len() == 64 && cache::is_commit(&self.blob)).then_some(&self.blob)
    }
}

impl Session<'_> {
    /// The reply to `/api/models/...`; `None` if the hub has no such model or revision.
    pub(super) fn list(&self, revision: &str) -> Result<Option<Vec<u8>>> {
        let revision = percent_encoding::utf8_percent_encode(revision, percent_encoding::NON_ALPHANUMERIC);
        let url = format!("{}/api/models/{}/revision/{revision}", self.hub.endpoint, self.id);
        let attempt = || {
            let reply = self.client.send(Method::GET, &url, 0, |_| false)?;
            request::check_status(&reply)?;
            let mut body = Vec::new();
            self.read(reply, |bytes| {
                body.extend_from_slice(bytes);
                match body.len() as u64 > LONGEST_LIST {
                    true => Err(refused("the list of the model's files does not end").into()),
                    false => Ok(()),
                }
            })?;
            Ok(body)
        };
        match self.retry("asking for the list of its files", attempt) {
            Ok(body) => Ok(Some(body)),
            Err(Failure::Absent) => Ok(None),
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::Again(why)) => Err(Error::input(why)),
        }
    }

    /// Downloads the file at `path` of a commit into the cache.
    pub(super) fn fetch(&self, commit: &str, path: &str) -> Result<()> {
        self.fetch_file(commit, path).map_err(|error| match error.scope() {
            crate::error::ErrorScope::Interrupted => error,
            _ => error.context(path),
        })
    }

    fn fetch_file(&self, commit: &str, path: &str) -> Result<()> {
        let encoded = percent_encoding::utf8_percent_encode(path, PATH);
        let url = format!("{}/{}/resolve/{commit}/{encoded}", self.hub.endpoint, self.id);
        let remote = match self.retry("asking for its size", || self.request_remote(&url, commit)) {
            Ok(remote) => remote,
            Err(Failure::Absent) => return Err(refused("the hub lists this file and does not have it")),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Again(why)) => return Err(Error::input(why)),
        };
        let longest = if path.ends_with(".safetensors") { u64::MAX } else { LONGEST_TEXT };
        if let Some(bytes) = remote.bytes.filter(|bytes| *bytes > longest) {
            return Err(Error::input("too long for a text file of a model").found(format!("{bytes} bytes")));
        }
        let blob = self.repo.blob(&remote.blob);
        let locked = self.lock(&remote.blob, path)?;
        let is_whole = |length: u64| remote.bytes.is_none_or(|bytes| bytes == length);
        if !fs::metadata(&blob).is_ok_and(|file| file.is_file() && is_whole(file.len())) {
            self.line.send(Download::File { path: path.to_owned(), bytes: remote.bytes });
            let mut partial = Partial::open(&blob, &remote, locked.is_some())?;
            self.transfer(&mut partial, &remote, &url, longest)?;
            partial.keep(&blob)?;
            self.line.send(Download::Complete);
        }
        drop(locked);
        self.repo.link(commit, path, &remote.blob)
    }

    /// Requests the size and ETag of a file. If the hub redirects to storage, both are in special headers of the hub's
    /// own reply.
    fn request_remote(&self, url: &str, commit: &str) -> Result<Remote, Failure> {
        let reply = self.client.send(Method::HEAD, url, 0, |reply| reply.headers().contains_key("x-linked-etag"))?;
        let is_linked = reply.headers().contains_key("x-linked-etag");
        if !is_linked {
            request::check_status(&reply)?;
        }
        let text = |name: &str| reply.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        if let Some(other) = text("x-repo-commit").filter(|other| other.trim() != commit) {
            return Err(refused("the hub answers with a file of another commit").found(shown(&other)).into());
        }
        let etag = text(if is_linked { "x-linked-etag" } else { "etag" });
        let etag = etag.ok_or_else(|| refused("the hub gives the file no ETag"))?;
        let blob = cache::blob_name(etag.trim()).ok_or_else(|| {
            refused("the hub gives the file an ETag that is neither a hash nor a file name").found(shown(&etag))
        })?;
        let bytes = request::number(&reply, if is_linked { "x-linked-size" } else { "content-length" });
        Ok(Remote { blob: blob.to_owned(), bytes })
    }

    /// Repeats a request until it succeeds or fails for good.
    fn retry<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut tries = Tries::new(0);
        loop {
            self.line.check()?;
            match attempt() {
                Err(Failure::Again(why)) => tries.wait_for_retry(self.line, self.hub.timeout, 0, what, why)?,
                end => return end,
            }
        }
    }

    /// Waits until no other process downloads the same blob. `None` if the file system has no locks.
    fn lock(&self, blob: &str, path: &str) -> Result<Option<File>> {
        let name = self.repo.lock_file(blob);
        let open = || {
            fs::create_dir_all(name.parent().expect("locks are in a folder"))?;
            OpenOptions::new().create(true).write(true).truncate(false).open(&name)
        };
        let file = open().map_err(|error| cache::cannot_write(&name, error))?;
        let mut is_said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if is_said => {}
                Err(TryLockError::WouldBlock) => self.line.send(Download::Waiting { path: path.to_owned() }),
            }
            is_said = true;
            self.line.wait(GLANCE)?;
        }
    }

    /// Downloads the rest of the partial file, with as many tries as are allowed.
    fn transfer(&self, partial: &mut Partial, remote: &Remote, url: &str, longest: u64) -> Result<()> {
        let mut tries = Tries::new(partial.length);
        loop {
            self.line.check()?;
            let why = match self.transfer_once(partial, remote, url, longest) {
                Ok(()) => return Ok(()),
                Err(Failure::Again(why)) => why,
                Err(Failure::Absent) => return Err(refused("the hub lists this file and does not have it")),
                Err(Failure::Final(error)) => return Err(error),
            };
            tries.wait_for_retry(self.line, self.hub.timeout, partial.length, "downloading it", why)?;
        }
    }

    fn transfer_once(&self, partial: &mut Partial, remote: &Remote, url: &str, longest: u64) -> Result<(), Failure> {
        if remote.bytes.is_some_and(|bytes| partial.length > bytes) {
            partial.restart()?;
        }
        // A complete or empty file needs no request, only the check.
        if remote.bytes != Some(partial.length) {
            let reply = self.client.send(Method::GET, url, partial.length, |_| false)?;
            let wanted = self.check_reply(partial, remote, &reply)?;
            let most = wanted.unwrap_or(longest);
            self.line.send(Download::Bytes(partial.length));
            self.read(reply, |bytes| {
                if partial.length + bytes.len() as u64 > most {
                    partial.restart()?;
                    return Err(Failure::Again(format!("more than the {most} bytes that it should have")));
                }
                partial.write(bytes)?;
                self.line.send(Download::Bytes(partial.length));
                Ok(())
            })?;
            if let Some(wanted) = wanted.filter(|wanted| *wanted != partial.length) {
                return Err(Failure::Again(format!("it ended after {} of {wanted} bytes", partial.length)));
            }
        }
        let hash = partial.sha256();
        match remote.sha256() {
            Some(wanted) if wanted != hash => {
                partial.restart()?;
                Err(Failure::Again("its SHA-256 is not the one that the hub names".into()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the reply continues the partial file or starts it anew, and the size of the whole file in bytes.
    fn check_reply(
        &self,
        partial: &mut Partial,
        remote: &Remote,
        reply: &Response<Body>,
    ) -> Result<Option<u64>, Failure> {
        let status = reply.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            partial.restart()?;
            return Err(Failure::Again("the server has no such part of the file".into()));
        }
        request::check_status(reply)?;
        let text = |name: header::HeaderName| reply.headers().get(name).map(|text| text.to_str().unwrap_or("?"));
        if let Some(coding) = text(header::CONTENT_ENCODING).filter(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return Err(refused("the server sends the file in a coding that was not requested")
                .found(shown(coding))
                .into());
        }
        let mut wanted = remote.bytes;
        if status == StatusCode::PARTIAL_CONTENT {
            let range = text(header::CONTENT_RANGE).and_then(content_range);
            match range {
                Some((first, total)) if first == partial.length && same(wanted, total) => wanted = wanted.or(total),
                _ => {
                    partial.restart()?;
                    return Err(Failure::Again("the server sends another part of the file than requested".into()));
                }
            }
        } else if partial.length > 0 {
            partial.restart()?;
        }
        let is_chunked =
            text(header::TRANSFER_ENCODING).is_some_and(|text| text.to_ascii_lowercase().contains("chunked"));
        let length =
            reply.body().content_length().filter(|_| !is_chunked).map(|length| partial.length.saturating_add(length));
        match (wanted, length) {
            (Some(wanted), Some(length)) if wanted != length => {
                partial.restart()?;
                Err(Failure::Again(format!("the server sends {length} bytes of {wanted}")))
            }
            // A truncated file could not be distinguished from a complete one.
            (None, None) if !is_chunked => Err(refused("the server does not say how long the file is").into()),
            _ => Ok(wanted.or(length)),
        }
    }

    /// Reads a body to its end, in pieces.
    fn read(&self, reply: Response<Body>, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut body = reply.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; CHUNK];
        let slow = 3 * self.hub.timeout;
        let (mut since, mut bytes) = (Instant::now(), 0);
        loop {
            self.line.check()?;
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Again(error.to_string())),
            };
            take(&buffer[..count])?;
            bytes += count as u64;
            if since.elapsed() > slow {
                if bytes < LEAST {
                    let seconds = slow.as_secs_f64();
                    return Err(Failure::Again(format!("the server sent {bytes} bytes in {seconds} s")));
                }
                (since, bytes) = (Instant::now(), 0);
            }
        }
    }
}

/// The characters that are not encoded in the path of an address.
const PATH: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-');

/// Whether two sizes are equal, or one is not known.
fn same(a: Option<u64>, b: Option<u64>) -> bool {
    a.is_none() || b.is_none() || a == b
}

/// The first byte and the total size in `bytes 5-9/10` or `bytes 5-9/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

/// A partially downloaded file, and the hash of its contents.
struct Partial {
    file: File,
    path: PathBuf,
    length: u64,
    hash: Sha256,
    /// Whether only this process knows the file's name, so that nothing can use the file after a failure.
    is_private: bool,
}

impl Partial {
    /// The file of an earlier try, if a hash will verify it; otherwise an empty file.
    fn open(blob: &Path, remote: &Remote, is_locked: bool) -> Result<Self> {
        let name = match is_locked {
            true => format!("{}.incomplete", remote.blob),
            false => format!("{}.{}.incomplete", remote.blob, std::process::id()),
        };
        let path = blob.with_file_name(name);
        let open = || {
            fs::create_dir_all(path.parent().expect("blobs are in a folder"))?;
            let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path)?;
            let mut partial = Self { file, path: path.clone(), length: 0, hash: Sha256::new(), is_private: !is_locked };
            if is_locked && remote.sha256().is_some() {
                let mut buffer = vec![0; CHUNK];
                while let count @ 1.. = partial.file.read(&mut buffer)? {
                    partial.hash.update(&buffer[..count]);
                    partial.length += count as u64;
                }
            } else {
                partial.file.set_len(0)?;
            }
            Ok(partial)
        };
        open().map_err(|error| cache::cannot_write(&path, error))
    }

    fn restart(&mut self) -> Result<()> {
        let empty = |file: &mut File| file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
        empty(&mut self.file).map_err(|error| cache::cannot_write(&self.path, error))?;
        (self.length, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| cache::cannot_write(&self.path, error))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn sha256(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Renames a complete and verified file to its final name.
    fn keep(mut self, blob: &Path) -> Result<()> {
        self.is_private = false;
        let moved = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        moved.map_err(|error| cache::cannot_write(blob, error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_private {
            // The result does not matter: the next run starts with another file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_exact() {
        for (text, wanted) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-9/*", Some((0, None))),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-9", None),
            ("5-9/10", None),
            ("bytes -5-9/10", None),
            ("bytes 5-99999999999999999999/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), wanted, "{text}");
        }
    }
}
