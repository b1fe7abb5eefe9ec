//! `sdshard devices`: lists the devices of this machine.

use std::time::{Instant, UNIX_EPOCH};

use sdshard::{backend, error::Result};
use serde_json::json;

use super::{
    args::DevicesArgs,
    check,
    describe::{cuda_absence, describe},
    model,
    progress::Console,
};

/// Prints a line for each device.
pub fn run(args: &DevicesArgs, console: &Console) -> Result<()> {
    if args.measure {
        backend::rates::measure_anew();
    }
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
                    "numerics": device.class.to_string(),
                    "cores": device.cores,
                    "memory_bytes": device.memory_bytes,
                    "free_bytes": device.free_bytes,
                    "gflops": device.rates.flops / 1e9,
                    "bandwidth_gb_per_s": device.rates.bandwidth / 1e9,
                    "link_gb_per_s": device.rates.link / 1e9,
                    "rates_measured": device.rates_measured.and_then(|at| Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs())),
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
