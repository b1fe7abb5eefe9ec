//! A device in use: its backend and its transient arena.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use super::{Arena, Backend, Buffer, DeviceId, DeviceKind, Layer, Rates, Slab, Values, Weight, cpu, dry, sim};
use crate::error::{Error, Result};

/// A device that work can be given to. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    id: DeviceId,
    backend: Box<dyn Backend>,
    transient: Mutex<Option<Arena>>,
    /// Ranges that were ever asked for: whoever works asks.
    calls: AtomicU64,
}

/// A small arena for what outlives a section: latents, text features, keys and values.
#[derive(Clone)]
pub struct Keep {
    device: Device,
    arena: Arena,
}

/// What `sdshard devices` shows and the planner plans with.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// Its name in a device map.
    pub id: DeviceId,
    /// What a person would call it.
    pub name: String,
    /// Its numerics class in f32.
    pub class: String,
    /// Cores that compute.
    pub cores: usize,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// What a plan may use, in bytes.
    pub free_bytes: u64,
    /// What things occupy there and which ops it fuses.
    pub rules: dry::Rules,
    /// How fast it is.
    pub rates: Rates,
}

impl Device {
    /// A device over a backend.
    pub fn new(id: DeviceId, backend: impl Backend + 'static) -> Self {
        Self(Arc::new(Inner { id, backend: Box::new(backend), transient: Mutex::default(), calls: AtomicU64::new(0) }))
    }

    /// One CPU device by itself, with room for `arena_bytes` of intermediate results.
    pub fn cpu(arena_bytes: usize) -> Result<Self> {
        let device = open(&[DeviceId::CPU])?.remove(0);
        device.reserve(arena_bytes)?;
        Ok(device)
    }

    /// A device without data in place of `id`, and the ledger that it fills.
    pub fn dry(id: DeviceId, rules: dry::Rules, rates: Rates) -> (Self, Arc<dry::Ledger>) {
        let ledger = Arc::new(dry::Ledger::default());
        let device = Self::new(id, dry::Dry::new(rules, rates, ledger.clone()));
        *device.transient() = Some(Arena::new(id, "transient", Slab::Dry, usize::MAX));
        (device, ledger)
    }

    /// A device on a simulated clock in place of `id`, and the record of what it does.
    pub fn simulated(id: DeviceId, setup: sim::Setup) -> (Self, Arc<sim::Record>) {
        let (backend, record) = sim::Sim::new(id, setup);
        (Self::new(id, backend), record)
    }

    /// Its name.
    pub fn id(&self) -> DeviceId {
        self.0.id
    }

    /// Everything that decides the bits of its results.
    pub fn class(&self) -> &str {
        self.0.backend.class()
    }

    /// Devices with equal answers share packed weights.
    pub fn weight_home(&self) -> &str {
        self.0.backend.weight_home()
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    fn transient(&self) -> MutexGuard<'_, Option<Arena>> {
        self.0.transient.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the transient arena `bytes` large. Nothing may be in it.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        let mut transient = self.transient();
        let live = transient.as_ref().map_or(0, Arena::live);
        if live > 0 {
            return Err(Error::device(self.id(), format!("its arena cannot be replaced: {live} tensors are in it")));
        }
        *transient = None;
        *transient = Some(Arena::new(self.id(), "transient", self.backend().slab(bytes)?, bytes));
        Ok(())
    }

    /// A range of the transient arena.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        match &*self.transient() {
            Some(arena) => arena.alloc(bytes),
            None => Err(Error::device(self.id(), "no arena is reserved yet")),
        }
    }

    /// How often an op has asked for room. It grows while the device works.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Whether its memory holds anything; dry and simulated devices only count.
    pub fn has_data(&self) -> bool {
        !matches!(self.backend().slab(0), Ok(Slab::Dry))
    }

    /// The most that the transient arena ever held, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.transient().as_ref().map_or(0, Arena::peak_bytes)
    }

    /// Tensors in the transient arena; none between sections.
    pub fn live(&self) -> usize {
        self.transient().as_ref().map_or(0, Arena::live)
    }

    /// An arena of `bytes` beside the transient one.
    pub fn keep(&self, bytes: usize) -> Result<Keep> {
        let arena = Arena::new(self.id(), "keep", self.backend().slab(bytes)?, bytes);
        Ok(Keep { device: self.clone(), arena })
    }

    /// Brings a layer's parameters into this device's form.
    ///
    /// # Errors
    /// If the values are not as many as the layer has, are not floats, or if the device cannot run such a layer.
    pub fn pack(&self, layer: Layer, weight: Values, bias: Option<Values>) -> Result<Weight> {
        let (elements, bias_elements) = layer.elements();
        let odd_halves = matches!(layer, Layer::Geglu { out, .. } if out % 2 != 0);
        if elements == 0 || odd_halves {
            return Err(Error::input(format!("{layer:?} is not a layer")));
        }
        check_size(layer, "weight", elements, weight)?;
        if let Some(bias) = bias {
            check_size(layer, "bias", bias_elements, bias)?;
        }
        self.backend().pack(layer, weight, bias)
    }
}

fn check_size(layer: Layer, part: &str, elements: usize, values: Values) -> Result<()> {
    match values {
        Values::Data { dtype, bytes } if bytes.len() != elements * dtype.size() => {
            Err(Error::input(format!("{layer:?} needs a {part} of {elements} {dtype} elements"))
                .found(format!("{} bytes", bytes.len())))
        }
        _ => Ok(()),
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Keep {
    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.arena.alloc(bytes)
    }

    /// The most that it ever held, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }
}

/// Opens devices, in the order given. `cpu:N` devices share the cores of this process evenly among those named.
///
/// # Errors
/// If one of them is not on this machine.
pub fn open(ids: &[DeviceId]) -> Result<Vec<Device>> {
    let shares = ids.iter().filter(|id| id.kind == DeviceKind::Cpu && id.index.is_some()).count();
    let mut share = 0;
    ids.iter()
        .map(|&id| match (id.kind, id.index) {
            (DeviceKind::Cpu, None) => Ok(Device::new(id, cpu::Cpu::whole()?)),
            (DeviceKind::Cpu, Some(_)) => {
                share += 1;
                Ok(Device::new(id, cpu::Cpu::share(share - 1, shares)?))
            }
            _ => Err(absent(id)),
        })
        .collect()
}

/// The message for a device that this machine does not have.
pub fn absent(id: DeviceId) -> Error {
    let found: Vec<String> = visible().iter().map(|device| device.id.to_string()).collect();
    Error::input(format!("device \"{id}\" is not on this machine"))
        .found(found.join(", "))
        .hint("`sdshard devices` lists what can be used")
}

/// The devices of this machine, best first.
pub fn visible() -> Vec<DeviceInfo> {
    vec![cpu::info()]
}

/// What a plan may use of `available` bytes: less max(512 MiB, 5 %), down to whole 256 MiB, so that plans do not flip
/// with every program that starts.
pub fn plannable(available: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    available.saturating_sub((512 * MIB).max(available / 20)) / (256 * MIB) * (256 * MIB)
}
