//! Reads the weights of a network that is being loaded: by a name prefix, for the device that they are packed for, and
//! to the place where they are kept.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Loaded, Offload, Reside, Weights, offload::Ahead};
use crate::{
    backend::{Device, Layer, Precision, Values, Weight},
    error::Result,
};

/// The weights that are already packed, by place, component, name and precision, each with the memories (weight homes) that
/// have it: networks share common weights in the same memory, and devices copy them from each other.
pub type Packed = Arc<Mutex<HashMap<(Reside, String, String, Precision), Vec<(String, Weight)>>>>;

/// Collects the offloaded weights of a network that is being loaded, section by section.
pub struct OffloadBuilder {
    reside: Reside,
    packed: Packed,
    sections: Mutex<Vec<Vec<Weight>>>,
}

impl OffloadBuilder {
    /// A builder for a network with this number of sections, whose weights are kept at `reside`.
    pub fn new(reside: Reside, sections: usize, packed: Packed) -> Self {
        Self { reside, packed, sections: Mutex::new(vec![Vec::new(); sections]) }
    }

    /// The offloaded weights of each section; `None` if the weights stay on their devices.
    pub fn build(self, ahead: Ahead) -> Option<Offload> {
        let sections = self.sections.into_inner().unwrap_or_else(PoisonError::into_inner);
        (self.reside != Reside::Device).then(|| Offload::new(sections, ahead))
    }

    fn put(&self, section: usize, weight: &Weight) {
        self.sections.lock().unwrap_or_else(PoisonError::into_inner)[section].push(weight.clone());
    }
}

/// A name prefix in a component's weights, with a device and the precision of the weights there. Code that loads a network
/// follows its structure: `Linear::load(&w.at("to_q"), ..)`.
pub struct Scope<'a> {
    weights: &'a Weights,
    device: &'a Device,
    precision: Precision,
    offload: Option<&'a OffloadBuilder>,
    section: usize,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The root of `weights`, which are packed for `device` in this precision, and stay there.
    pub fn new(weights: &'a Weights, device: &'a Device, precision: Precision) -> Self {
        Self { weights, device, precision, offload: None, section: 0, prefix: String::new() }
    }

    /// The same prefix; offloaded weights that are loaded through it are added to `offload`.
    #[must_use]
    pub fn with_offload(&self, offload: &'a OffloadBuilder) -> Self {
        Self { offload: Some(offload), prefix: self.prefix.clone(), ..*self }
    }

    /// The prefix extended by `name`.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..*self }
    }

    /// The same prefix in section `section` of the network, which runs on `device` in this precision.
    #[must_use]
    pub fn section(&self, section: usize, device: &'a Device, precision: Precision) -> Self {
        Self { section, device, precision, prefix: self.prefix.clone(), ..*self }
    }

    /// The same prefix for layers whose rounding would reach every pixel: f16 in place of int8.
    #[must_use]
    pub fn sensitive(&self) -> Self {
        let precision = if self.precision == Precision::Int8 { Precision::F16 } else { self.precision };
        Self { precision, prefix: self.prefix.clone(), ..*self }
    }

    /// Reads the layer's `weight`, which must have `shape` in the file, and its bias if it has one, and packs them:
    /// now, or each time that they are fetched.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the device has no room.
    pub fn layer(&self, layer: Layer, shape: &[usize], bias: bool) -> Result<Weight> {
        let tensors =
            LayerTensors { weights: self.weights.clone(), prefix: self.prefix.clone(), shape: shape.to_vec(), bias };
        let reside = self.offload.map_or(Reside::Device, |offload| offload.reside);
        let (device, precision) = (self.device.clone(), self.precision);
        let offloaded = match (reside, self.offload) {
            (_, None) => return tensors.pack(|weight, bias| device.pack(layer, precision, weight, bias)),
            (Reside::Device, Some(offload)) => {
                return self.packed_once(offload, &tensors, |weight, bias| device.pack(layer, precision, weight, bias));
            }
            (Reside::Host, Some(offload)) => {
                let packed = self.packed_once(offload, &tensors, |weight, bias| {
                    device.pack_to_host(layer, precision, weight, bias)
                })?;
                Weight::offloaded(&device.clone(), layer, precision, bias, packed.bytes(), move || {
                    device.fetch(&packed)
                })?
            }
            (Reside::Disk, Some(_)) => {
                // The file is checked now, not in the middle of the first picture.
                tensors.load()?;
                let bytes = device.packed_bytes(layer, precision, bias);
                Weight::offloaded(&device.clone(), layer, precision, bias, bytes, move || {
                    tensors.pack(|weight, bias| device.pack(layer, precision, weight, bias))
                })?
            }
        };
        if let Some(offload) = self.offload {
            offload.put(self.section, &offloaded);
        }
        Ok(offloaded)
    }

    /// The weight that another network has in the same memory, or a copy of the one on another device, or a newly
    /// packed one.
    fn packed_once(
        &self,
        offload: &OffloadBuilder,
        tensors: &LayerTensors,
        pack: impl FnOnce(Values, Option<Values>) -> Result<Weight>,
    ) -> Result<Weight> {
        // Weights that stay are counted for each device, even if several devices share them.
        let home = match offload.reside {
            Reside::Device => self.device.id().to_string(),
            Reside::Host | Reside::Disk => self.device.weight_home().to_string(),
        };
        let key = (offload.reside, self.weights.component().to_string(), self.prefix.clone(), self.precision);
        let mut known = offload.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let homes = known.entry(key).or_default();
        if let Some((_, packed)) = homes.iter().find(|(at, _)| *at == home) {
            tensors.load()?; // the tensors count as read
            return Ok(packed.clone());
        }
        let mut others = homes.iter().filter(|_| offload.reside == Reside::Device).map(|(_, packed)| packed);
        let packed = match others.find_map(|packed| self.device.copy_weight(packed).transpose()).transpose()? {
            Some(copy) => {
                tensors.load()?;
                copy
            }
            None => tensors.pack(pack)?,
        };
        homes.push((home, packed.clone()));
        Ok(packed)
    }
}

/// The tensors of one layer.
struct LayerTensors {
    weights: Weights,
    prefix: String,
    shape: Vec<usize>,
    bias: bool,
}

impl LayerTensors {
    fn load(&self) -> Result<(Loaded<'_>, Option<Loaded<'_>>)> {
        let weight = self.weights.get(&format!("{}.weight", self.prefix), &self.shape)?;
        let bias = || self.weights.get(&format!("{}.bias", self.prefix), &self.shape[..1]);
        Ok((weight, self.bias.then(bias).transpose()?))
    }

    fn pack(&self, pack: impl FnOnce(Values, Option<Values>) -> Result<Weight>) -> Result<Weight> {
        let mut tensors = self.load()?;
        self.weights.adapt(&self.prefix, &self.shape, &mut tensors)?;
        let (weight, bias) = tensors;
        let packed = pack(weight.values(), bias.as_ref().map(Loaded::values))?;
        self.weights.check_unchanged()?;
        Ok(packed)
    }
}
