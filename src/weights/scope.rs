//! A place in a component's weights and the device that they go to.

use std::fmt::Display;

use super::Weights;
use crate::{
    backend::{Device, Layer, Weight},
    error::Result,
};

/// File pages of a packed weight this large are given back to the system at once.
const RELEASE_FROM: usize = 1 << 20;

/// A name prefix in a component's weights plus a device. Loading reads like the model: `Linear::load(&w.at("to_q"), ..)`.
pub struct Scope<'a> {
    weights: &'a Weights,
    device: &'a Device,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The top of `weights`, to be packed for `device`.
    pub fn new(weights: &'a Weights, device: &'a Device) -> Self {
        Self { weights, device, prefix: String::new() }
    }

    /// `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..*self }
    }

    /// The same place, packed for another device.
    #[must_use]
    pub fn on(&self, device: &'a Device) -> Self {
        Self { device, prefix: self.prefix.clone(), ..*self }
    }

    /// Reads `weight` here, which the file must have in `shape`, and the bias if there is to be one, and packs them.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the device has no room.
    pub fn layer(&self, layer: Layer, shape: &[usize], bias: bool) -> Result<Weight> {
        let weight = self.weights.get(&format!("{}.weight", self.prefix), shape)?;
        let bias = bias.then(|| self.weights.get(&format!("{}.bias", self.prefix), &shape[..1])).transpose()?;
        let packed = self.device.pack(layer, weight, bias)?;
        if packed.bytes >= RELEASE_FROM {
            self.weights.release();
        }
        Ok(packed)
    }
}
