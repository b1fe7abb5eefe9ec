//! The speed of a device: measured once on each machine, then stored in a file.

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

/// Operations and bytes per second. Predictions take the longer of an op's two times, so both are the rates of long
/// ops.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Rates {
    /// Floating-point operations of matrix products per second, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes per second between the device's memory and its cores.
    pub bandwidth: f64,
    /// Bytes per second between the device and the host.
    pub link: f64,
}

impl Rates {
    /// The time of an op of `flops` operations that moves `bytes`, in seconds: the longer of the two times, as both run
    /// in parallel. Williams et al. 2009.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bandwidth)
    }

    /// The rates of a part of a device. The link to the host is not divided.
    #[must_use]
    pub fn part(&self, share: f64) -> Self {
        Self { flops: self.flops * share, bandwidth: self.bandwidth * share, link: self.link }
    }

    /// Rounds each rate to two digits: a measurement is no more exact.
    fn rounded(self) -> Self {
        let round = |rate: f64| format!("{rate:.1e}").parse().expect("a float is written as a float");
        Self { flops: round(self.flops), bandwidth: round(self.bandwidth), link: round(self.link) }
    }

    fn is_usable(&self) -> bool {
        [self.flops, self.bandwidth, self.link].iter().all(|rate| rate.is_finite() && *rate > 0.0)
    }
}

/// Rates, and the time when they were measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The best rates of several tries.
    pub rates: Rates,
    /// The time of the measurement, to the second; `None` if the file does not say.
    pub at: Option<SystemTime>,
}

/// The rates of the device that `key` describes, including everything that makes it faster or slower: from this
/// machine's file, or else from `measure`, whose result is then stored there. `None` if they cannot be measured.
///
/// The file is `sdshard/rates.toml` in `$XDG_CACHE_HOME` or `~/.cache`. If it is invalid or cannot be written, the only
/// effect is another measurement.
pub fn remembered(key: &str, measure: impl FnMut() -> Option<Rates>) -> Option<Measured> {
    // Only one thread measures at a time, as measurements would slow each other down.
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    *asked.entry(key.to_string()).or_insert_with(|| remembered_in(file().as_deref(), key, measure))
}

/// The stored rates of a device that is not worth a measurement: `None` if there are none.
pub fn known(key: &str) -> Option<Measured> {
    let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    asked.get(key).copied().flatten().or_else(|| file().map(|file| read(&file))?.get(&entry_name(key)).copied())
}

/// The rates that this process has looked up or measured.
static ASKED: Mutex<BTreeMap<String, Option<Measured>>> = Mutex::new(BTreeMap::new());

/// From this call on, this process measures every device once, whatever the file contains, and measures all devices.
pub fn measure_anew() {
    ANEW.store(true, Ordering::Relaxed);
}

/// Whether [`measure_anew`] was called.
pub fn is_measured_anew() -> bool {
    ANEW.load(Ordering::Relaxed)
}

static ANEW: AtomicBool = AtomicBool::new(false);

fn file() -> Option<PathBuf> {
    Some(cache_folder()?.join("rates.toml"))
}

/// The folder for data that can be computed again: `sdshard` in `$XDG_CACHE_HOME` or `~/.cache`.
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
    let measured = Measured { rates, at: system_time(now) };
    if let Some(file) = file {
        known.insert(key, measured);
        if let Err(error) = write(file, &known) {
            tracing::debug!("{} cannot be written: {error}", file.display());
        }
    }
    Some(measured)
}

/// The time `seconds` after the beginning of 1970; `None` where the system's clock does not reach.
fn system_time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The largest number of tries.
const TRIES: usize = 6;
/// A try that is better than all before by this factor shows that other programs disturbed those.
const BETTER: f64 = 1.05;

/// The best of several tries, each rate by itself, because other programs may use the machine. Ends when two tries in a
/// row are no better.
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

/// The name of an entry. Version and build are part of it: kernels differ between versions, and those of a debug build
/// are slow.
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

/// The entries of the file; none if it does not exist or is invalid.
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
    usable
        .map(|(key, Entry { rates, measured })| (key, Measured { rates, at: measured.and_then(system_time) }))
        .collect()
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
        // Other programs disturb the first tries, some of them in one rate only.
        let tries = [busy, Rates { bandwidth: 2e10, ..busy }, busy, Rates { link: 9.87e9, ..busy }, busy, RATES];
        let mut next = tries.into_iter();
        assert_eq!(rates_in(None, "a", || next.next()), Some(ROUNDED));
        // Without disturbance the measurement ends soon.
        let mut calls = 0;
        let measured = rates_in(None, "a", || {
            calls += 1;
            Some(RATES)
        });
        assert_eq!((measured, calls), (Some(ROUNDED), 3));
        // A device that fails later keeps the rates from before.
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
        // Entries of a file without times, and of a file that was written with a wrong clock.
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
