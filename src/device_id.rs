//! Devices as they are named, whether there are such devices or not: `cpu`, `cpu:1`, `cuda:0`, `wgpu:2`. Errors have these
//! names, so they stand below all else.

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
    /// `device:N` in a device map: the N-th GPU of whatever machine the map is used on, or the N-th share of the CPU
    /// where there is no GPU. A plan replaces it by one of the others, and nothing else reads it.
    Numbered,
}

impl DeviceKind {
    /// The word in front of the colon.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Wgpu => "wgpu",
            DeviceKind::Numbered => "device",
        }
    }
}

/// One place that computes. `cpu` without a number is all cores that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// The backend.
    pub kind: DeviceKind,
    /// Which one of its devices; `None` only for the whole `cpu`.
    pub index: Option<usize>,
}

impl DeviceId {
    /// All cores of this process.
    pub const CPU: Self = Self { kind: DeviceKind::Cpu, index: None };

    /// `kind:index`.
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
