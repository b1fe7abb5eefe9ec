//! Names of devices: `cpu`, `cpu:1`, `cuda:0`, `wgpu:2`.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

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

impl FromStr for DeviceId {
    type Err = Error;

    /// Reads `cpu`, `cpu:N`, `cuda:N` or `wgpu:N`.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::input(format!("\"{text}\" is not the name of a device"))
                .hint("a device is \"cpu\", \"cpu:N\", \"cuda:N\" or \"wgpu:N\", N counted from 0")
        };
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index)),
            None => (text, None),
        };
        let kind = match kind {
            "cpu" => DeviceKind::Cpu,
            "cuda" => DeviceKind::Cuda,
            "wgpu" => DeviceKind::Wgpu,
            _ => return Err(refuse()),
        };
        let index = match index {
            None if kind == DeviceKind::Cpu => return Ok(Self::CPU),
            // A bare number only: `parse` alone would also take "+1".
            Some(digits) if digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        index.map(|index| Self::new(kind, index)).ok_or_else(refuse)
    }
}
