//! Reading the names of devices: `cpu`, `cpu:1`, `cuda:0`, `wgpu:2`.

use std::str::FromStr;

pub use crate::device_id::{DeviceId, DeviceKind};
use crate::error::{Error, Result};

impl FromStr for DeviceId {
    type Err = Error;

    /// Reads `cpu`, `cpu:N`, `cuda:N` or `wgpu:N`.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::input(format!("\"{text}\" is not the name of a device"))
                .hint("a device is \"cpu\", \"cpu:N\", \"cuda:N\" or \"wgpu:N\", N counted from 0")
        };
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index)),
            None => (text, None),
        };
        let kind = match kind {
            "cpu" => DeviceKind::Cpu,
            "cuda" => DeviceKind::Cuda,
            "wgpu" => DeviceKind::Wgpu,
            _ => return Err(refuse()),
        };
        let index = match index {
            None if kind == DeviceKind::Cpu => return Ok(Self::CPU),
            // Only digits are accepted: `parse` alone would also take "+1".
            Some(digits) if digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        index.map(|index| Self::new(kind, index)).ok_or_else(refuse)
    }
}
