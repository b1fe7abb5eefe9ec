//! How fast a device is, as plans see it: measured once on each machine, then remembered in a file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Deserialize;

use crate::output;

/// Operations and bytes per second. Predictions take the larger of an op's two times, so both are what long ops reach.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Rates {
    /// Floating-point operations of matrix products per second, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes per second between its memory and its cores.
    pub bandwidth: f64,
    /// Bytes per second between it and the host.
    pub link: f64,
}

impl Rates {
    /// How long an op of `flops` operations that moves `bytes` takes, in seconds: the longer of the two, as both go on at
    /// the same time. Williams et al. 2009.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bandwidth)
    }

    /// A part of a device that is divided; the way to the host is not.
    #[must_use]
    pub fn part(&self, share: f64) -> Self {
        Self { flops: self.flops * share, bandwidth: self.bandwidth * share, link: self.link }
    }

    /// Two digits of each: a measurement has no more.
    fn rounded(self) -> Self {
        let round = |rate: f64| format!("{rate:.1e}").parse().expect("a float is written as a float");
        Self { flops: round(self.flops), bandwidth: round(self.bandwidth), link: round(self.link) }
    }

    fn is_usable(&self) -> bool {
        [self.flops, self.bandwidth, self.link].iter().all(|rate| rate.is_finite() && *rate > 0.0)
    }
}

/// The rates of the device that `key` describes, down to whatever makes it faster or slower: from this machine's file,
/// else from `measure`, which the file then remembers. `None` if they cannot be measured.
///
/// The file is `sdshard/rates.toml` in `$XDG_CACHE_HOME` or `~/.cache`. One that is broken or cannot be written costs
/// another measurement and nothing else.
pub fn remembered(key: &str, measure: impl FnOnce() -> Option<Rates>) -> Option<Rates> {
    // One measures at a time, as each would slow the others down.
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    *asked.entry(key.to_string()).or_insert_with(|| remembered_in(file().as_deref(), key, measure))
}

/// What this process has asked for.
static ASKED: Mutex<BTreeMap<String, Option<Rates>>> = Mutex::new(BTreeMap::new());

/// From here on this process measures what it has not measured yet, whatever the file remembers.
pub fn measure_anew() {
    ANEW.store(true, Ordering::Relaxed);
}

static ANEW: AtomicBool = AtomicBool::new(false);

fn file() -> Option<PathBuf> {
    Some(cache_folder()?.join("rates.toml"))
}

/// Where this program keeps what it can find out again: `sdshard` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).and_then(absolute);
    let cache = cache.or_else(|| Some(std::env::home_dir().and_then(absolute)?.join(".cache")));
    Some(cache?.join("sdshard"))
}

fn remembered_in(file: Option<&Path>, key: &str, measure: impl FnOnce() -> Option<Rates>) -> Option<Rates> {
    let key = entry_name(key);
    let mut known = file.map(read).unwrap_or_default();
    if let Some(rates) = known.get(&key).filter(|_| !ANEW.load(Ordering::Relaxed)) {
        return Some(*rates);
    }
    let rates = measure()?.rounded();
    if !rates.is_usable() {
        return None;
    }
    if let Some(file) = file {
        known.insert(key, rates);
        if let Err(error) = write(file, &known) {
            tracing::debug!("{} cannot be written: {error}", file.display());
        }
    }
    Some(rates)
}

/// Kernels differ between versions, and those of a debug build are slow.
fn entry_name(key: &str) -> String {
    let build = if cfg!(debug_assertions) { ", debug build" } else { "" };
    let key = format!("{key}, sdshard {}{build}", env!("CARGO_PKG_VERSION"));
    key.replace(|c: char| !(c.is_ascii_graphic() || c == ' ') || c == '"' || c == '\\', "_")
}

/// What the file knows; nothing if it is not there or broken.
fn read(file: &Path) -> BTreeMap<String, Rates> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::debug!("{} cannot be read: {error}", file.display());
            return BTreeMap::new();
        }
    };
    let mut known: BTreeMap<String, Rates> = toml::from_str(&text).unwrap_or_else(|error| {
        tracing::debug!("{} is ignored: {error}", file.display());
        BTreeMap::new()
    });
    known.retain(|_, rates| rates.is_usable());
    known
}

fn write(file: &Path, known: &BTreeMap<String, Rates>) -> std::io::Result<()> {
    let mut text = String::from("# How fast sdshard found its devices to be. `sdshard devices` measures anew.\n");
    for (key, Rates { flops, bandwidth, link }) in known {
        text += &format!("\n[\"{key}\"]\nflops = {flops:e}\nbandwidth = {bandwidth:e}\nlink = {link:e}\n");
    }
    output::write_cache(file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { flops: 1.23456e11, bandwidth: 2e10, link: 9.87e9 };
    const ROUNDED: Rates = Rates { flops: 1.2e11, bandwidth: 2e10, link: 9.9e9 };

    fn never() -> Option<Rates> {
        panic!("it was measured before")
    }

    #[test]
    fn a_device_is_measured_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/rates.toml");
        for key in ["one \"CPU\" \\ \u{fc}, 2 cores", "one CPU, 1 cores"] {
            assert_eq!(remembered_in(Some(&file), key, || Some(RATES)), Some(ROUNDED), "{key}");
        }
        for key in ["one \"CPU\" \\ \u{fc}, 2 cores", "one CPU, 1 cores"] {
            assert_eq!(remembered_in(Some(&file), key, never), Some(ROUNDED), "{key}");
        }
        assert_eq!(read(&file).len(), 2);
        let inside: Vec<_> = std::fs::read_dir(file.parent().unwrap()).unwrap().collect();
        assert_eq!(inside.len(), 1, "nothing is left aside");
    }

    #[test]
    fn a_broken_file_is_measured_over_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rates.toml");
        let zero = format!("[\"{}\"]\nflops = 0.0\nbandwidth = 1e9\nlink = inf\n", entry_name("a"));
        for text in ["flops = ", "[a]\nflops = \"fast\"", "\u{0}", &zero] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(remembered_in(Some(&file), "a", || Some(RATES)), Some(ROUNDED), "{text}");
            assert_eq!(remembered_in(Some(&file), "a", never), Some(ROUNDED), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_costs_a_measurement() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for file in [Some(file.join("rates.toml")), None] {
            assert_eq!(remembered_in(file.as_deref(), "a", || Some(RATES)), Some(ROUNDED));
        }
        assert_eq!(remembered_in(None, "a", || None), None);
        assert_eq!(remembered_in(None, "a", || Some(Rates { link: f64::NAN, ..RATES })), None);
    }
}
