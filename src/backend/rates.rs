//! How fast a device is, as plans see it: measured once on each machine, then remembered in a file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

use crate::{input, output};

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

/// Rates, and when they were measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The best of several tries.
    pub rates: Rates,
    /// To the second; `None` if the file does not say.
    pub at: Option<SystemTime>,
}

/// The rates of the device that `key` describes, down to whatever makes it faster or slower: from this machine's file,
/// else from `measure`, which the file then remembers. `None` if they cannot be measured.
///
/// The file is `sdshard/rates.toml` in `$XDG_CACHE_HOME` or `~/.cache`. One that is broken or cannot be written costs
/// another measurement and nothing else.
pub fn remembered(key: &str, measure: impl FnMut() -> Option<Rates>) -> Option<Measured> {
    // One measures at a time, as each would slow the others down.
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    *asked.entry(key.to_string()).or_insert_with(|| remembered_in(file().as_deref(), key, measure))
}

/// The same of a device that is not worth a measurement: `None` if there has not been one.
pub fn known(key: &str) -> Option<Measured> {
    let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    asked.get(key).copied().flatten().or_else(|| file().map(|file| read(&file))?.get(&entry_name(key)).copied())
}

/// What this process has asked for.
static ASKED: Mutex<BTreeMap<String, Option<Measured>>> = Mutex::new(BTreeMap::new());

/// From here on this process measures what it has not measured yet, whatever the file remembers, and all that it sees.
pub fn measure_anew() {
    ANEW.store(true, Ordering::Relaxed);
}

/// Whether all devices are to be measured.
pub fn is_measured_anew() -> bool {
    ANEW.load(Ordering::Relaxed)
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

fn remembered_in(file: Option<&Path>, key: &str, measure: impl FnMut() -> Option<Rates>) -> Option<Measured> {
    let key = entry_name(key);
    let mut known = file.map(read).unwrap_or_default();
    if let Some(rates) = known.get(&key).filter(|_| !is_measured_anew()) {
        return Some(*rates);
    }
    let rates = best(measure)?.rounded();
    if !rates.is_usable() {
        return None;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let measured = Measured { rates, at: at(now) };
    if let Some(file) = file {
        known.insert(key, measured);
        if let Err(error) = write(file, &known) {
            tracing::debug!("{} cannot be written: {error}", file.display());
        }
    }
    Some(measured)
}

/// So many seconds after the beginning of 1970; `None` where the system's clock does not reach.
fn at(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Tries at most.
const TRIES: usize = 6;
/// By how much a try is better than those before if others were at work during these.
const BETTER: f64 = 1.05;

/// The best of several tries, each rate by itself: others may be at work on the machine. Ends once two tries in a row have
/// found nothing better.
fn best(mut measure: impl FnMut() -> Option<Rates>) -> Option<Rates> {
    let mut best = measure()?;
    let mut in_vain = 0;
    for _ in 1..TRIES {
        let Some(Rates { flops, bandwidth, link }) = measure() else { break };
        let is_better = [(flops, best.flops), (bandwidth, best.bandwidth), (link, best.link)];
        let is_better = is_better.iter().any(|(now, before)| *now > BETTER * before);
        best =
            Rates { flops: best.flops.max(flops), bandwidth: best.bandwidth.max(bandwidth), link: best.link.max(link) };
        in_vain = if is_better { 0 } else { in_vain + 1 };
        if in_vain == 2 {
            break;
        }
    }
    Some(best)
}

/// Kernels differ between versions, and those of a debug build are slow.
fn entry_name(key: &str) -> String {
    let build = if cfg!(debug_assertions) { ", debug build" } else { "" };
    let key = format!("{key}, sdshard {}{build}", env!("CARGO_PKG_VERSION"));
    key.replace(|c: char| !(c.is_ascii_graphic() || c == ' ') || c == '"' || c == '\\', "_")
}

/// An entry of the file.
#[derive(Deserialize)]
struct Entry {
    #[serde(flatten)]
    rates: Rates,
    /// Seconds after the beginning of 1970.
    measured: Option<u64>,
}

/// What the file knows; nothing if it is not there or broken.
fn read(file: &Path) -> BTreeMap<String, Measured> {
    let text = match input::text(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::debug!("{} cannot be read: {error}", file.display());
            return BTreeMap::new();
        }
    };
    let known: BTreeMap<String, Entry> = toml::from_str(&text).unwrap_or_else(|error| {
        tracing::debug!("{} is ignored: {error}", file.display());
        BTreeMap::new()
    });
    let usable = known.into_iter().filter(|(_, entry)| entry.rates.is_usable());
    usable.map(|(key, Entry { rates, measured })| (key, Measured { rates, at: measured.and_then(at) })).collect()
}

fn write(file: &Path, known: &BTreeMap<String, Measured>) -> std::io::Result<()> {
    let mut text =
        String::from("# How fast sdshard found its devices to be. `sdshard devices --measure` measures anew.\n");
    for (key, Measured { rates: Rates { flops, bandwidth, link }, at }) in known {
        text += &format!("\n[\"{key}\"]\nflops = {flops:e}\nbandwidth = {bandwidth:e}\nlink = {link:e}\n");
        if let Some(since) = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            text += &format!("measured = {}\n", since.as_secs());
        }
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

    fn rates_in(file: Option<&Path>, key: &str, measure: impl FnMut() -> Option<Rates>) -> Option<Rates> {
        remembered_in(file, key, measure).map(|measured| measured.rates)
    }

    #[test]
    fn a_busy_machine_does_not_spoil_rates() {
        let busy = Rates { flops: 0.1e11, bandwidth: 0.4e10, link: 1e9 };
        // Others work during the first tries, and leave now one rate and now another alone.
        let tries = [busy, Rates { bandwidth: 2e10, ..busy }, busy, Rates { link: 9.87e9, ..busy }, busy, RATES];
        let mut next = tries.into_iter();
        assert_eq!(rates_in(None, "a", || next.next()), Some(ROUNDED));
        // Nobody is there: it ends soon.
        let mut calls = 0;
        let measured = rates_in(None, "a", || {
            calls += 1;
            Some(RATES)
        });
        assert_eq!((measured, calls), (Some(ROUNDED), 3));
        // A device that fails later has the rates from before.
        let mut next = [RATES].into_iter();
        assert_eq!(rates_in(None, "a", || next.next()), Some(ROUNDED));
    }

    #[test]
    fn a_file_says_when_rates_were_measured() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rates.toml");
        let before = SystemTime::now() - Duration::from_secs(1);
        let at = remembered_in(Some(&file), "a", || Some(RATES)).unwrap().at.unwrap();
        assert!(at >= before && at <= SystemTime::now());
        assert_eq!(remembered_in(Some(&file), "a", never).unwrap().at, Some(at));
        // A file from before times were kept, and one whose clock was wrong.
        for (measured, want) in [("", None), ("measured = 18446744073709551615\n", None)] {
            let text = format!("[\"{}\"]\nflops = 1e9\nbandwidth = 1e9\nlink = 1e9\n{measured}", entry_name("a"));
            std::fs::write(&file, text).unwrap();
            assert_eq!(
                remembered_in(Some(&file), "a", || Some(RATES)).map(|measured| measured.at).unwrap_or(want),
                want
            );
        }
    }

    #[test]
    fn a_device_is_measured_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/rates.toml");
        for key in ["one \"CPU\" \\ \u{fc}, 2 cores", "one CPU, 1 cores"] {
            assert_eq!(rates_in(Some(&file), key, || Some(RATES)), Some(ROUNDED), "{key}");
        }
        for key in ["one \"CPU\" \\ \u{fc}, 2 cores", "one CPU, 1 cores"] {
            assert_eq!(rates_in(Some(&file), key, never), Some(ROUNDED), "{key}");
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
            assert_eq!(rates_in(Some(&file), "a", || Some(RATES)), Some(ROUNDED), "{text}");
            assert_eq!(rates_in(Some(&file), "a", never), Some(ROUNDED), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_costs_a_measurement() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for file in [Some(file.join("rates.toml")), None] {
            assert_eq!(rates_in(file.as_deref(), "a", || Some(RATES)), Some(ROUNDED));
        }
        assert_eq!(rates_in(None, "a", || None), None);
        assert_eq!(rates_in(None, "a", || Some(Rates { link: f64::NAN, ..RATES })), None);
    }
}
