//! A device map and a file of devices: any text is one of them or a message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sdshard::{backend::DeviceId, device_map::DeviceMap, planner::hardware};
use sdshard_fuzz::refused;

fuzz_target!(|text: &str| {
    match hardware::parse(text, "fuzz.toml") {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => refused(&error),
    }
    match DeviceMap::parse(text, "fuzz.toml") {
        Ok(map) => {
            map.check().expect("`parse` has checked the map");
            for defaults in ["cpu", "cuda:0"].map(|name| name.parse::<DeviceId>().expect("a device's name")) {
                match map.usable(&[defaults]) {
                    Ok(usable) => assert!(!usable.is_empty()),
                    Err(error) => refused(&error),
                }
            }
        }
        Err(error) => refused(&error),
    }
});
