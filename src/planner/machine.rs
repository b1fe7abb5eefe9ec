//! The devices of a machine as a device map uses them: descriptions, budgets, and the data type of each component.

use super::hardware;
use crate::{
    backend::{DeviceId, DeviceInfo, DeviceKind, Precision, registry::measured},
    device_map::{DeviceMap, Strategy},
    error::{Error, Result},
    models::spec::ComponentSpec,
};

/// The bytes that a map allows on a device. For `diffusers-balanced`, limits apply to weights only, as in diffusers:
/// the device's free memory is the budget.
pub(super) fn budget(map: &DeviceMap, info: &DeviceInfo) -> u64 {
    if map.strategy.value == Strategy::DiffusersBalanced {
        return info.free_bytes;
    }
    map.max_memory.get(&info.id).map_or(info.free_bytes, |limit| info.free_bytes.min(limit.value))
}

/// The data type that is requested for a component; `None` is the default type of each device: f16 on a GPU, f32 on the
/// CPU. A network that overflows f16 is computed in f32 unless the map gives a type.
pub(super) fn resolve_dtype(
    map: &DeviceMap,
    component: &ComponentSpec,
    infos: &[DeviceInfo],
) -> Result<Option<Precision>> {
    let entry = map.dtype.of(&component.name);
    let Some(requested) = entry.value else {
        return Ok(component.network.overflows_f16().then_some(Precision::F32));
    };
    match infos.iter().find(|info| info.in_type(Some(requested)).is_none()) {
        None => Ok(Some(requested)),
        Some(info) => Err(entry
            .refuse("dtype", format!("{} has no {requested} arithmetic for the {}", info.id, component.name))
            .found(info.class.to_string())
            .hint(match requested {
                Precision::Int8 => "only a CPU has int8: dtype = \"f16\" on a GPU, or devices = [\"cpu\"]",
                _ => "dtype = \"f16\" or \"f32\"; NVIDIA's devices have bf16 from compute capability 8.0 on",
            })),
    }
}

/// The description of a device that the map may use: a share of the CPU or a device of the machine, with its facts.
pub(super) fn describe(
    map: &DeviceMap,
    id: DeviceId,
    usable: &[DeviceId],
    devices: &[DeviceInfo],
) -> Result<DeviceInfo> {
    let info = find_device(map, id, usable, devices)?.with_convolution(map.convolution.value);
    match map.device.get(&id) {
        Some(facts) => hardware::apply_facts(info, &facts.value),
        None => Ok(info),
    }
}

fn find_device(map: &DeviceMap, id: DeviceId, usable: &[DeviceId], devices: &[DeviceInfo]) -> Result<DeviceInfo> {
    let cores = |id: &DeviceId| map.device.get(id).and_then(|facts| facts.value.cores.as_ref());
    if id.kind == DeviceKind::Wgpu {
        let requested = |id: &DeviceId| map.device.get(id).and_then(|facts| facts.value.adapter.as_ref());
        let number = |id: &DeviceId| requested(id).map(|adapter| adapter.value).or(id.index);
        if let Some(info) = devices.iter().find(|device| device.id.kind == id.kind && device.id.index == number(&id)) {
            let devices_of_adapter =
                usable.iter().filter(|other| other.kind == id.kind && number(other) == number(&id)).count();
            return Ok(hardware::part_of_adapter(&measured(info), id, devices_of_adapter));
        }
        if let Some(adapter) = requested(&id) {
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
        return hardware::cpu_share(whole, id, &shares, &requested);
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
