//! `sdshard devices`: what this machine has.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sdshard::{
    backend::{self, DeviceInfo},
    error::Result,
    planner::size::format_bytes,
};
use serde_json::json;

use super::{DevicesArgs, check, model, progress::Console};

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
                    "numerics": device.class,
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

/// A device in a line.
pub fn describe(device: &DeviceInfo) -> String {
    format!(
        "{}  {}, {}{} of {} free, {:.0} GFLOP/s, {:.0} GB/s ({}), numerics {}",
        device.id,
        device.name,
        if device.cores > 0 { format!("{} cores, ", device.cores) } else { String::new() },
        format_bytes(device.free_bytes),
        format_bytes(device.memory_bytes),
        device.rates.flops / 1e9,
        device.rates.bandwidth / 1e9,
        age(device.rates_measured, SystemTime::now()),
        device.class,
    )
}

/// How long ago rates were measured.
fn age(measured: Option<SystemTime>, now: SystemTime) -> String {
    let Some(at) = measured else { return "assumed".into() };
    match now.duration_since(at).unwrap_or_default().as_secs() {
        0..60 => "measured just now".into(),
        seconds @ 60..3600 => format!("measured {} min ago", seconds / 60),
        seconds @ 3600..172_800 => format!("measured {} h ago", seconds / 3600),
        seconds => format!("measured {} days ago", seconds / 86_400),
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_age_is_said_in_the_unit_that_suits_it() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000_000);
        let ago = |seconds| age(Some(now - Duration::from_secs(seconds)), now);
        assert_eq!(ago(59), "measured just now");
        assert_eq!(ago(3599), "measured 59 min ago");
        assert_eq!(ago(86_400), "measured 24 h ago");
        assert_eq!(ago(9 * 86_400), "measured 9 days ago");
        assert_eq!(age(Some(now + Duration::from_secs(60)), now), "measured just now", "a clock that was set back");
        assert_eq!(age(None, now), "assumed");
    }
}
