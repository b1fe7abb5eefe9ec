//! A place in a component's weights, the device that they go to, and where they rest.

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

/// Weights that are packed already, by where they rest, component, name and type, with their homes: networks that have a
/// part in common in the same memory share it, and devices have copies of each other's.
pub type Packed = Arc<Mutex<HashMap<(Reside, String, String, DType), Vec<(String, Weight)>>>>;

/// What a network that is being loaded leaves to be brought later.
pub struct Shelf {
    reside: Reside,
    packed: Packed,
    sections: Mutex<Vec<Vec<Weight>>>,
}

impl Shelf {
    /// For a network of so many sections whose weights will rest at `reside`.
    pub fn new(reside: Reside, sections: usize, packed: Packed) -> Self {
        Self { reside, packed, sections: Mutex::new(vec![Vec::new(); sections]) }
    }

    /// What will have to be brought for each section; `None` if the weights are where they are used.
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
    /// The top of `weights`, to be packed for `device`, for inputs of `dtype`, and to stay there.
    pub fn new(weights: &'a Weights, device: &'a Device, dtype: DType) -> Self {
        Self { weights, device, dtype, shelf: None, section: 0, prefix: String::new() }
    }

    /// The same place; what is loaded from here on rests on `shelf`.
    #[must_use]
    pub fn on_shelf(&self, shelf: &'a Shelf) -> Self {
        Self { shelf: Some(shelf), prefix: self.prefix.clone(), ..*self }
    }

    /// `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        let prefix = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..*self }
    }

    /// The same place, as part of section `section` of the network, which runs on `device` and computes in `dtype`.
    #[must_use]
    pub fn section(&self, section: usize, device: &'a Device, dtype: DType) -> Self {
        Self { section, device, dtype, prefix: self.prefix.clone(), ..*self }
    }

    /// Reads `weight` here, which the file must have in `shape`, and the bias if there is to be one, and packs them: now,
    /// or for each visit.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the device has no room.
    pub fn layer(&self, layer: Layer, shape: &[usize], bias: bool) -> Result<Weight> {
        let source = Source { weights: self.weights.clone(), prefix: self.prefix.clone(), shape: shape.to_vec(), bias };
        let reside = self.shelf.map_or(Reside::Device, |shelf| shelf.reside);
        let (device, dtype) = (self.device.clone(), self.dtype);
        let visiting = match (reside, self.shelf) {
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
            shelf.put(self.section, &visiting);
        }
        Ok(visiting)
    }

    /// The weight as another network has it in the same memory, or a copy of what another device has, or packed now.
    fn packed_once(
        &self,
        shelf: &Shelf,
        source: &Source,
        pack: impl FnOnce(Values, Option<Values>) -> Result<Weight>,
    ) -> Result<Weight> {
        // What several devices have in common is counted for each of them where it stays.
        let home = match shelf.reside {
            Reside::Device => self.device.id().to_string(),
            Reside::Host | Reside::Disk => self.device.weight_home().to_string(),
        };
        let key = (shelf.reside, self.weights.component().to_string(), self.prefix.clone(), self.dtype);
        let mut known = shelf.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let homes = known.entry(key).or_default();
        if let Some((_, packed)) = homes.iter().find(|(at, _)| *at == home) {
            source.values()?; // read, as far as others are concerned
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
