//! The devices of a map on a machine: the meaning of their names, and which of them the map may use.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    DeviceMap, Located, MapPlace,
    check::{mixes_cpu, refuse_unlisted},
};
use crate::{
    backend::{DeviceId, DeviceKind},
    error::Result,
};

impl DeviceMap {
    /// Replaces `device:N` by the name of a device of a machine that has `devices`: the N-th of its GPUs, or the N-th
    /// share of the CPU if there is no GPU.
    ///
    /// # Errors
    /// If there are too few GPUs, or the map names the same device in both ways.
    pub fn on_machine(&self, devices: &[DeviceId]) -> Result<Self> {
        let gpus: Vec<DeviceId> = devices.iter().copied().filter(|id| id.kind != DeviceKind::Cpu).collect();
        let name = |key: &str, device: &Located<DeviceId>| -> Result<DeviceId> {
            let DeviceId { kind: DeviceKind::Numbered, index: Some(index) } = device.value else {
                return Ok(device.value);
            };
            if gpus.is_empty() {
                return Ok(DeviceId::new(DeviceKind::Cpu, index));
            }
            gpus.get(index).copied().ok_or_else(|| {
                let names: Vec<String> = gpus.iter().map(ToString::to_string).collect();
                device
                    .refuse(
                        key,
                        format!("\"{}\" is GPU number {} of the machine, counted from 1", device.value, index + 1),
                    )
                    .found(format!(
                        "{} GPU{}: {}",
                        gpus.len(),
                        if gpus.len() == 1 { "" } else { "s" },
                        names.join(", ")
                    ))
                    .hint("a map for fewer devices; or \"cpu:0\", \"cpu:1\" and so on, which are shares of the CPU")
            })
        };
        let mut map = self.clone();
        map.name_devices(&name)?;
        map.replica.iter_mut().try_for_each(|replica| replica.value.name_devices(&name))?;
        Ok(map)
    }

    /// Replaces every name of a device by the result of `name`.
    fn name_devices(&mut self, name: &impl Fn(&str, &Located<DeviceId>) -> Result<DeviceId>) -> Result<()> {
        let rename = |key: &str, device: &mut Located<DeviceId>| name(key, device).map(|id| device.value = id);
        self.devices.iter_mut().try_for_each(|device| rename("devices", device))?;
        self.max_memory = renamed("max_memory", std::mem::take(&mut self.max_memory), name)?;
        self.device = renamed("device", std::mem::take(&mut self.device), name)?;
        for (component, pool) in &mut self.components {
            let key = format!("components.{component}");
            pool.value.iter_mut().flat_map(MapPlace::devices_mut).try_for_each(|device| rename(&key, device))?;
        }
        Ok(())
    }

    /// The devices that this map may use on a machine whose default devices are `defaults`, the preferred one first.
    ///
    /// Without `devices`, these are the defaults and the devices that components name. A map that names shares of the
    /// CPU (`cpu:0`) does not use the whole `cpu`. With `[[replica]]`, these are the devices of all replicas.
    ///
    /// # Errors
    /// If there are more replicas than devices, or a limit is set for a device that is not used.
    pub fn usable(&self, defaults: &[DeviceId]) -> Result<Vec<DeviceId>> {
        if !self.replica.is_empty() {
            return self.usable_by_replicas(defaults);
        }
        let mut usable: Vec<DeviceId> = self.devices.iter().map(|d| d.value).collect();
        if usable.is_empty() {
            let named: BTreeSet<DeviceId> = self.placed_devices().map(|(_, device)| device.value).collect();
            usable.extend(defaults.iter().filter(|d| !named.iter().any(|n| mixes_cpu(*n, **d))));
            usable.extend(named.difference(&usable.iter().copied().collect()));
        }
        if let Some((key, device)) = self.limited_devices().find(|(_, device)| !usable.contains(&device.value)) {
            return Err(refuse_unlisted(&device, &key, usable));
        }
        self.check_enough_devices(usable.len())?;
        Ok(usable)
    }

    fn usable_by_replicas(&self, defaults: &[DeviceId]) -> Result<Vec<DeviceId>> {
        let mut usable = Vec::new();
        for (index, map) in self.replica_maps().iter().enumerate() {
            for device in map.usable(defaults)? {
                if let Some(other) = usable.iter().find(|other| mixes_cpu(**other, device)) {
                    return Err(self.replica[index]
                        .refuse(
                            &format!("replica[{index}]"),
                            "this replica would use the machine's default devices, which do not go with the others'",
                        )
                        .found(format!("{device} beside {other}"))
                        .hint("give every [[replica]] `devices` of its own"));
                }
                if !usable.contains(&device) {
                    usable.push(device);
                }
            }
        }
        Ok(usable)
    }
}

/// Renames the devices of a table by `name`.
fn renamed<T>(
    table: &str,
    entries: BTreeMap<DeviceId, Located<T>>,
    name: impl Fn(&str, &Located<DeviceId>) -> Result<DeviceId>,
) -> Result<BTreeMap<DeviceId, Located<T>>> {
    let mut named = BTreeMap::new();
    for (id, entry) in entries {
        let device = Located { value: id, location: entry.location.clone() };
        let key = format!("{table}.{id}");
        let id = name(&key, &device)?;
        if named.insert(id, entry).is_some() {
            return Err(device.refuse(&key, format!("{id} has two entries, one under each of its names")));
        }
    }
    Ok(named)
}
