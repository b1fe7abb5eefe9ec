//! `--html`: the file of a page, and what is said at its top.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use sdshard::{
    error::Result,
    output::{self, Durability},
};

use super::{args::ModelArgs, names::file_name_is_possible, run::quoted};

/// The file of `--html`, if there is one.
pub struct Html<'a>(Option<&'a Path>);

impl<'a> Html<'a> {
    /// Checks, before anything is measured, that the file can be written.
    pub fn new(path: Option<&'a Path>) -> Result<Self> {
        path.map_or(Ok(()), |path| file_name_is_possible("--html", path))?;
        Ok(Self(path))
    }

    /// Writes the page if there is a file for it.
    pub fn write(&self, page: impl FnOnce() -> String) -> Result<()> {
        self.0.map_or(Ok(()), |path| output::write(path, page().as_bytes(), Durability::Synced))
    }
}

/// What is said at the top of a page: where, when and of what something was measured.
pub fn facts(machine: String, model: &ModelArgs, what: String) -> Vec<(&'static str, String)> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let command = std::env::args_os().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    vec![
        ("machine", machine),
        ("model", model.model.clone().unwrap_or_else(|| "built-in".to_owned())),
        ("measured", what),
        ("date", date(seconds)),
        ("version", concat!("sdshard ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("command", command),
    ]
}

/// Seconds since 1970 as a date with the time in UTC, by the algorithm of Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms": its years begin in March, so that the day of a leap year is the last.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468; // since the first of March of the year 0
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_date_is_that_of_the_gregorian_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(super::date(seconds), date);
        }
    }
}
