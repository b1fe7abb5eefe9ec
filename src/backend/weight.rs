//! A layer's parameters: packed in a device's memory, or resting elsewhere and visiting it.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize, atomic::Ordering},
};

use super::{dtype::DType, layer::Layer};
use crate::error::{Error, Result};

/// A layer's parameters in the form that a backend wants. Clones share them.
#[derive(Clone)]
pub struct Weight {
    /// What it is.
    pub(super) layer: Layer,
    /// The type of the inputs that it is packed for.
    pub(super) dtype: DType,
    /// Whether a bias was packed along.
    pub(super) has_bias: bool,
    /// What it occupies on a device, in bytes.
    bytes: usize,
    /// Devices with this `Backend::weight_home` can use it.
    home: Arc<str>,
    data: WeightData,
    _charge: Option<Arc<Charge>>,
}

#[derive(Clone)]
pub(super) enum WeightData {
    /// On a device, or resting for one, in a form that its backend alone knows.
    Held(Arc<dyn Any + Send + Sync>),
    /// Only its size is known.
    Dry,
    Visiting(Arc<Visiting>),
}

/// A weight that is on its device only at times.
pub(super) struct Visiting {
    here: Mutex<Option<Weight>>,
    fetch: Box<dyn Fn() -> Result<Weight> + Send + Sync>,
}

impl Visiting {
    fn here(&self) -> MutexGuard<'_, Option<Weight>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weight {
    pub(super) fn new(
        layer: Layer,
        dtype: DType,
        has_bias: bool,
        bytes: usize,
        home: Arc<str>,
        data: WeightData,
    ) -> Self {
        Self { layer, dtype, has_bias, bytes, home, data, _charge: None }
    }

    /// One that `fetch` brings to the devices of `home` when it is wanted there. `bytes` is what it occupies then.
    pub(super) fn visiting_at(
        home: &str,
        layer: Layer,
        dtype: DType,
        has_bias: bool,
        bytes: usize,
        fetch: impl Fn() -> Result<Self> + Send + Sync + 'static,
    ) -> Self {
        let visiting = Visiting { here: Mutex::default(), fetch: Box::new(fetch) };
        Self::new(layer, dtype, has_bias, bytes, home.into(), WeightData::Visiting(Arc::new(visiting)))
    }

    /// What it is.
    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// The type of the inputs that it is packed for.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What it occupies on a device, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What its backend holds of it; `None` if that is of another type, or nothing.
    pub(super) fn held<T: Any>(&self) -> Option<&T> {
        match &self.data {
            WeightData::Held(packed) => packed.downcast_ref(),
            WeightData::Dry | WeightData::Visiting(_) => None,
        }
    }

    /// The same, its bytes counted by `meter` as long as a clone lives.
    pub(super) fn charged_to(self, meter: &Arc<Meter>) -> Self {
        let charge = Charge { meter: meter.clone(), bytes: self.bytes };
        meter.add(self.bytes);
        Self { _charge: Some(Arc::new(charge)), ..self }
    }

    /// Whether devices of this `Backend::weight_home` can use it.
    pub(super) fn is_at(&self, home: &str) -> bool {
        *self.home == *home
    }

    /// The weight itself, to be given to a backend.
    pub(crate) fn packed(&self) -> Result<Self> {
        match &self.data {
            WeightData::Visiting(visiting) => visiting
                .here()
                .clone()
                .ok_or_else(|| Error::request(format!("{:?} is used before it has come to its device", self.layer))),
            _ => Ok(self.clone()),
        }
    }

    /// Brings a visiting weight to its device, if it is not there.
    ///
    /// # Errors
    /// If its file can no longer be read, the device has no room, or what comes is another layer's or another device's.
    pub fn arrive(&self) -> Result<()> {
        if let WeightData::Visiting(visiting) = &self.data {
            let mut here = visiting.here();
            if here.is_none() {
                let came = (visiting.fetch)()?;
                let announced = (self.layer, self.dtype, self.has_bias, &self.home);
                let is_here = !matches!(came.data, WeightData::Visiting(_));
                if (came.layer, came.dtype, came.has_bias, &came.home) != announced || !is_here {
                    return Err(Error::request(format!(
                        "{:?} in {} was to come to its device",
                        self.layer, self.dtype
                    ))
                    .found(format!("{:?} in {} for {}", came.layer, came.dtype, came.home)));
                }
                *here = Some(came);
            }
        }
        Ok(())
    }

    /// Frees the memory of a visiting weight on its device.
    pub fn depart(&self) {
        if let WeightData::Visiting(visiting) = &self.data {
            *visiting.here() = None;
        }
    }
}

/// Bytes of packed weights on one device.
#[derive(Default)]
pub(super) struct Meter {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Meter {
    fn add(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    /// What is there now.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// The most that was ever there.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

struct Charge {
    meter: Arc<Meter>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter.live.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
