//! Reading the weights of a network that is being loaded: a name prefix, the device that they are packed for, and where they
//! rest.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Offload, Reside, Weights, offload::Ahead};
use crate::{
    backend::{DType, Device, Layer, Values, Weight},
    error::Result,
};

/// Weights that are packed already, by where they rest, component, name and type, each with the memories (weight homes) that
/// have it: networks share weights that they have in common in the same memory, and devices copy them from each other.
pub type Packed = Arc<Mutex<HashMap<(Reside, String, String, DType), Vec<(String, Weight)>>>>;

/// Collects the offloaded weights of a network that is being loaded, section by section.
pub struct Shelf {
    reside: Reside,
    packed: Packed,
    sections: Mutex<Vec<Vec<Weight>>>,
}

impl Shelf {
    /// For a network with this number of sections whose weights rest at `reside`.
    pub fn new(reside: Reside, sections: usize, packed: Packed) -> Self {
        Self { reside, packed, sections: Mutex::new(vec![Vec::new(); sections]) }
    }

    /// The offloaded weights of each section; `None` if the weights stay on their devices.
    pub fn offload(self, ahead: Ahead) -> Option<Offload> {
        let sections = self.sections.into_inner().unwrap_or_else(PoisonError::into_inner);
        (self.reside != Reside::Device).then(|| Offload::new(sections, ahead))
    }

    fn put(&self, section: usize, weight: &Weight) {
        self.sections.lock().unwrap_or_else(PoisonError::into_inner)[section].push(weight.clone());
    }
}

/// A name prefix in a component's weights plus a device and the type in which it computes. Loading reads like the model: `Linear::load(&w.at("to_q"), ..)`.
pub struct Scope<'a> {
    weights: &'a Weights,
    device: &'a Device,
    dtype: DType,
    shelf: Option<&'a Shelf>,
    section: usize,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The root of `weights`, which are packed for `device`, for inputs of `dtype`, and stay there.
    pub fn new(weights: &'a Weights, device: &'a Device, dtype: DType) -> Self {
        Self { weights, device, dtype, shelf: None, section: 0, prefix: String::new() }
    }

    /// The same prefix; weights that are loaded through it are recorded on `shelf` if they are offloaded.
    #[must_use]
    pub fn on_shelf(&self, shelf: &'a Shelf) -> Self {
        Self { shelf: Some(shelf), prefix: self.prefix.clone(), ..*self }
    }

    /// The prefix extended by `name`.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..*self }
    }

    /// The same prefix, as part of section `section` of the network, which runs on `device` and computes in `dtype`.
    #[must_use]
    pub fn section(&self, section: usize, device: &'a Device, dtype: DType) -> Self {
        Self { section, device, dtype, prefix: self.prefix.clone(), ..*self }
    }

    /// Reads the layer's `weight`, which the file must have in `shape`, and its bias if it has one, and packs them: now, or
    /// each time that they are fetched.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the device has no room.
    pub fn layer(&self, layer: Layer, shape: &[usize], bias: bool) -> Result<Weight> {
        let source = Source { weights: self.weights.clone(), prefix: self.prefix.clone(), shape: shape.to_vec(), bias };
        let reside = self.shelf.map_or(Reside::Device, |shelf| shelf.reside);
        let (device, dtype) = (self.device.clone(), self.dtype);
        let offloaded = match (reside, self.shelf) {
            (_, None) => return source.pack(|weight, bias| device.pack(layer, dtype, weight, bias)),
            (Reside::Device, Some(shelf)) => {
                return self.packed_once(shelf, &source, |weight, bias| device.pack(layer, dtype, weight, bias));
            }
            (Reside::Host, Some(shelf)) => {
                let packed =
                    self.packed_once(shelf, &source, |weight, bias| device.pack_to_rest(layer, dtype, weight, bias))?;
                Weight::offloaded(&device.clone(), layer, dtype, bias, packed.bytes(), move || device.fetch(&packed))
            }
            (Reside::Disk, Some(_)) => {
                // The file is checked now, not in the middle of the first picture.
                source.values()?;
                let bytes = device.packed_bytes(layer, dtype, bias);
                Weight::offloaded(&device.clone(), layer, dtype, bias, bytes, move || {
                    source.pack(|weight, bias| device.pack(layer, dtype, weight, bias))
                })
            }
        };
        if let Some(shelf) = self.shelf {
            shelf.put(self.section, &offloaded);
        }
        Ok(offloaded)
    }

    /// The weight as another network has it in the same memory, or a copy of what another device has, or packed now.
    fn packed_once(
        &self,
        shelf: &Shelf,
        source: &Source,
        pack: impl FnOnce(Values, Option<Values>) -> Result<Weight>,
    ) -> Result<Weight> {
        // Weights that stay are counted for each device, also where several devices share them.
        let home = match shelf.reside {
            Reside::Device => self.device.id().to_string(),
            Reside::Host | Reside::Disk => self.device.weight_home().to_string(),
        };
        let key = (shelf.reside, self.weights.component().to_string(), self.prefix.clone(), self.dtype);
        let mut known = shelf.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let homes = known.entry(key).or_default();
        if let Some((_, packed)) = homes.iter().find(|(at, _)| *at == home) {
            source.values()?; // the tensors count as read
            return Ok(packed.clone());
        }
        let mut others = homes.iter().filter(|_| shelf.reside == Reside::Device).map(|(_, packed)| packed);
        let packed = match others.find_map(|packed| self.device.copy_weight(packed).transpose()).transpose()? {
            Some(copy) => {
                source.values()?;
                copy
            }
            None => source.pack(pack)?,
        };
        homes.push((home, packed.clone()));
        Ok(packed)
    }
}

/// Where one layer's tensors are.
struct Source {
    weights: Weights,
    prefix: String,
    shape: Vec<usize>,
    bias: bool,
}

impl Source {
    fn values(&self) -> Result<(Values<'_>, Option<Values<'_>>)> {
        let weight = self.weights.get(&format!("{}.weight", self.prefix), &self.shape)?;
        let bias = || self.weights.get(&format!("{}.bias", self.prefix), &self.shape[..1]);
        Ok((weight, self.bias.then(bias).transpose()?))
    }

    fn pack(&self, pack: impl FnOnce(Values, Option<Values>) -> Result<Weight>) -> Result<Weight> {
        let (weight, bias) = self.values()?;
        let packed = pack(weight, bias)?;
        self.weights.check_unchanged()?;
        Ok(packed)
    }
}
