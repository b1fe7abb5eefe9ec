//! A device map on a machine: what its names of devices mean there, which devices it may use, and what they can do.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    check::{mixes_cpu, refuse_unlisted},
    device_map::{DeviceMap, MapPlace, Strategy},
    fields::Located,
    hardware,
};
use crate::{
    backend::{DType, DeviceId, DeviceInfo, DeviceKind, registry::measured},
    error::{Error, Result},
    models::spec::{ComponentSpec, ModelSpec},
};

impl DeviceMap {
    /// The map with the names of a machine that has `devices` in place of `device:N`: the N-th of its GPUs, or the N-th
    /// share of the CPU where there is no GPU.
    ///
    /// # Errors
    /// If there are not so many GPUs, or the map names the same device in both ways.
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

    /// Gives every device the name that `name` has for it.
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
    /// Without `devices` these are the defaults and those that components name besides. A map that names shares of the
    /// CPU (`cpu:0`) does not use the whole `cpu` as well. With replicas written out these are all of theirs. Fails if
    /// there are more replicas than devices, or a limit on a device that is not used: a limit alone does not ask for a
    /// device.
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
        let mut all = Vec::new();
        for (index, map) in self.replica_maps().iter().enumerate() {
            for device in map.usable(defaults)? {
                if let Some(other) = all.iter().find(|other| mixes_cpu(**other, device)) {
                    return Err(self.replica[index]
                        .refuse(
                            &format!("replica[{index}]"),
                            "this replica would use the machine's default devices, which do not go with the others'",
                        )
                        .found(format!("{device} beside {other}"))
                        .hint("give every [[replica]] `devices` of its own"));
                }
                if !all.contains(&device) {
                    all.push(device);
                }
            }
        }
        Ok(all)
    }
}

/// The entries of a table of devices, each under the name that `name` gives its device.
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

/// What a map lets a device hold, in bytes. To `diffusers-balanced`, limits are what they are to diffusers: they guide
/// the weights, and what else the components need may lie beyond them.
pub(super) fn budget(map: &DeviceMap, info: &DeviceInfo) -> u64 {
    if map.strategy.value == Strategy::DiffusersBalanced {
        return info.free_bytes;
    }
    map.max_memory.get(&info.id).map_or(info.free_bytes, |limit| info.free_bytes.min(limit.value))
}

/// The type in which a component is computed; `None` is what suits each device: f16 for a GPU, f32 for the CPU. A network
/// that overflows f16 has f32 unless the map says otherwise.
pub(super) fn resolve_dtype(map: &DeviceMap, component: &ComponentSpec, infos: &[DeviceInfo]) -> Result<Option<DType>> {
    let said = map.dtype.said(&component.name);
    let Some(asked) = said.value else {
        return Ok(component.network.overflows_f16().then_some(DType::F32));
    };
    match infos.iter().find(|info| info.in_type(Some(asked)).is_none()) {
        None => Ok(Some(asked)),
        Some(info) => Err(match info.id.kind {
            DeviceKind::Cpu => said
                .refuse("dtype", format!("the CPU has no {asked} kernels for the {}", component.name))
                .hint("dtype = \"auto\" or \"f32\"; weights stored as f16 or bf16 are read all the same"),
            _ => said
                .refuse("dtype", format!("{} has no {asked} arithmetic for the {}", info.id, component.name))
                .found(info.class.to_string())
                .hint("dtype = \"f16\" or \"f32\"; NVIDIA's devices have bf16 from compute capability 8.0 on"),
        }),
    }
}

/// A CPU that nobody named is no reason to refuse a type that the GPUs have.
pub(super) fn leave_out_cpu_without_types(map: &DeviceMap, spec: &ModelSpec, infos: &mut Vec<DeviceInfo>) {
    let maps = map.replica_maps();
    let is_named = |id: DeviceId| {
        let listed = |map: &DeviceMap| map.devices.iter().any(|device| device.value == id);
        maps.iter().any(|map| listed(map) || map.placed_devices().any(|(_, device)| device.value == id))
    };
    let has_types = |info: &DeviceInfo| spec.names().iter().all(|name| info.in_type(map.dtype.of(name)).is_some());
    if infos.iter().any(|info| info.id.kind != DeviceKind::Cpu) {
        infos.retain(|info| info.id.kind != DeviceKind::Cpu || is_named(info.id) || has_types(info));
    }
}

/// What is known of a device that the map may use: its share of the CPU, or the machine's own answer, and what the map
/// says of it.
pub(super) fn describe(
    map: &DeviceMap,
    id: DeviceId,
    usable: &[DeviceId],
    devices: &[DeviceInfo],
) -> Result<DeviceInfo> {
    let info = find(map, id, usable, devices)?;
    match map.device.get(&id) {
        Some(facts) => hardware::apply(info, &facts.value),
        None => Ok(info),
    }
}

fn find(map: &DeviceMap, id: DeviceId, usable: &[DeviceId], devices: &[DeviceInfo]) -> Result<DeviceInfo> {
    let cores = |id: &DeviceId| map.device.get(id).and_then(|facts| facts.value.cores.as_ref());
    if id.kind == DeviceKind::Wgpu {
        let asked = |id: &DeviceId| map.device.get(id).and_then(|facts| facts.value.adapter.as_ref());
        let number = |id: &DeviceId| asked(id).map(|adapter| adapter.value).or(id.index);
        if let Some(info) = devices.iter().find(|device| device.id.kind == id.kind && device.id.index == number(&id)) {
            let on_it = usable.iter().filter(|other| other.kind == id.kind && number(other) == number(&id)).count();
            return Ok(hardware::part_of_adapter(&measured(info), id, on_it));
        }
        if let Some(adapter) = asked(&id) {
            let found: Vec<String> = devices.iter().map(|device| device.id.to_string()).collect();
            return Err(adapter
                .refuse(&format!("device.{id}.adapter"), format!("this machine has no adapter {}", adapter.value))
                .found(found.join(", "))
                .hint("an adapter's number is that of its device in `sdshard devices`"));
        }
    }
    if let Some(info) = devices.iter().find(|device| device.id == id) {
        return cores(&id).map_or_else(|| Ok(info.clone()), |cores| hardware::with_cores(info, cores));
    }
    if let (DeviceKind::Cpu, Some(_), Some(whole)) =
        (id.kind, id.index, devices.iter().find(|device| device.id == DeviceId::CPU))
    {
        let shares: Vec<DeviceId> = usable.iter().copied().filter(|id| id.kind == DeviceKind::Cpu).collect();
        let requested: Vec<_> = shares.iter().map(cores).collect();
        return hardware::share(whole, id, &shares, &requested);
    }
    let found: Vec<String> = devices.iter().map(|device| device.id.to_string()).collect();
    let component = map.placed_devices().find(|(_, device)| device.value == id);
    let listed = map.devices.iter().find(|device| device.value == id);
    let problem = format!("there is no device \"{id}\"");
    let refused = match (component, listed) {
        (Some((key, device)), _) => device.refuse(&key, problem),
        (None, Some(device)) => device.refuse("devices", problem),
        (None, None) => Error::input(problem),
    };
    Err(refused.found(found.join(", ")).hint("one of these; `sdshard devices` lists those of this machine"))
}
