//! Descriptions of devices.

use std::time::SystemTime;

use sdshard::{backend::DeviceInfo, device_map::size::format_bytes};

/// The description of a device in one line.
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

/// The reason why there are no CUDA devices; `None` if there are any.
#[cfg(feature = "cuda")]
pub fn cuda_absence() -> Option<String> {
    sdshard::backend::cuda::absence()
}

/// The reason why there are no CUDA devices; `None` if there are any.
#[cfg(not(feature = "cuda"))]
pub fn cuda_absence() -> Option<String> {
    Some("not in this build".into())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
