//! Numbers and lists as text, for messages and plans.

use crate::backend::DeviceId;

/// A list of devices, with consecutive numbers as a range: `cuda:0 to cuda:7, cpu`.
pub(super) fn device_list(devices: &[DeviceId]) -> String {
    let follows = |a: &DeviceId, b: &DeviceId| a.kind == b.kind && a.index.map(|index| index + 1) == b.index;
    let words = devices.chunk_by(follows).map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first} to {last}"),
        few => few.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// A number of pictures as text: `one picture`, `12 pictures`; `many pictures` for an endless queue.
pub(super) fn pictures(images: usize) -> String {
    match images {
        1 => "one picture".to_string(),
        usize::MAX => "many pictures".to_string(),
        _ => format!("{images} pictures"),
    }
}

/// The time for all pictures as text; for an endless queue the time of one picture.
pub(super) fn time(images: usize, all: f64) -> String {
    match images {
        usize::MAX => format!("{} each", seconds(all / images as f64)),
        _ => seconds(all),
    }
}

/// A rate in images per second as text; per minute if it is below 0.1.
pub(crate) fn per_second(rate: f64) -> String {
    if rate >= 0.1 || rate == 0.0 {
        format!("{} images per second", significant(rate))
    } else {
        format!("{} images per minute", significant(60.0 * rate))
    }
}

/// A time in seconds as text, in a suitable unit.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{} µs", significant(s * 1e6)),
        s if s < 1.0 => format!("{} ms", significant(s * 1e3)),
        s if s < 600.0 => format!("{} s", significant(s)),
        s if s < 36_000.0 => format!("{} min", significant(s / 60.0)),
        s => format!("{} h", significant(s / 3600.0)),
    }
}

/// A number with three significant digits.
fn significant(value: f64) -> String {
    let digits = if value <= 0.0 { 0 } else { (2 - value.log10().floor() as i32).clamp(0, 6) as usize };
    format!("{value:.digits$}")
}
