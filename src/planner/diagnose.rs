//! Diagnosis of a device map for which nothing fits: finds the entry without which everything would.

use std::fmt::Display;

use super::{
    device_map::{DeviceFacts, DeviceMap, InFlight},
    fields::Located,
    tuning::Tuning,
};
use crate::{
    backend::DeviceId,
    error::{Error, Result},
};

/// The error at the entry of `map` without which a plan would be found, if there is one such entry; else the error itself.
/// `resolve` tries another map.
pub(super) fn diagnose(map: &DeviceMap, error: Error, resolve: impl Fn(&DeviceMap) -> Result<()>) -> Error {
    let message = error.to_string();
    let candidates = Candidates { map, why: message.lines().next().unwrap_or_default() };
    let found =
        candidates.all().into_iter().take(Tuning::MAX_DIAGNOSED_ENTRIES).find(|(relaxed, _)| resolve(relaxed).is_ok());
    found.map_or(error, |(_, refused)| refused)
}

fn facts_of(map: &mut DeviceMap, id: DeviceId) -> &mut DeviceFacts {
    &mut map.device.get_mut(&id).expect("a clone has the same devices").value
}

struct Candidates<'a> {
    map: &'a DeviceMap,
    why: &'a str,
}

impl Candidates<'_> {
    /// Maps that ask for less in one respect, each with the error that says so.
    fn all(&self) -> Vec<(DeviceMap, Error)> {
        let mut all = Vec::new();
        all.extend(self.count("batch", Some(&self.map.batch), |n| *n > 1, |map| map.batch = 1.into()));
        let is_count = |in_flight: &InFlight| matches!(in_flight, InFlight::Count(2..));
        let one = || Located::from(InFlight::Count(1));
        all.extend(self.count("in_flight", Some(&self.map.in_flight), is_count, |map| map.in_flight = one()));
        for (i, replica) in self.map.replica.iter().enumerate() {
            let (key, own) = (|name: &dyn Display| format!("replica[{i}].{name}"), &replica.value);
            let fewer = |map: &mut DeviceMap| map.replica[i].value.batch = Some(1.into());
            all.extend(self.count(&key(&"batch"), own.batch.as_ref(), |n| *n > 1, fewer));
            let fewer = |map: &mut DeviceMap| map.replica[i].value.in_flight = Some(one());
            all.extend(self.count(&key(&"in_flight"), own.in_flight.as_ref(), is_count, fewer));
            for (id, limit) in &own.max_memory {
                let more = |map: &mut DeviceMap| drop(map.replica[i].value.max_memory.remove(id));
                all.extend(self.size(&key(&format!("max_memory.{id}")), Some(limit), more));
            }
        }
        for (id, limit) in &self.map.max_memory {
            let more = |map: &mut DeviceMap| drop(map.max_memory.remove(id));
            all.extend(self.size(&format!("max_memory.{id}"), Some(limit), more));
        }
        for (id, facts) in &self.map.device {
            let facts = &facts.value;
            let more = |map: &mut DeviceMap| facts_of(map, *id).reserve = None;
            all.extend(self.size(&format!("device.{id}.reserve"), facts.reserve.as_ref(), more));
            let more = |map: &mut DeviceMap| facts_of(map, *id).memory = None;
            all.extend(self.size(&format!("device.{id}.memory"), facts.memory.as_ref(), more));
        }
        all
    }

    fn count<T>(
        &self,
        key: &str,
        entry: Option<&Located<T>>,
        is_more_than_one: impl Fn(&T) -> bool,
        relax: impl FnOnce(&mut DeviceMap),
    ) -> Option<(DeviceMap, Error)> {
        let entry = entry.filter(|entry| is_more_than_one(&entry.value))?;
        Some(self.without(relax, entry.refuse(key, self.problem()).hint("a smaller number: with 1 everything fits")))
    }

    fn size(
        &self,
        key: &str,
        entry: Option<&Located<u64>>,
        relax: impl FnOnce(&mut DeviceMap),
    ) -> Option<(DeviceMap, Error)> {
        let refused = entry?.refuse(key, self.problem()).hint("another size: without this entry everything fits");
        Some(self.without(relax, refused))
    }

    fn problem(&self) -> String {
        format!("with this, {}", self.why)
    }

    fn without(&self, relax: impl FnOnce(&mut DeviceMap), refused: Error) -> (DeviceMap, Error) {
        let mut map = self.map.clone();
        relax(&mut map);
        (map, refused)
    }
}
