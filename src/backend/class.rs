//! Numerics classes: everything that decides the bits of a result.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{
    cpu::{Convolution, Kernels},
    id::DeviceKind,
    precision::Precision,
};

/// Devices of one class give the same bits. It prints as in `cpu avx512 winograd f32` or `cuda sm_90 as sm_80 f16`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumericsClass {
    /// The kind of device.
    pub kind: DeviceKind,
    /// The kernels that run there.
    pub kernels: KernelPath,
    /// How weights are stored and products computed.
    pub precision: Precision,
}

/// The kernels of a backend, as far as they decide the bits of a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelPath {
    /// Kernels of the CPU.
    Cpu(Kernels),
    /// Kernels of CUDA, for one compute capability.
    Capability {
        /// The GPU's compute capability, 89 for 8.9; `None` if it is not known.
        gpu: Option<u32>,
        /// The compute capability that the code was compiled for, if it is another one.
        code: Option<u32>,
    },
    /// Shaders of wgpu on the adapter and driver with these names. Emulated f16 is part of the name.
    Adapter(String),
    /// The device computes nothing.
    None,
}

impl NumericsClass {
    /// The class of these kernels of the CPU with weights in f32.
    pub const fn cpu(kernels: Kernels) -> Self {
        Self { kind: DeviceKind::Cpu, kernels: KernelPath::Cpu(kernels), precision: Precision::F32 }
    }

    /// The algorithm of a CPU's convolutions; the default for other devices.
    pub fn convolution(&self) -> Convolution {
        match self.kernels {
            KernelPath::Cpu(kernels) => kernels.convolution,
            _ => Convolution::default(),
        }
    }

    /// The class of the same kernels in another precision.
    #[must_use]
    pub fn in_type(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// Whether a device with these kernels may compute in bf16: NVIDIA's GPUs do from compute capability 8.0 on.
    pub(super) fn may_have_bf16(&self) -> bool {
        !matches!(self.kernels, KernelPath::Capability { gpu: Some(capability), .. } if capability < 80)
    }
}

impl fmt::Display for NumericsClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match &self.kernels {
            KernelPath::Cpu(kernels) => write!(f, " {kernels}")?,
            KernelPath::Capability { gpu, code } => {
                match gpu {
                    Some(capability) => write!(f, " sm_{capability}")?,
                    None => f.write_str(" sm_unknown")?,
                }
                if let Some(code) = code {
                    write!(f, " as sm_{code}")?;
                }
            }
            KernelPath::Adapter(name) => write!(f, " {name}")?,
            KernelPath::None => {}
        }
        write!(f, " {}", self.precision)
    }
}

impl Serialize for NumericsClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Path;

    #[test]
    fn a_class_prints_as_kind_kernels_and_type() {
        let direct = Kernels { path: Path::Avx512, convolution: Convolution::Direct };
        let cuda = |gpu, code| KernelPath::Capability { gpu, code };
        for (kind, kernels, precision, text) in [
            (DeviceKind::Cpu, KernelPath::Cpu(Path::Avx512.into()), Precision::F32, "cpu avx512 winograd f32"),
            (DeviceKind::Cpu, KernelPath::Cpu(direct), Precision::F32, "cpu avx512 f32"),
            (DeviceKind::Cpu, KernelPath::Cpu(direct), Precision::Int8, "cpu avx512 int8"),
            (DeviceKind::Cuda, cuda(Some(89), None), Precision::F16, "cuda sm_89 f16"),
            (DeviceKind::Cuda, cuda(Some(90), Some(80)), Precision::BF16, "cuda sm_90 as sm_80 bf16"),
            (DeviceKind::Cuda, cuda(None, None), Precision::F16, "cuda sm_unknown f16"),
            (
                DeviceKind::Wgpu,
                KernelPath::Adapter("a card, its driver 1.2".into()),
                Precision::F16,
                "wgpu a card, its driver 1.2 f16",
            ),
            (DeviceKind::Cuda, KernelPath::None, Precision::F16, "cuda f16"),
        ] {
            let class = NumericsClass { kind, kernels, precision };
            assert_eq!(class.to_string(), text);
            assert_eq!(class.in_type(Precision::F32).to_string(), format!("{} f32", text.rsplit_once(' ').unwrap().0));
        }
    }
}
