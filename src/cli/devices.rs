//! `sdshard devices`: what this machine has.

use std::time::Instant;

use sdshard::{
    backend::{self, DeviceInfo},
    error::Result,
    planner::size::format_bytes,
};
use serde_json::json;

use super::{DevicesArgs, check, model, progress::Console};

/// Prints a line for each device.
pub fn run(args: &DevicesArgs, console: &Console) -> Result<()> {
    // A machine that was busy the first time is not slow for ever.
    backend::rates::measure_anew();
    let begun = Instant::now();
    let devices = backend::visible();
    if args.check {
        return check::run(&devices, begun, model::built_in_alone(), console);
    }
    if args.json {
        let devices: Vec<_> = devices
            .iter()
            .map(|device| {
                json!({
                    "device": device.id.to_string(),
                    "name": device.name,
                    "numerics": device.class,
                    "cores": device.cores,
                    "memory_bytes": device.memory_bytes,
                    "free_bytes": device.free_bytes,
                    "gflops": device.rates.flops / 1e9,
                    "bandwidth_gb_per_s": device.rates.bandwidth / 1e9,
                    "link_gb_per_s": device.rates.link / 1e9,
                })
            })
            .collect();
        return console.print(&json!(devices).to_string());
    }
    for device in &devices {
        console.print(&describe(device))?;
    }
    console.note("the cores can be shared out: a device map may name cpu:0, cpu:1, ...");
    if devices.iter().any(|device| device.only_named) {
        console.note(
            "used only where a device map names them: wgpu devices that are the processor itself or stand beside cuda \
             devices, and cuda devices without kernels",
        );
    }
    if let Some(why) = cuda_absence() {
        console.note(&format!("cuda: {why}"));
    }
    Ok(())
}

/// A device in a line.
pub fn describe(device: &DeviceInfo) -> String {
    format!(
        "{}  {}, {}{} of {} free, {:.0} GFLOP/s, {:.0} GB/s, numerics {}",
        device.id,
        device.name,
        if device.cores > 0 { format!("{} cores, ", device.cores) } else { String::new() },
        format_bytes(device.free_bytes),
        format_bytes(device.memory_bytes),
        device.rates.flops / 1e9,
        device.rates.bandwidth / 1e9,
        device.class,
    )
}

/// Why there are no devices of CUDA, if there are none.
#[cfg(feature = "cuda")]
pub fn cuda_absence() -> Option<String> {
    backend::cuda::absence()
}

/// Why there are no devices of CUDA, if there are none.
#[cfg(not(feature = "cuda"))]
pub fn cuda_absence() -> Option<String> {
    Some("not in this build".into())
}
