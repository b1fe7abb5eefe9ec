//! A layer's parameters: packed in a device's memory, or offloaded: kept elsewhere and fetched when they are used.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize, atomic::Ordering},
};

use super::{dtype::DType, layer::Layer, precision::Precision};
use crate::error::{Error, Result};

/// The type of the elements of a packed weight in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit integers, with a scale for each output channel.
    Int8,
}

impl Stored {
    /// The precision of the same name.
    pub const fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::F16 => Precision::F16,
            Self::BF16 => Precision::BF16,
            Self::Int8 => Precision::Int8,
        }
    }

    /// The bytes of this many elements.
    pub const fn bytes(self, elements: usize) -> usize {
        elements * self.precision().size()
    }
}

/// The form of a packed weight. How it is stored and the type in which it is computed are independent: kernels may read
/// one type and compute in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The layer.
    pub layer: Layer,
    /// The type of the weight's elements in memory, which decides its size and which kernels can read it. A bias is
    /// always f32.
    pub stored: Stored,
    /// The type in which its op computes: that of the op's inputs and output.
    pub computed: DType,
    /// Whether there is a bias.
    pub has_bias: bool,
}

impl Form {
    /// The form of a layer on a GPU that computes in `computed`: stored in the same type, except the scales of norms,
    /// which are f32.
    pub const fn new(layer: Layer, computed: DType, has_bias: bool) -> Self {
        let stored = match (layer, computed) {
            (Layer::Norm { .. }, _) | (_, DType::F32 | DType::U32) => Stored::F32,
            (_, DType::F16) => Stored::F16,
            (_, DType::BF16) => Stored::BF16,
        };
        Self { layer, stored, computed, has_bias }
    }
}

/// A layer's parameters in the form that a backend needs. Clones share them.
#[derive(Clone)]
pub struct Weight {
    /// The form.
    pub(super) form: Form,
    /// The bytes that the weight occupies on a device.
    bytes: usize,
    /// The memory and layout: only devices with this `Backend::weight_home` can use the weight.
    home: Arc<str>,
    data: WeightData,
    _charge: Option<Arc<Charge>>,
}

#[derive(Clone)]
pub(super) enum WeightData {
    /// On a device, or in host memory for one, in a form that only its backend knows.
    Held(Arc<dyn Any + Send + Sync>),
    /// Only its size is known.
    Dry,
    Offloaded(Arc<Offloaded>),
}

/// A weight that is on its device only while it is used.
pub(super) struct Offloaded {
    here: Mutex<Option<Weight>>,
    fetch: Box<dyn Fn() -> Result<Weight> + Send + Sync>,
}

impl Offloaded {
    fn locked(&self) -> MutexGuard<'_, Option<Weight>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weight {
    pub(super) fn new(form: Form, bytes: usize, home: Arc<str>, data: WeightData) -> Self {
        Self { form, bytes, home, data, _charge: None }
    }

    /// An offloaded weight, which `fetch` copies to the devices of `home` when it is used there. It occupies `bytes`
    /// there.
    pub(super) fn offloaded_at(
        home: &str,
        form: Form,
        bytes: usize,
        fetch: impl Fn() -> Result<Self> + Send + Sync + 'static,
    ) -> Self {
        let offloaded = Offloaded { here: Mutex::default(), fetch: Box::new(fetch) };
        Self::new(form, bytes, home.into(), WeightData::Offloaded(Arc::new(offloaded)))
    }

    /// The layer.
    pub fn layer(&self) -> Layer {
        self.form.layer
    }

    /// The type in which its op computes, which is the type of the op's inputs.
    pub fn dtype(&self) -> DType {
        self.form.computed
    }

    /// How the weight is stored.
    pub fn precision(&self) -> Precision {
        self.form.stored.precision()
    }

    /// The bytes that the weight occupies on a device.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The backend's own form of the weight; `None` if it has another type, or if there is none.
    pub(super) fn held<T: Any>(&self) -> Option<&T> {
        match &self.data {
            WeightData::Held(packed) => packed.downcast_ref(),
            WeightData::Dry | WeightData::Offloaded(_) => None,
        }
    }

    /// Counts the bytes of the weight in `meter` as long as a clone exists.
    pub(super) fn charged_to(self, meter: &Arc<Meter>) -> Self {
        let charge = Charge { meter: meter.clone(), bytes: self.bytes };
        meter.add(self.bytes);
        Self { _charge: Some(Arc::new(charge)), ..self }
    }

    /// Whether devices with this `Backend::weight_home` can use the weight.
    pub(super) fn is_at(&self, home: &str) -> bool {
        *self.home == *home
    }

    /// The packed weight, to be passed to a backend.
    pub(crate) fn packed(&self) -> Result<Self> {
        match &self.data {
            WeightData::Offloaded(offloaded) => offloaded.locked().clone().ok_or_else(|| {
                Error::request(format!("{:?} is used before it was fetched to its device", self.layer()))
            }),
            _ => Ok(self.clone()),
        }
    }

    /// Fetches an offloaded weight to its device, if it is not there yet.
    ///
    /// # Errors
    /// If its file can no longer be read, the device has no room, or the fetched weight has another layer or device.
    pub fn fetch(&self) -> Result<()> {
        if let WeightData::Offloaded(offloaded) = &self.data {
            let mut here = offloaded.locked();
            if here.is_none() {
                let came = (offloaded.fetch)()?;
                let is_here = !matches!(came.data, WeightData::Offloaded(_));
                if (came.form, &came.home) != (self.form, &self.home) || !is_here {
                    return Err(Error::request(format!(
                        "{:?} in {} cannot be fetched to its device",
                        self.layer(),
                        self.form.stored.precision()
                    ))
                    .found(format!(
                        "{:?} in {} for {}",
                        came.layer(),
                        came.form.stored.precision(),
                        came.home
                    )));
                }
                *here = Some(came);
            }
        }
        Ok(())
    }

    /// Frees the memory of an offloaded weight on its device.
    pub fn evict(&self) {
        if let WeightData::Offloaded(offloaded) = &self.data {
            *offloaded.locked() = None;
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

    /// The bytes on the device now.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever on the device.
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
