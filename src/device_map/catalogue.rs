//! The catalogue of common GPUs, whose devices a map names with `like`.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::Deserialize;

use super::{fields::Located, size::parse_size, with_nearest};
use crate::{backend::DeviceKind, error::Result};

/// The content of `catalogue.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    overhead: BTreeMap<String, Overhead>,
    device: BTreeMap<String, CatalogueDevice>,
}

/// The bytes that a process occupies on a kind of device before it loads anything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Overhead {
    bytes: String,
    #[allow(dead_code)] // the source is for readers of the file
    source: String,
}

/// One device of the catalogue.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueDevice {
    /// The manufacturer's name of the device.
    pub name: String,
    /// The backend of the device: `cuda` or `wgpu`.
    pub kind: String,
    memory: String,
    /// The peak rate of dense f16 products with f32 sums, in operations per second.
    pub f16_flops: f64,
    /// The peak rate in f32, in operations per second.
    pub f32_flops: f64,
    bandwidth: String,
    link: String,
    /// The compute capability of an NVIDIA device, such as `8.6`.
    pub compute: Option<String>,
    /// The source of these figures.
    pub source: String,
}

impl CatalogueDevice {
    /// The total memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        parse_size(&self.memory).expect("a test reads every size of the catalogue")
    }

    /// The bytes per second of the device's memory.
    pub fn bandwidth(&self) -> f64 {
        bytes_per_second(&self.bandwidth)
    }

    /// The bytes per second between the device and the host.
    pub fn link(&self) -> f64 {
        bytes_per_second(&self.link)
    }
}

fn bytes_per_second(text: &str) -> f64 {
    parse_size(text.trim_end_matches("/s")).expect("a test reads every rate of the catalogue") as f64
}

fn catalogue_file() -> &'static Catalogue {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    CATALOGUE.get_or_init(|| toml::from_str(include_str!("catalogue.toml")).expect("a test reads the catalogue"))
}

/// The devices of the catalogue by the names that `like` takes.
pub fn catalogue() -> &'static BTreeMap<String, CatalogueDevice> {
    &catalogue_file().device
}

/// The bytes that a process occupies on a device of `kind` before it loads anything; zero for kinds without an entry.
pub(crate) fn overhead_bytes(kind: DeviceKind) -> u64 {
    let overhead = catalogue_file().overhead.get(kind.name());
    overhead.map_or(0, |overhead| parse_size(&overhead.bytes).expect("a test reads every size of the catalogue"))
}

/// The device of the catalogue that `like` names. Messages use `key` for a value that was made in code.
pub(crate) fn find(like: &Located<String>, key: &str) -> Result<&'static CatalogueDevice> {
    let names: Vec<&str> = catalogue().keys().map(String::as_str).collect();
    catalogue().get(&like.value.to_ascii_lowercase()).ok_or_else(|| {
        let known = format!("the catalogue has {}", names.join(", "));
        like.refuse(key, "no such device in the catalogue").found(format!("\"{}\"", like.value)).hint(with_nearest(
            &known,
            &like.value.to_ascii_lowercase().replace([' ', '_'], "-"),
            &names,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_the_catalogue_can_be_used_and_says_its_source() {
        assert!(catalogue().len() >= 27);
        for (name, model) in catalogue() {
            let kind = if model.kind == "cuda" { DeviceKind::Cuda } else { DeviceKind::Wgpu };
            assert_eq!(model.kind, kind.name(), "{name}");
            assert_eq!(model.compute.is_some(), kind == DeviceKind::Cuda, "{name}");
            assert!(model.source.len() > 20, "{name}");
            assert!((4 << 30..200 << 30).contains(&model.memory_bytes()), "{name}");
            assert!(model.f16_flops >= model.f32_flops && model.f32_flops > 1e12, "{name}");
            assert!((50e9..5e12).contains(&model.bandwidth()) && (5e9..=100e9).contains(&model.link()), "{name}");
            // This range holds the operations per byte of current GPUs, but not a figure that is wrong by a power of
            // ten.
            assert!((20.0..500.0).contains(&(model.f16_flops / model.bandwidth())), "{name}");
        }
        for kind in [DeviceKind::Cuda, DeviceKind::Wgpu] {
            assert!(overhead_bytes(kind) > 0);
        }
        assert_eq!(overhead_bytes(DeviceKind::Cpu), 0);
        assert!(catalogue_file().overhead.values().all(|overhead| overhead.source.len() > 20));
    }
}
