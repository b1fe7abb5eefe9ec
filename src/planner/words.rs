//! Figures and lists as messages and plans write them.

use crate::backend::DeviceId;

/// Devices in words, neighbours together: `cuda:0 to cuda:7, cpu`.
pub(super) fn device_list(devices: &[DeviceId]) -> String {
    let follows = |a: &DeviceId, b: &DeviceId| a.kind == b.kind && a.index.map(|index| index + 1) == b.index;
    let words = devices.chunk_by(follows).map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first} to {last}"),
        few => few.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// `1 picture`, `12 pictures`; of a queue that does not end, many.
pub(super) fn pictures(images: usize) -> String {
    match images {
        1 => "one picture".to_string(),
        usize::MAX => "many pictures".to_string(),
        _ => format!("{images} pictures"),
    }
}

/// The time for all pictures, or that of one of very many.
pub(super) fn time(images: usize, all: f64) -> String {
    match images {
        usize::MAX => format!("{} each", seconds(all / images as f64)),
        _ => seconds(all),
    }
}

/// Images per second for people; by the minute where that reads better.
pub(crate) fn per_second(rate: f64) -> String {
    if rate >= 0.1 || rate == 0.0 {
        format!("{} images per second", significant(rate))
    } else {
        format!("{} images per minute", significant(60.0 * rate))
    }
}

/// Seconds in words.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{} µs", significant(s * 1e6)),
        s if s < 1.0 => format!("{} ms", significant(s * 1e3)),
        s if s < 600.0 => format!("{} s", significant(s)),
        s if s < 36_000.0 => format!("{} min", significant(s / 60.0)),
        s => format!("{} h", significant(s / 3600.0)),
    }
}

/// A number with three digits.
fn significant(value: f64) -> String {
    let digits = if value <= 0.0 { 0 } else { (2 - value.log10().floor() as i32).clamp(0, 6) as usize };
    format!("{value:.digits$}")
}
