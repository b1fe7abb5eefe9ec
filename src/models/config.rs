//! Functions that the readers of all networks' configs share: ranges of sizes, and checks of single keys.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::{error::Result, json::Object};

/// The range of widths, which rejects absurd files.
pub(super) const WIDTHS: RangeInclusive<usize> = 1..=65_536;
/// The range of numbers of layers, heads and groups.
pub(super) const COUNTS: RangeInclusive<usize> = 1..=1024;
/// The range of numbers of levels of resolution.
pub(super) const LEVELS: RangeInclusive<usize> = 1..=8;
/// The range of the number of latents along one side.
pub(super) const SAMPLES: RangeInclusive<usize> = 1..=2048;
/// The range of epsilons of norms.
pub(super) const EPSILONS: RangeInclusive<f64> = 1e-12..=1e-1;

/// Fails unless `parts` divides `whole`; `key` is the key of `parts`.
pub(super) fn divides(config: &Object, key: &str, parts: usize, whole: usize) -> Result<()> {
    if whole.is_multiple_of(parts) {
        return Ok(());
    }
    Err(config.refuse(key, &format!("a divisor of {whole}, which is a width of this network")))
}

/// The value of a key that has no default.
pub(super) fn required<T>(config: &Object, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| config.refuse(key, "a whole number"))
}

/// A number within `range` for each level: a single number counts for all levels.
pub(super) fn per_level(
    config: &Object,
    key: &str,
    levels: usize,
    range: RangeInclusive<usize>,
) -> Result<Option<Vec<usize>>> {
    if config.get(key).is_some_and(Value::is_number) {
        return Ok(config.size(key, range)?.map(|count| vec![count; levels]));
    }
    let list = config.sizes(key, range)?;
    if list.as_ref().is_some_and(|list| list.len() != levels) {
        return Err(config.refuse(key, &format!("a number or a list of {levels}, one for each level")));
    }
    Ok(list)
}
