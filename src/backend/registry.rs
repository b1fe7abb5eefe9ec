//! The devices of this machine: which there are, and how they are opened.

use super::{
    cpu,
    device::Device,
    id::{DeviceId, DeviceKind},
    info::{self, DeviceInfo},
};
use crate::error::{Error, Result};

/// A device to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The device.
    pub id: DeviceId,
    /// The cores that it shall compute on; `None` for its even share. Only the CPU has cores to choose from.
    pub cores: Option<Vec<usize>>,
    /// The number of the adapter behind a `wgpu` device; `None` for the device's own number.
    pub adapter: Option<usize>,
}

impl From<DeviceId> for Opening {
    fn from(id: DeviceId) -> Self {
        Self { id, cores: None, adapter: None }
    }
}

impl Device {
    /// One CPU device by itself, with room for `arena_bytes` of intermediate results.
    pub fn cpu(arena_bytes: usize) -> Result<Self> {
        let device = open(&[DeviceId::CPU])?.remove(0);
        device.reserve(arena_bytes)?;
        Ok(device)
    }
}

/// Opens devices, in the order given: names alone, or [`Opening`]s. `cpu:N` devices that ask for no cores of their own
/// share evenly what the others leave of this process's.
///
/// # Errors
/// If one of them is not on this machine, or cores are asked for that this process may not use.
pub fn open<T: Clone + Into<Opening>>(devices: &[T]) -> Result<Vec<Device>> {
    let openings: Vec<Opening> = devices.iter().cloned().map(Into::into).collect();
    let is_share = |opening: &&Opening| opening.id.kind == DeviceKind::Cpu && opening.id.index.is_some();
    let requested: Vec<_> = openings.iter().filter(is_share).map(|opening| opening.cores.as_deref()).collect();
    let mut shares = cpu::threads::shares(cpu::threads::cores(), &requested).into_iter();
    openings
        .iter()
        .map(|Opening { id, cores, adapter }| {
            if let (DeviceKind::Cpu, Some(cores)) = (id.kind, cores) {
                check_cores(*id, cores)?;
            }
            match (id.kind, id.index, cores) {
                (DeviceKind::Cpu, None, None) => Ok(Device::new(*id, cpu::Cpu::whole()?)),
                (DeviceKind::Cpu, None, Some(cores)) => Ok(Device::new(*id, cpu::Cpu::on(cores.clone())?)),
                (DeviceKind::Cpu, Some(_), _) => {
                    let cores = shares.next().expect("there is a share for each of them");
                    Ok(Device::new(*id, cpu::Cpu::on(cores)?))
                }
                (DeviceKind::Cuda, index, _) => cuda_device(*id, index.unwrap_or_default()),
                (DeviceKind::Wgpu, index, _) => wgpu_device(*id, adapter.or(index).unwrap_or_default()),
                (DeviceKind::Numbered, ..) => Err(absent(*id)),
            }
        })
        .collect()
}

/// Refuses cores that this process may not use.
fn check_cores(id: DeviceId, cores: &[usize]) -> Result<()> {
    let allowed = cpu::threads::cores();
    match cores.iter().find(|core| !allowed.contains(core)) {
        None if cores.is_empty() => Err(Error::input(format!("{id}: there has to be at least one core"))),
        None => Ok(()),
        Some(core) => Err(Error::input(format!("{id}: this process may not use core {core}"))
            .found(format!("cores {}", cpu::threads::list(allowed)))
            .hint("`sdshard devices` says how many cores there are; SDSHARD_THREADS and the affinity limit them")),
    }
}

/// The message for a device that this machine does not have.
pub fn absent(id: DeviceId) -> Error {
    let found: Vec<String> = visible().iter().map(|device| device.id.to_string()).collect();
    info::absent(id).found(found.join(", "))
}

/// The devices of this machine, best first. How fast they are is measured the first time and remembered: see
/// [`rates`](super::rates). Those that are used only where a map names them are not opened for that, see [`measured`].
pub fn visible() -> Vec<DeviceInfo> {
    let mut cuda = cuda_infos();
    // The same cards once more and slower, or slower ones: for those who name them.
    let only_named = cuda.iter().any(|device| !device.only_named);
    cuda.append(&mut wgpu_infos(only_named));
    let (named, free) = cuda.into_iter().partition::<Vec<_>, _>(|device| device.only_named);
    free.into_iter().chain([cpu::info()]).chain(named).collect()
}

#[cfg(feature = "cuda")]
fn cuda_infos() -> Vec<DeviceInfo> {
    super::cuda::infos()
}

#[cfg(feature = "cuda")]
fn cuda_device(id: DeviceId, gpu: usize) -> Result<Device> {
    if !super::cuda::is_there(gpu) {
        return Err(absent(id));
    }
    Ok(Device::new(id, super::cuda::open(gpu)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda_device(id: DeviceId, _: usize) -> Result<Device> {
    Err(absent(id))
}

#[cfg(not(feature = "cuda"))]
fn cuda_infos() -> Vec<DeviceInfo> {
    Vec::new()
}

/// What is known of a device of this machine, with its rates measured even if it is used only where a map names it.
pub fn measured(info: &DeviceInfo) -> DeviceInfo {
    #[cfg(feature = "wgpu")]
    if info.only_named
        && info.id.kind == DeviceKind::Wgpu
        && let Some(DeviceInfo { rates, f32_flops, rates_measured, .. }) = super::wgpu::measured(info.id)
    {
        return DeviceInfo { rates, f32_flops, rates_measured, ..info.clone() };
    }
    info.clone()
}

#[cfg(feature = "wgpu")]
fn wgpu_infos(only_named: bool) -> Vec<DeviceInfo> {
    super::wgpu::infos(only_named)
}

#[cfg(feature = "wgpu")]
fn wgpu_device(id: DeviceId, adapter: usize) -> Result<Device> {
    if !super::wgpu::is_there(adapter) {
        return Err(absent(id));
    }
    Ok(Device::new(id, super::wgpu::open(id, adapter)?))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_device(id: DeviceId, _: usize) -> Result<Device> {
    Err(absent(id))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_infos(_: bool) -> Vec<DeviceInfo> {
    Vec::new()
}
