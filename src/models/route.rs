//! Which device runs each section of a network.
//!
//! A network is a sequence of sections, the one list that cuts and messages use. Its code names no device: a section
//! begins by asking its input to be where the route says, which is free when it is there already.

use crate::backend::{Device, Keep};

/// A device for each section, in the network's order.
#[derive(Clone)]
pub struct Route(Vec<Device>);

impl Route {
    /// One device for each section.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(devices: Vec<Device>) -> Self {
        assert!(!devices.is_empty(), "a network has sections");
        Self(devices)
    }

    /// The same device for all.
    pub fn whole(device: &Device, sections: usize) -> Self {
        Self::new(vec![device.clone(); sections])
    }

    /// Where section `i` runs.
    pub fn at(&self, i: usize) -> &Device {
        &self.0[i]
    }

    /// Where the network's input is wanted.
    pub fn first(&self) -> &Device {
        &self.0[0]
    }

    /// The device of each section.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.iter()
    }

    /// Every device, each once, in the order of first use.
    pub fn devices(&self) -> Vec<&Device> {
        let mut devices: Vec<&Device> = Vec::new();
        for device in &self.0 {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices
    }
}

/// What one request keeps on each device of a route.
#[derive(Clone)]
pub struct Keeps(Vec<Keep>);

impl Keeps {
    /// One for each device.
    pub fn new(keeps: Vec<Keep>) -> Self {
        Self(keeps)
    }

    /// The one on `device`.
    ///
    /// # Panics
    /// If there is none: a route's devices all have one.
    pub fn on(&self, device: &Device) -> &Keep {
        self.0.iter().find(|keep| keep.device() == device).expect("every device of a route has a keep arena")
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Keep> {
        self.0.iter()
    }
}
