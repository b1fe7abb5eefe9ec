//! The device `cpu` of this machine.

use super::{
    Cpu, available,
    kernels::{Convolution, Kernels},
    path, peak,
    simd::Path,
    threads,
};
use crate::{
    backend::{
        class::NumericsClass,
        id::DeviceId,
        info::{DeviceInfo, plannable},
        precision::Precision,
        rates::{self, Measured, Rates},
        rules::Rules,
    },
    input,
};

/// The device `cpu` of this machine.
pub fn info() -> DeviceInfo {
    let memory = available::memory();
    // Processes that share the cores also share the memory.
    let available = memory.free / threads::processes() as u64;
    let kernels = Kernels::from(path().unwrap_or(Path::Portable));
    let measured = measured_rates(kernels.path);
    DeviceInfo {
        id: DeviceId::CPU,
        name: model_name(),
        class: NumericsClass::cpu(kernels),
        cores: threads::cores().len(),
        allowed_cores: threads::cores().to_vec(),
        memory_bytes: memory.all,
        free_bytes: plannable(available),
        overhead_bytes: 0,
        rules: Rules::Cpu(kernels, Precision::F32),
        rates: measured.rates,
        f32_flops: measured.rates.flops,
        rates_measured: measured.at,
        only_named: false,
    }
}

/// The speed of all cores of this process together: measured at most once, by this process or an earlier one. The rate
/// of operations is that of dense products; [`cost::timed_flops`](super::cost::timed_flops) has the time of others.
fn measured_rates(path: Path) -> Measured {
    let kernels = Kernels { path, convolution: Convolution::Direct };
    let cores = threads::cores().len();
    rates::remembered(&format!("{}, {}, {cores} cores", model_name(), NumericsClass::cpu(kernels)), || {
        let measured = Cpu::whole(kernels.convolution).and_then(peak::measure_rates);
        measured.inspect_err(|error| tracing::debug!("how fast the cores are cannot be measured: {error}")).ok()
    })
    // A device that cannot be measured cannot compute either: planning reports the reason elsewhere.
    .unwrap_or(Measured { rates: Rates { flops: 2e10 * cores as f64, bandwidth: 1e10, link: 5e9 }, at: None })
}

/// The name of the processor.
pub fn model_name() -> String {
    let cpuinfo = input::text(std::path::Path::new("/proc/cpuinfo")).unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}
