//! The devices of this machine, and how they are opened.

use super::{
    cpu::{self, Convolution},
    device::Device,
    id::{DeviceId, DeviceKind},
    info::{self, DeviceInfo},
};
use crate::error::{Error, Result};

/// A device to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The device's name.
    pub id: DeviceId,
    /// The cores to compute on; `None` for an even share. Only CPU devices have a choice of cores.
    pub cores: Option<Vec<usize>>,
    /// The number of the adapter of a `wgpu` device; `None` for the device's own number.
    pub adapter: Option<usize>,
    /// The algorithm of a CPU device's convolutions.
    pub convolution: Convolution,
}

impl From<DeviceId> for Opening {
    fn from(id: DeviceId) -> Self {
        Self { id, cores: None, adapter: None, convolution: Convolution::default() }
    }
}

impl Device {
    /// Opens one CPU device with `arena_bytes` for intermediate results.
    pub fn cpu(arena_bytes: usize) -> Result<Self> {
        let device = open(&[DeviceId::CPU])?.remove(0);
        device.reserve(arena_bytes)?;
        Ok(device)
    }
}

/// Opens devices, in the given order: plain names, or [`Opening`]s. `cpu:N` devices without requested cores share those
/// that the others leave.
///
/// # Errors
/// If a device is not on this machine, or this process may not use the requested cores.
pub fn open<T: Clone + Into<Opening>>(devices: &[T]) -> Result<Vec<Device>> {
    let openings: Vec<Opening> = devices.iter().cloned().map(Into::into).collect();
    let is_share = |opening: &&Opening| opening.id.kind == DeviceKind::Cpu && opening.id.index.is_some();
    let requested: Vec<_> = openings.iter().filter(is_share).map(|opening| opening.cores.as_deref()).collect();
    let mut shares = cpu::threads::shares(cpu::threads::cores(), &requested).into_iter();
    openings
        .iter()
        .map(|Opening { id, cores, adapter, convolution }| {
            if let (DeviceKind::Cpu, Some(cores)) = (id.kind, cores) {
                check_cores(*id, cores)?;
            }
            match (id.kind, id.index, cores) {
                (DeviceKind::Cpu, None, None) => Ok(Device::new(*id, cpu::Cpu::whole(*convolution)?)),
                (DeviceKind::Cpu, None, Some(cores)) => {
                    Ok(Device::new(*id, cpu::Cpu::on(cores.clone(), *convolution)?))
                }
                (DeviceKind::Cpu, Some(_), _) => {
                    let cores = shares.next().expect("there is a share for each of them");
                    Ok(Device::new(*id, cpu::Cpu::on(cores, *convolution)?))
                }
                (DeviceKind::Cuda, index, _) => cuda_device(*id, index.unwrap_or_default()),
                (DeviceKind::Wgpu, index, _) => wgpu_device(*id, adapter.or(index).unwrap_or_default()),
                (DeviceKind::Numbered, ..) => Err(absent(*id)),
            }
        })
        .collect()
}

/// Rejects cores that this process may not use.
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

/// The error for a device that this machine does not have.
pub fn absent(id: DeviceId) -> Error {
    let found: Vec<String> = visible().iter().map(|device| device.id.to_string()).collect();
    info::absent(id).found(found.join(", "))
}

/// The devices of this machine, best first. Their speed is measured the first time and then stored: see
/// [`rates`](super::rates). Devices that are used only where a map names them are not opened for a measurement, see
/// [`measured`].
pub fn visible() -> Vec<DeviceInfo> {
    let mut cuda = cuda_infos();
    // Through wgpu, these are the same GPUs again but slower, or slower GPUs: they are used only where a map names
    // them.
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

/// A device of this machine with measured rates, even if it is used only where a map names it.
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
