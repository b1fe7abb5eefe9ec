//! Diagnosis of a device map for which nothing fits: finds the entry of the map without which a plan exists.

use super::tuning::Tuning;
use crate::{
    backend::DeviceId,
    device_map::{DeviceFacts, DeviceMap, InFlight, Located},
    error::{Error, Result},
};

/// Returns an error at the entry of `map` without which a plan exists, or `error` if there is no single such entry.
/// `resolve` tries to plan another map.
pub(super) fn diagnose(map: &DeviceMap, error: Error, resolve: impl Fn(&DeviceMap) -> Result<()>) -> Error {
    let message = error.to_string();
    let relaxations = Relaxations { map, problem: message.lines().next().unwrap_or_default() };
    let found = relaxations
        .relaxed_maps()
        .into_iter()
        .take(Tuning::MAX_DIAGNOSED_ENTRIES)
        .find(|(relaxed, _)| resolve(relaxed).is_ok());
    found.map_or(error, |(_, refused)| refused)
}

/// Changes the facts about a device, if `map` has any.
fn change_facts(map: &mut DeviceMap, id: DeviceId, change: impl Fn(&mut DeviceFacts)) {
    map.device.get_mut(&id).into_iter().for_each(|facts| change(&mut facts.value));
}

struct Relaxations<'a> {
    map: &'a DeviceMap,
    problem: &'a str,
}

impl Relaxations<'_> {
    /// Maps with one relaxed entry, each with the error for that entry. An entry that replicas inherit from the top
    /// level is relaxed in all of them.
    fn relaxed_maps(&self) -> Vec<(DeviceMap, Error)> {
        let mut relaxed = Vec::new();
        let is_count = |in_flight: &InFlight| matches!(in_flight, InFlight::Count(2..));
        for (prefix, own) in self.map.all_maps() {
            let (is_top, key) = (prefix.is_empty(), |name: &str| format!("{prefix}{name}"));
            let batch = Some(&own.batch).filter(|batch| is_top || **batch != self.map.batch);
            relaxed.extend(self.relax_count(&key("batch"), batch, |n| *n > 1, |map| &mut map.batch, 1));
            let in_flight = Some(&own.in_flight).filter(|count| is_top || **count != self.map.in_flight);
            let one = InFlight::Count(1);
            relaxed.extend(self.relax_count(&key("in_flight"), in_flight, is_count, |map| &mut map.in_flight, one));
            for (id, limit) in &own.max_memory {
                if is_top || self.map.max_memory.get(id) != Some(limit) {
                    let relax =
                        |map: &mut DeviceMap| map.max_memory.retain(|known, other| (known, &*other) != (id, limit));
                    relaxed.extend(self.relax_size(&key(&format!("max_memory.{id}")), Some(limit), relax));
                }
            }
        }
        for (id, facts) in &self.map.device {
            let facts = &facts.value;
            let relax = |map: &mut DeviceMap| change_facts(map, *id, |facts| facts.reserve = None);
            relaxed.extend(self.relax_size(&format!("device.{id}.reserve"), facts.reserve.as_ref(), relax));
            let relax = |map: &mut DeviceMap| change_facts(map, *id, |facts| facts.memory = None);
            relaxed.extend(self.relax_size(&format!("device.{id}.memory"), facts.memory.as_ref(), relax));
        }
        relaxed
    }

    fn relax_count<T: PartialEq + Clone>(
        &self,
        key: &str,
        entry: Option<&Located<T>>,
        is_more_than_one: impl Fn(&T) -> bool,
        entry_of: impl Fn(&mut DeviceMap) -> &mut Located<T>,
        one: T,
    ) -> Option<(DeviceMap, Error)> {
        let entry = entry.filter(|entry| is_more_than_one(&entry.value))?;
        let relax = |map: &mut DeviceMap| {
            if entry_of(map) == entry {
                entry_of(map).value = one.clone();
            }
        };
        Some(self.relaxed(relax, entry.refuse(key, self.message()).hint("a smaller number: with 1 everything fits")))
    }

    fn relax_size(
        &self,
        key: &str,
        entry: Option<&Located<u64>>,
        relax: impl Fn(&mut DeviceMap),
    ) -> Option<(DeviceMap, Error)> {
        let refused = entry?.refuse(key, self.message()).hint("another size: without this entry everything fits");
        Some(self.relaxed(relax, refused))
    }

    fn message(&self) -> String {
        format!("with this, {}", self.problem)
    }

    fn relaxed(&self, relax: impl Fn(&mut DeviceMap), refused: Error) -> (DeviceMap, Error) {
        let mut map = self.map.clone();
        relax(&mut map);
        map.replica.iter_mut().for_each(|replica| relax(&mut replica.value));
        (map, refused)
    }
}
