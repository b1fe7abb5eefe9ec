//! The identity of a model: the SHA-256 of its files, each of which is read once and then stored in a cache.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    fs,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{files::ModelFiles, tensor_file::TensorFile};
use crate::{
    backend::{cpu::all_cores::HASHING, rates::cache_folder},
    error::{Error, Result},
    input, output,
};

/// The size in bytes below which files are read again rather than cached.
const REMEMBERED_FROM: u64 = 1 << 20;
/// A file that was changed so recently may change again without another time: file systems have resolutions of up to
/// two seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// Ten hexadecimal digits that identify the contents of these files: the beginning of the SHA-256 of a single file, as
/// web UIs show it; for several files, of the list that `sha256sum` prints for them.
///
/// Files of a megabyte and more are read once: their hashes are stored in `sdshard/hashes.json` in the user's cache
/// folder, by path, size, inode and times. A blob in the hub's cache that is named by its SHA-256 is not read at all.
///
/// # Errors
/// If a file cannot be read, or changes while it is read.
pub fn identity(files: &ModelFiles, paths: &[String]) -> Result<String> {
    let cache = cache_folder().map(|folder| folder.join("hashes.json"));
    identity_with(files, paths, cache.as_deref())
}

/// The SHA-256 of a file in hexadecimal digits, from the cache if it is there.
///
/// # Errors
/// If the file cannot be read.
pub fn file_hash(place: &Path) -> Result<String> {
    let cache = cache_folder().map(|folder| folder.join("hashes.json"));
    let hash = of_files(&[place], cache.as_deref())?.pop().expect("a hash for the file");
    hash.map_err(|error| not_hashed(place.display(), error))
}

/// The hash of a LoRA that web UIs show, "AutoV3" of Civitai: the SHA-256 of what follows the header of a safetensors
/// file, which programs may add remarks to; or the one that the header says, as kohya's scripts do.
///
/// # Errors
/// If the file cannot be read or is no safetensors file.
pub fn content_hash(place: &Path) -> Result<String> {
    let file = TensorFile::open(place)?;
    let is_hash = |text: &&str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(said) = file.metadata("sshs_model_hash").filter(is_hash) {
        return Ok(said.to_ascii_lowercase());
    }
    let read = || {
        let mut file = input::open(place)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        file.seek_relative(i64::try_from(u64::from_le_bytes(length)).map_err(io::Error::other)?)?;
        of_reader(&mut file)
    };
    read().map_err(|error| not_hashed(place.display(), error))
}

/// The hash of web UIs before 2023, which their names of ControlNets still have, "AutoV1" of Civitai: eight digits of
/// the SHA-256 of 64 KiB of a file, from its second megabyte on.
///
/// # Errors
/// If the file cannot be read.
pub fn old_hash(place: &Path) -> Result<String> {
    let read = || {
        let mut file = input::open(place)?;
        file.seek_relative(1 << 20)?;
        of_reader(&mut file.take(1 << 16))
    };
    read().map(|hash| hash[..8].to_owned()).map_err(|error| not_hashed(place.display(), error))
}

fn not_hashed(place: impl Display, error: io::Error) -> Error {
    Error::input(format!("{place}: its content cannot be hashed")).source(error)
}

fn identity_with(files: &ModelFiles, paths: &[String], cache: Option<&Path>) -> Result<String> {
    let places: Vec<Option<PathBuf>> = paths.iter().map(|path| files.location(path)).collect();
    let mut hashes = of_files(&places.iter().flatten().map(PathBuf::as_path).collect::<Vec<_>>(), cache)?.into_iter();
    let mut list = String::new();
    let mut whole = String::new();
    for (path, place) in paths.iter().zip(&places) {
        whole = match place.as_ref().and_then(|_| hashes.next()) {
            Some(hash) => hash.map_err(|error| not_hashed(files.path_of(path), error))?,
            // The file is compiled into the program, or was made by it.
            None => hex(Sha256::new_with_prefix(files.open(path)?.in_memory().unwrap_or_default())),
        };
        writeln!(list, "{whole}  {path}").expect("writing to a String cannot fail");
    }
    if paths.len() != 1 {
        whole = hex(Sha256::new_with_prefix(list));
    }
    whole.truncate(10);
    Ok(whole)
}

/// The hexadecimal digits of a finished hash.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first ten digits of the SHA-256 of a text.
pub fn digits(text: &str) -> String {
    let mut hash = hex(Sha256::new_with_prefix(text));
    hash.truncate(10);
    hash
}

/// An entry of the cache.
#[derive(Clone, Serialize, Deserialize)]
struct Known {
    /// Size, inode and times, in an undocumented form.
    stamp: String,
    sha256: String,
}

/// Locked during a call, so that no two calls read the same file or lose each other's entries.
static TURN: Mutex<()> = Mutex::new(());

/// The SHA-256 of each file in hexadecimal digits; several files are read at once, on all cores.
fn of_files(places: &[&Path], cache: Option<&Path>) -> Result<Vec<io::Result<String>>> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = cache.map(read).unwrap_or_default();
    let hashed: Vec<_> = HASHING.run(|| Ok(places.par_iter().map(|place| of_file(place, &known)).collect()))?;
    let new = |hashed: &io::Result<Hashed>| hashed.as_ref().ok().and_then(|hashed| hashed.new.clone());
    let new: Vec<(String, Known)> = hashed.iter().filter_map(new).collect();
    if let (Some(cache), false) = (cache, new.is_empty()) {
        // Another process may have changed the cache meanwhile.
        let mut known = read(cache);
        known.retain(|path, _| Path::new(path).exists());
        known.extend(new);
        let text = serde_json::to_vec_pretty(&known).expect("texts become JSON");
        if let Err(error) = output::write_cache(cache, &text) {
            tracing::debug!("{} cannot be written: {error}", cache.display());
        }
    }
    Ok(hashed.into_iter().map(|hashed| hashed.map(|hashed| hashed.sha256)).collect())
}

/// The hash of a file, and what the cache will have of it, by its path.
struct Hashed {
    sha256: String,
    new: Option<(String, Known)>,
}

fn of_file(place: &Path, known: &BTreeMap<String, Known>) -> io::Result<Hashed> {
    let old = |sha256| Ok(Hashed { sha256, new: None });
    let place = fs::canonicalize(place)?;
    if let Some(hash) = hash_in_name(&place) {
        return old(hash);
    }
    let before = fs::metadata(&place)?;
    if !before.is_file() {
        return Err(io::Error::other("this is not a regular file"));
    }
    let (key, stamp) = (place.to_string_lossy().into_owned(), stamp(&before)?);
    let is_remembered = before.len() >= REMEMBERED_FROM;
    if let Some(known) = known.get(&key).filter(|known| is_remembered && known.stamp == stamp) {
        return old(known.sha256.clone());
    }
    let sha256 = of_reader(&mut input::open(&place)?)?;
    let after = fs::metadata(&place)?;
    if self::stamp(&after)? != stamp {
        return Err(io::Error::other("the file was changed while it was read"));
    }
    let is_new = is_remembered && is_settled(&after);
    Ok(Hashed { new: is_new.then(|| (key, Known { stamp, sha256: sha256.clone() })), sha256 })
}

/// The SHA-256 of all that a reader has left.
fn of_reader(reader: &mut impl Read) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(hash)),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The hub's cache names large files by their SHA-256: `models--org--name/blobs/<64 digits>`.
fn hash_in_name(place: &Path) -> Option<String> {
    let name = place.file_name()?.to_str()?;
    let is_hash = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let folder = place.parent()?;
    let repo = folder.parent()?.file_name()?.to_str()?;
    (is_hash && folder.ends_with("blobs") && repo.starts_with("models--")).then(|| name.to_owned())
}

/// A text that changes whenever the file does.
fn stamp(metadata: &fs::Metadata) -> io::Result<String> {
    let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (inode, changed) = (metadata.ino(), (metadata.ctime(), metadata.ctime_nsec()));
        Ok(format!("{} {} {inode} {modified} {}.{}", metadata.len(), metadata.dev(), changed.0, changed.1))
    }
    #[cfg(not(unix))]
    Ok(format!("{} {modified}", metadata.len()))
}

/// Whether the next change of a file certainly gives it another time.
fn is_settled(metadata: &fs::Metadata) -> bool {
    #[cfg(unix)]
    let changed = {
        let seconds = std::os::unix::fs::MetadataExt::ctime(metadata);
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    #[cfg(not(unix))]
    let changed = SystemTime::UNIX_EPOCH;
    let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > SETTLED);
    is_old(changed) && metadata.modified().is_ok_and(is_old)
}

/// The entries of the cache; none if it does not exist or is invalid.
fn read(cache: &Path) -> BTreeMap<String, Known> {
    let text = crate::input::read(cache).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::files::{EmbeddedFile, MODEL_INDEX};

    /// A model's folder with one large file, as old as it can be made, and a cache beside it.
    fn model(bytes: &[u8]) -> (tempfile::TempDir, ModelFiles, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MODEL_INDEX), "{}").unwrap();
        fs::write(folder.path().join("weights"), bytes).unwrap();
        let (files, cache) = (ModelFiles::folder(folder.path()).unwrap(), folder.path().join("cache/hashes.json"));
        (folder, files, cache)
    }

    fn paths(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_file_has_the_digits_that_web_uis_show() {
        let list: &[EmbeddedFile] = &[("a", b"abc"), ("b", b"")];
        let files = ModelFiles::embedded("m", list);
        assert_eq!(identity(&files, &paths(&["a"])).unwrap(), "ba7816bf8f"); // FIPS 180-2, appendix B.1
        assert_eq!(identity(&files, &paths(&["b"])).unwrap(), "e3b0c44298");
        // printf abc >a; : >b; sha256sum a b | sha256sum
        assert_eq!(identity(&files, &paths(&["a", "b"])).unwrap(), "09c7e0b8a0");
    }

    /// `sha256sum` of the parts.
    #[test]
    fn other_files_have_the_hashes_that_web_uis_show() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let (header, values) = (br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, [0, 0, 128, 63]);
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &values].concat();
        fs::write(&path, bytes).unwrap();
        assert_eq!(content_hash(&path).unwrap(), hex(Sha256::new_with_prefix(values)));
        let said = "A1".repeat(32);
        let header = format!(r#"{{"__metadata__":{{"sshs_model_hash":"{said}"}}}}"#);
        fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
        assert_eq!(content_hash(&path).unwrap(), said.to_lowercase());
        let bytes: Vec<u8> = (0..(1 << 20) + (1 << 16) + 5).map(|i: u32| (i % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        assert_eq!(old_hash(&path).unwrap(), hex(Sha256::new_with_prefix(&bytes[1 << 20..][..1 << 16]))[..8]);
        fs::write(&path, "short").unwrap();
        assert_eq!(old_hash(&path).unwrap(), "e3b0c442", "of nothing");
        assert!(content_hash(&path).is_err());
    }

    #[test]
    fn a_folder_and_embedded_files_of_equal_content_are_the_same_model() {
        let (_folder, files, cache) = model(b"abc");
        let embedded = ModelFiles::embedded("m", &[(MODEL_INDEX, b"{}"), ("weights", b"abc")]);
        let both = paths(&[MODEL_INDEX, "weights"]);
        assert_eq!(identity_with(&files, &both, Some(&cache)).unwrap(), identity(&embedded, &both).unwrap());
        assert!(!cache.exists(), "small files are not remembered");
        let error = identity_with(&files, &paths(&["absent"]), None).unwrap_err().to_string();
        assert!(error.contains("absent: its content cannot be hashed"), "{error}");
    }

    #[test]
    fn new_weights_of_the_same_size_and_time_are_another_model() {
        let (folder, files, cache) = model(&vec![1; REMEMBERED_FROM as usize]);
        let (weights, names) = (folder.path().join("weights"), paths(&["weights"]));
        let identity = || identity_with(&files, &names, Some(&cache)).unwrap();
        let first = identity();
        let modified = fs::metadata(&weights).unwrap().modified().unwrap();
        let mut bytes = vec![1; REMEMBERED_FROM as usize];
        bytes[REMEMBERED_FROM as usize - 1] = 2;
        fs::write(&weights, bytes).unwrap();
        fs::File::options().write(true).open(&weights).unwrap().set_modified(modified).unwrap();
        assert_ne!(identity(), first);
    }

    #[test]
    fn a_large_file_is_read_once_and_again_when_it_changes() {
        let (folder, files, cache) = model(&vec![1; REMEMBERED_FROM as usize]);
        let (weights, names) = (folder.path().join("weights"), paths(&["weights"]));
        let identity = || identity_with(&files, &names, Some(&cache)).unwrap();
        let read_in_full = identity();
        // An entry of the cache is used as long as its stamp is the file's.
        let remember = |stamp: String| {
            let key = fs::canonicalize(&weights).unwrap().to_string_lossy().into_owned();
            let known = BTreeMap::from([(key, Known { stamp, sha256: "f".repeat(64) })]);
            output::write_cache(&cache, &serde_json::to_vec(&known).unwrap()).unwrap();
        };
        remember(stamp(&fs::metadata(&weights).unwrap()).unwrap());
        assert_eq!(identity(), "ffffffffff");
        remember("another".into());
        assert_eq!(identity(), read_in_full);
        for broken in ["", "{", "[]", r#"{"a": 1}"#] {
            fs::write(&cache, broken).unwrap();
            assert_eq!(identity(), read_in_full, "{broken}");
        }
        // If the cache cannot be written, the file is read again.
        fs::remove_file(&cache).unwrap();
        fs::create_dir(&cache).unwrap();
        assert_eq!(identity(), read_in_full);
    }

    #[test]
    fn what_was_changed_long_ago_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("hashes.json");
        // The test program was built more than a few seconds ago.
        let place = std::env::current_exe().unwrap();
        let hash = of_files(&[&place], Some(&cache)).unwrap().remove(0).unwrap();
        if is_settled(&fs::metadata(&place).unwrap()) {
            assert_eq!(read(&cache).into_values().next().unwrap().sha256, hash);
        }
        let fresh = folder.path().join("fresh");
        fs::write(&fresh, vec![0; REMEMBERED_FROM as usize]).unwrap();
        of_files(&[&fresh], Some(&cache)).unwrap().remove(0).unwrap();
        assert!(!read(&cache).keys().any(|path| path.ends_with("fresh")), "it may change again within the same tick");
    }

    #[test]
    fn a_blob_of_the_hub_is_known_by_its_name() {
        let hash = "0123456789abcdef".repeat(4);
        let path = |repo: &str, folder: &str, name: &str| Path::new("/c").join(repo).join(folder).join(name);
        assert_eq!(hash_in_name(&path("models--a--b", "blobs", &hash)), Some(hash.clone()));
        for other in [
            path("models--a--b", "blobs", &hash[..40]),
            path("models--a--b", "blobs", &hash.to_uppercase()),
            path("models--a--b", "snapshots", &hash),
            path("mine", "blobs", &hash),
        ] {
            assert_eq!(hash_in_name(&other), None, "{}", other.display());
        }
    }
}
