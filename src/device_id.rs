//! The names of devices, whether the devices exist or not: `cpu`, `cpu:1`, `cuda:0`, `wgpu:2`. Errors contain these
//! names, so this module is below all others.

use std::fmt;

/// A kind of device, which is also the name of the backend that drives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceKind {
    /// CPU cores.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// Any GPU, through wgpu.
    Wgpu,
    /// `device:N` in a device map: the N-th GPU of the machine on which the map is used, or the N-th share of the CPU
    /// if there is no GPU. A plan replaces it by a device of another kind, and no other code uses it.
    Numbered,
}

impl DeviceKind {
    /// The word before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Wgpu => "wgpu",
            DeviceKind::Numbered => "device",
        }
    }
}

/// The name of a device. `cpu` without a number means all cores that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// The kind of device.
    pub kind: DeviceKind,
    /// The number of the device of this kind; `None` only for the whole `cpu`.
    pub index: Option<usize>,
}

impl DeviceId {
    /// The CPU with all cores of this process.
    pub const CPU: Self = Self { kind: DeviceKind::Cpu, index: None };

    /// The device `kind:index`.
    pub const fn new(kind: DeviceKind, index: usize) -> Self {
        Self { kind, index: Some(index) }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}:{index}", self.kind.name()),
            None => f.write_str(self.kind.name()),
        }
    }
}
