//! The bytes that things occupy on a kind of device, and the ops that it fuses.

use super::{cpu::Kernels, dtype::DType};

/// The kind of device, with what its cost functions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// CPU cores with these kernels.
    Cpu(Kernels),
    /// A GPU through CUDA that computes in this type.
    Gpu(DType),
    /// A GPU through wgpu that computes in this type.
    Wgpu(DType),
}

impl Rules {
    /// The type of weights and of results.
    pub const fn dtype(self) -> DType {
        match self {
            Rules::Cpu(_) => DType::F32,
            Rules::Gpu(dtype) | Rules::Wgpu(dtype) => dtype,
        }
    }

    /// The same kind of device computing in `dtype`; `None` if it has no such kernels.
    pub fn in_type(self, dtype: DType) -> Option<Self> {
        match (self, dtype) {
            (Rules::Cpu(_), DType::F32) => Some(self),
            (Rules::Gpu(_), DType::F32 | DType::F16 | DType::BF16) => Some(Rules::Gpu(dtype)),
            (Rules::Wgpu(_), DType::F32 | DType::F16) => Some(Rules::Wgpu(dtype)),
            _ => None,
        }
    }
}
