//! Facts about a device that are known before it is opened.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::{
    class::NumericsClass,
    cpu::{Convolution, Kernels},
    id::DeviceId,
    precision::Precision,
    rates::Rates,
    rules::Rules,
};
use crate::error::Error;

// This is not beside the type, because the models in `loom/` include that file without serde.
impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A device as `sdshard devices` shows it and as the planner uses it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// The device's name in a device map.
    pub id: DeviceId,
    /// The product name.
    pub name: String,
    /// The numerics class in the precision of `rules`.
    pub class: NumericsClass,
    /// The number of CPU cores that compute; 0 for a GPU.
    pub cores: usize,
    /// The system's numbers of these cores.
    pub allowed_cores: Vec<usize>,
    /// The size of the memory, in bytes.
    pub memory_bytes: u64,
    /// The bytes that a plan may use.
    pub free_bytes: u64,
    /// The bytes that the driver's context and the kernels occupy before a process stores anything.
    pub overhead_bytes: u64,
    /// The bytes that things occupy on the device, and the ops that it fuses.
    pub rules: Rules,
    /// The device's speed in the precision of `rules`.
    pub rates: Rates,
    /// Peak floating-point operations per second in f32.
    pub f32_flops: f64,
    /// The time when the rates were measured; `None` if they are assumed.
    pub rates_measured: Option<SystemTime>,
    /// Whether the device is used only where a map names it.
    pub only_named: bool,
}

impl DeviceInfo {
    /// The same device with this algorithm for convolutions, if it is a CPU.
    #[must_use]
    pub fn with_convolution(self, convolution: Convolution) -> Self {
        let Rules::Cpu(kernels, precision) = self.rules else { return self };
        let kernels = Kernels { convolution, ..kernels };
        Self { class: NumericsClass::cpu(kernels).in_type(precision), rules: Rules::Cpu(kernels, precision), ..self }
    }

    /// The same device in a precision, or in its default one; `None` if it has no such kernels.
    pub fn in_type(&self, precision: Option<Precision>) -> Option<Self> {
        let Some(precision) = precision else { return Some(self.clone()) };
        let has_type = precision != Precision::BF16 || self.class.may_have_bf16();
        let rules = self.rules.in_type(precision).filter(|_| has_type)?;
        let flops = if precision == Precision::F32 { self.f32_flops } else { self.rates.flops };
        Some(Self { class: self.class.in_type(precision), rules, rates: Rates { flops, ..self.rates }, ..self.clone() })
    }
}

/// The part of `available` bytes that a plan may use: all but max(512 MiB, 5 %), rounded down to a multiple of 256 MiB,
/// so that plans do not change with every program that starts. Below 2 GiB, which a control group or a limit may leave,
/// three quarters, rounded down to a multiple of 16 MiB.
pub fn plannable(available: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    let down_to = |step: u64, bytes: u64| bytes / step * step;
    if available < 2048 * MIB {
        down_to(16 * MIB, available / 4 * 3)
    } else {
        down_to(256 * MIB, available - (512 * MIB).max(available / 20))
    }
}

/// The error for a device that does not exist on this machine.
pub fn absent(id: DeviceId) -> Error {
    Error::input(format!("there is no device \"{id}\"")).hint("`sdshard devices` lists what can be used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_of_memory_leaves_most_of_it_to_a_plan() {
        const MIB: u64 = 1 << 20;
        for (available, plannable_mib) in [
            (0, 0),
            (16 * MIB, 0),
            (32 * MIB, 16),
            (700 * MIB, 512),
            (1024 * MIB, 768),
            (2048 * MIB - 1, 1520),
            (2048 * MIB, 1536),
            (4096 * MIB, 3584),
            (24 * 1024 * MIB, 23_296),
        ] {
            assert_eq!(plannable(available), plannable_mib * MIB, "{} MiB", available / MIB);
        }
    }
}
