//! Measures how fast each component and each device map is on this machine, and how near each data type is to f32.

pub mod components;
pub mod dtypes;
pub mod maps;
pub mod page;

use crate::{
    backend::{self, DeviceId, DeviceInfo, Precision},
    error::{Error, Result},
};

/// A device of this machine in a precision, or in its own.
///
/// # Errors
/// If there is no such device, or it has no such arithmetic.
pub fn device_in(id: DeviceId, precision: Option<Precision>) -> Result<DeviceInfo> {
    let info = backend::visible().into_iter().find(|info| info.id == id);
    let info = info.ok_or_else(|| backend::registry::absent(id))?;
    info.in_type(precision).ok_or_else(|| {
        let precision = precision.map_or("", Precision::name);
        Error::input(format!("--dtype: {id} has no {precision} arithmetic")).found(info.class.to_string())
    })
}

/// The middle one of sorted values, or the mean of the two middle ones.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(super::median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(super::median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
