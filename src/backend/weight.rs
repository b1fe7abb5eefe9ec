//! A layer's parameters: packed in a device's memory, or offloaded: resting elsewhere and fetched when they are used.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize, atomic::Ordering},
};

use super::{dtype::DType, layer::Layer};
use crate::error::{Error, Result};

/// How the elements of a packed weight lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As 32-bit floats.
    F32,
    /// In IEEE half precision.
    F16,
    /// As bfloat16.
    BF16,
}

impl Stored {
    /// The type of the elements.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }

    /// What so many elements occupy.
    pub const fn bytes(self, elements: usize) -> usize {
        elements * self.dtype().size()
    }
}

/// What a packed weight is. How it is stored and in which type it is computed are two questions: kernels may read one type
/// and compute in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The layer.
    pub layer: Layer,
    /// How the elements of its weight lie in memory, which decides what it occupies and which kernels can read it. A bias is
    /// f32 in every form.
    pub stored: Stored,
    /// The type in which its op computes: that of the op's inputs and output.
    pub computed: DType,
    /// Whether a bias is packed along.
    pub has_bias: bool,
}

impl Form {
    /// The form of a layer that is computed in `computed`: stored in the same type, but for the scales of norms, which are
    /// f32.
    pub const fn new(layer: Layer, computed: DType, has_bias: bool) -> Self {
        let stored = match (layer, computed) {
            (Layer::Norm { .. }, _) | (_, DType::F32 | DType::U32) => Stored::F32,
            (_, DType::F16) => Stored::F16,
            (_, DType::BF16) => Stored::BF16,
        };
        Self { layer, stored, computed, has_bias }
    }
}

/// A layer's parameters in the form that a backend wants. Clones share them.
#[derive(Clone)]
pub struct Weight {
    /// What it is.
    pub(super) form: Form,
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
    Offloaded(Arc<Offloaded>),
}

/// A weight that is on its device only at times.
pub(super) struct Offloaded {
    here: Mutex<Option<Weight>>,
    fetch: Box<dyn Fn() -> Result<Weight> + Send + Sync>,
}

impl Offloaded {
    fn here(&self) -> MutexGuard<'_, Option<Weight>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weight {
    pub(super) fn new(form: Form, bytes: usize, home: Arc<str>, data: WeightData) -> Self {
        Self { form, bytes, home, data, _charge: None }
    }

    /// One that `fetch` brings to the devices of `home` when it is wanted there. `bytes` is what it occupies then.
    pub(super) fn offloaded_at(
        home: &str,
        form: Form,
        bytes: usize,
        fetch: impl Fn() -> Result<Self> + Send + Sync + 'static,
    ) -> Self {
        let offloaded = Offloaded { here: Mutex::default(), fetch: Box::new(fetch) };
        Self::new(form, bytes, home.into(), WeightData::Offloaded(Arc::new(offloaded)))
    }

    /// What it is.
    pub fn layer(&self) -> Layer {
        self.form.layer
    }

    /// The type in which its op computes: that of the inputs that it is packed for.
    pub fn dtype(&self) -> DType {
        self.form.computed
    }

    /// What it occupies on a device, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What its backend holds of it; `None` if that is of another type, or nothing.
    pub(super) fn held<T: Any>(&self) -> Option<&T> {
        match &self.data {
            WeightData::Held(packed) => packed.downcast_ref(),
            WeightData::Dry | WeightData::Offloaded(_) => None,
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
            WeightData::Offloaded(offloaded) => offloaded
                .here()
                .clone()
                .ok_or_else(|| Error::request(format!("{:?} is used before it has come to its device", self.layer()))),
            _ => Ok(self.clone()),
        }
    }

    /// Fetches an offloaded weight to its device, if it is not there.
    ///
    /// # Errors
    /// If its file can no longer be read, the device has no room, or what comes is another layer's or another device's.
    pub fn fetch(&self) -> Result<()> {
        if let WeightData::Offloaded(offloaded) = &self.data {
            let mut here = offloaded.here();
            if here.is_none() {
                let came = (offloaded.fetch)()?;
                let is_here = !matches!(came.data, WeightData::Offloaded(_));
                if (came.form, &came.home) != (self.form, &self.home) || !is_here {
                    return Err(Error::request(format!(
                        "{:?} in {} was to come to its device",
                        self.layer(),
                        self.dtype()
                    ))
                    .found(format!("{:?} in {} for {}", came.layer(), came.dtype(), came.home)));
                }
                *here = Some(came);
            }
        }
        Ok(())
    }

    /// Frees the memory of an offloaded weight on its device.
    pub fn evict(&self) {
        if let WeightData::Offloaded(offloaded) = &self.data {
            *offloaded.here() = None;
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
