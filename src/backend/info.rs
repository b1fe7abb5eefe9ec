//! What is known of a device before it is opened.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::{class::NumericsClass, dtype::DType, id::DeviceId, rates::Rates, rules::Rules};
use crate::error::Error;

// Not beside the type: the models in `loom/` have that file and no serde.
impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What `sdshard devices` shows and the planner plans with.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// Its name in a device map.
    pub id: DeviceId,
    /// What a person would call it.
    pub name: String,
    /// Its numerics class in the type of its rules.
    pub class: NumericsClass,
    /// Cores that compute; 0 for a GPU.
    pub cores: usize,
    /// Which ones, by the system's numbers.
    pub allowed_cores: Vec<usize>,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// What a plan may use, in bytes.
    pub free_bytes: u64,
    /// What a process occupies there before it holds anything: the driver's context and the kernels, in bytes.
    pub overhead_bytes: u64,
    /// What things occupy there and which ops it fuses.
    pub rules: Rules,
    /// How fast it is in the type of its rules.
    pub rates: Rates,
    /// Floating-point operations per second in f32.
    pub f32_flops: f64,
    /// When its rates were measured; `None` if they are assumed.
    pub rates_measured: Option<SystemTime>,
    /// Whether it is used only where a map names it.
    pub only_named: bool,
}

impl DeviceInfo {
    /// The same device computing in `dtype`, or in what suits it best; `None` if it has no such arithmetic.
    pub fn in_type(&self, dtype: Option<DType>) -> Option<Self> {
        let Some(dtype) = dtype else { return Some(self.clone()) };
        let rules = self.rules.in_type(dtype).filter(|_| dtype != DType::BF16 || self.class.may_have_bf16())?;
        let flops = if dtype == DType::F32 { self.f32_flops } else { self.rates.flops };
        Some(Self { class: self.class.in_type(dtype), rules, rates: Rates { flops, ..self.rates }, ..self.clone() })
    }
}

/// What a plan may use of `available` bytes: less max(512 MiB, 5 %), down to whole 256 MiB, so that plans do not flip
/// with every program that starts. Of less than 2 GiB, which a control group or a limit may leave, three quarters, down to
/// whole 16 MiB.
pub fn plannable(available: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    let down_to = |step: u64, bytes: u64| bytes / step * step;
    if available < 2048 * MIB {
        down_to(16 * MIB, available / 4 * 3)
    } else {
        down_to(256 * MIB, available - (512 * MIB).max(available / 20))
    }
}

/// The message for a device that is not there.
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
