//! The bytes that things occupy on a kind of device, and the ops that it fuses.

use super::{cpu::Kernels, precision::Precision};

/// The kind of device, with what its cost functions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// CPU cores with these kernels, and weights in this precision.
    Cpu(Kernels, Precision),
    /// A GPU through CUDA that computes in this precision.
    Gpu(Precision),
    /// A GPU through wgpu that computes in this precision.
    Wgpu(Precision),
}

impl Rules {
    /// The precision of weights.
    pub const fn precision(self) -> Precision {
        match self {
            Rules::Cpu(_, precision) | Rules::Gpu(precision) | Rules::Wgpu(precision) => precision,
        }
    }

    /// The same kind of device in another precision; `None` if it has no such kernels.
    pub fn in_type(self, precision: Precision) -> Option<Self> {
        match (self, precision) {
            (Rules::Cpu(kernels, _), _) => Some(Rules::Cpu(kernels, precision)),
            (Rules::Gpu(_), Precision::F32 | Precision::F16 | Precision::BF16) => Some(Rules::Gpu(precision)),
            (Rules::Wgpu(_), Precision::F32 | Precision::F16) => Some(Rules::Wgpu(precision)),
            _ => None,
        }
    }
}
