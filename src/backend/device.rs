//! A device in use: its backend and its transient arena.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::{
    Arena, Backend, Buffer, DType, DeviceId, DeviceKind, Layer, Rates, Slab, Values, Weight, cpu, dry, sim,
    weight::Meter,
};
use crate::error::{Error, Result};

/// A device that work can be given to. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    id: DeviceId,
    backend: Arc<dyn Backend>,
    weights: Arc<Meter>,
    transient: Mutex<Option<Arena>>,
    /// Ranges that were ever asked for: whoever works asks.
    calls: Arc<AtomicU64>,
}

/// Kernels count a layer's elements in 32 bits, some of them signed.
const MOST_ELEMENTS: usize = 1 << 31;

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
    /// Its numerics class in the type of its rules.
    pub class: String,
    /// Cores that compute; 0 for a GPU.
    pub cores: usize,
    /// Which ones, by the system's numbers.
    pub allowed_cores: Vec<usize>,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// What a plan may use, in bytes.
    pub free_bytes: u64,
    /// What a process occupies there before it holds anything: the driver's context and the kernels, in bytes.
    pub overhead_bytes: u64,
    /// What things occupy there and which ops it fuses.
    pub rules: dry::Rules,
    /// How fast it is in the type of its rules.
    pub rates: Rates,
    /// Floating-point operations per second in f32.
    pub f32_flops: f64,
    /// When its rates were measured; `None` if they are assumed.
    pub rates_measured: Option<SystemTime>,
    /// Whether it is used only where a map names it.
    pub only_named: bool,
}

impl DeviceInfo {
    /// The same device computing in `dtype`, or in what suits it best; `None` if it has no such arithmetic.
    pub fn in_type(&self, dtype: Option<DType>) -> Option<Self> {
        let Some(dtype) = dtype else { return Some(self.clone()) };
        let rules = self.rules.in_type(dtype).filter(|_| dtype != DType::BF16 || self.has_bf16())?;
        let flops = if dtype == DType::F32 { self.f32_flops } else { self.rates.flops };
        Some(Self { class: class_in(&self.class, dtype), rules, rates: Rates { flops, ..self.rates }, ..self.clone() })
    }

    /// NVIDIA's have it from compute capability 8.0 on.
    fn has_bf16(&self) -> bool {
        let capability = self.class.split_whitespace().find_map(|word| word.strip_prefix("sm_")?.parse::<u32>().ok());
        capability.is_none_or(|capability| capability >= 80)
    }
}

/// A numerics class in another type, which is its last word.
pub fn class_in(class: &str, dtype: DType) -> String {
    match class.rsplit_once(' ') {
        Some((kind, _)) => format!("{kind} {dtype}"),
        None => dtype.to_string(),
    }
}

/// A device to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Which one.
    pub id: DeviceId,
    /// The cores that it shall compute on; `None` for its even share. Only the CPU has cores to choose from.
    pub cores: Option<Vec<usize>>,
    /// The number of the adapter behind a `wgpu` device; `None` for the device's own number.
    pub adapter: Option<usize>,
}

impl From<DeviceId> for Opening {
    fn from(id: DeviceId) -> Self {
        Self { id, cores: None, adapter: None }
    }
}

impl Device {
    /// A device over a backend.
    pub(crate) fn new(id: DeviceId, backend: impl Backend + 'static) -> Self {
        Self::over(id, Arc::new(backend), Arc::default(), Arc::default())
    }

    fn over(id: DeviceId, backend: Arc<dyn Backend>, weights: Arc<Meter>, calls: Arc<AtomicU64>) -> Self {
        Self(Arc::new(Inner { id, backend, weights, transient: Mutex::default(), calls }))
    }

    /// The same device with a transient arena of its own, of `bytes`: for work that shares the device with others
    /// between two of its ops.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn lane(&self, bytes: usize) -> Result<Self> {
        let Inner { id, backend, weights, calls, .. } = &*self.0;
        let lane = Self::over(*id, backend.clone(), weights.clone(), calls.clone());
        lane.reserve(bytes)?;
        Ok(lane)
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
        let device = Self::new(id, dry::Dry::new(id, rules, rates, ledger.clone()));
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

    fn slab(&self, bytes: usize) -> Result<Slab> {
        self.backend().slab(bytes).map_err(|error| error.of_device(self.id()))
    }

    /// Makes the transient arena `bytes` large. Nothing may be in it.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        let mut transient = self.transient();
        let live = transient.as_ref().map_or(0, Arena::live);
        if live > 0 {
            return Err(Error::device(self.id(), format!("its arena cannot be replaced: {live} tensors are in it")));
        }
        *transient = None;
        *transient = Some(Arena::new(self.id(), "transient", self.slab(bytes)?, bytes));
        Ok(())
    }

    /// A range of the transient arena.
    pub(crate) fn alloc(&self, bytes: usize, dtype: DType) -> Result<Buffer> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        match &*self.transient() {
            Some(arena) => arena.alloc(bytes, dtype),
            None => Err(Error::device(self.id(), "no arena is reserved yet")),
        }
    }

    /// Does `work`, whose ops the device may take as one: see [`Backend::hold`].
    ///
    /// # Errors
    /// As `work`, and if the device fails.
    pub(crate) fn as_one<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        struct Held<'a>(&'a dyn Backend);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                // After a panic. Else nothing is held any more.
                drop(self.0.release());
            }
        }
        self.backend().hold();
        let held = Held(self.backend());
        let done = work();
        // Also what precedes a failure: nothing may stay behind.
        let released = held.0.release();
        let done = done?;
        released.map(|()| done)
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
        let arena = Arena::new(self.id(), "keep", self.slab(bytes)?, bytes);
        Ok(Keep { device: self.clone(), arena })
    }

    /// Whether ops can have inputs of this type here.
    pub fn computes_in(&self, dtype: DType) -> bool {
        self.backend().computes_in(dtype)
    }

    /// Brings a layer's parameters into this device's form, for inputs of `dtype`.
    ///
    /// # Errors
    /// If the values are not as many as the layer has, are not floats, or if the device cannot run such a layer.
    pub fn pack(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.check_layer(layer, dtype, weight, bias)?;
        let packed = self.backend().pack(layer, dtype, weight, bias).map_err(|error| error.of_device(self.id()))?;
        Ok(packed.charged_to(&self.0.weights))
    }

    /// The same for a weight that is to rest in the host's memory: its bytes are not counted as the device's.
    ///
    /// # Errors
    /// As [`Device::pack`].
    pub fn pack_to_rest(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.check_layer(layer, dtype, weight, bias)?;
        self.backend().pack_to_rest(layer, dtype, weight, bias).map_err(|error| error.of_device(self.id()))
    }

    /// A copy of a weight that another device has packed; `None` if it has to be packed here.
    ///
    /// # Errors
    /// If this device has no room, or one of them fails.
    pub fn copy_weight(&self, packed: &Weight) -> Result<Option<Weight>> {
        let copy = self.backend().copy_weight(packed)?;
        Ok(copy.map(|copy| copy.charged_to(&self.0.weights)))
    }

    /// What a layer occupies here once it is packed for inputs of `dtype`, in bytes.
    /// Saturates where [`Device::pack`] would refuse the layer for its size.
    pub fn packed_bytes(&self, layer: Layer, dtype: DType, has_bias: bool) -> usize {
        match layer.elements() {
            (weight, bias) if weight.max(bias) < MOST_ELEMENTS => self.backend().packed_bytes(layer, dtype, has_bias),
            _ => usize::MAX,
        }
    }

    /// Copies a weight that rests in the host's memory to this device.
    ///
    /// # Errors
    /// If the device has no room, or the weight was not packed to rest for it.
    pub fn fetch(&self, resting: &Weight) -> Result<Weight> {
        if !resting.is_on(self) {
            return Err(Error::request(format!("{:?} does not rest for {}", resting.layer, self.id())));
        }
        let here = self.backend().fetch(resting).map_err(|error| error.of_device(self.id()))?;
        Ok(here.charged_to(&self.0.weights))
    }

    /// Refuses what is no layer, values that are not as many as it has, and a type that the device does not have.
    fn check_layer(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<()> {
        let (elements, bias_elements) = layer.elements();
        let odd_halves = matches!(layer, Layer::Geglu { out, .. } if out % 2 != 0);
        if elements == 0 || odd_halves {
            return Err(Error::input(format!("{layer:?} is not a layer")));
        }
        if elements.max(bias_elements) >= MOST_ELEMENTS {
            return Err(Error::input(format!("{layer:?} has {elements} elements: kernels count fewer than 2^31")));
        }
        if !self.computes_in(dtype) {
            return Err(Error::input(format!("{layer:?} in {dtype}: {} has no such arithmetic", self.id()))
                .found(self.class())
                .hint("another dtype for this component"));
        }
        check_size(layer, "weight", elements, weight)?;
        if let Some(bias) = bias {
            check_size(layer, "bias", bias_elements, bias)?;
        }
        Ok(())
    }

    /// Bytes of packed weights that are here now.
    pub fn weight_bytes(&self) -> usize {
        self.0.weights.live()
    }

    /// The most bytes of packed weights that were ever here at one time. Weights that devices share count where they
    /// were packed.
    pub fn weight_peak_bytes(&self) -> usize {
        self.0.weights.peak()
    }
}

fn check_size(layer: Layer, part: &str, elements: usize, values: Values) -> Result<()> {
    match values {
        Values::ShapeOnly => Ok(()),
        values => match values.form()? {
            (dtype, bytes) if elements.checked_mul(dtype.size()) != Some(bytes) => {
                Err(Error::input(format!("{layer:?} needs a {part} of {elements} {dtype} elements"))
                    .found(format!("{bytes} bytes")))
            }
            _ => Ok(()),
        },
    }
}

impl PartialEq for Device {
    /// Lanes of one device are that device: what is on one is on all of them.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0.backend), Arc::as_ptr(&other.0.backend))
    }
}

impl Keep {
    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same arena, with ops on what is in it going to `lane`, a lane of the same device.
    ///
    /// # Panics
    /// If it is a lane of another device, which cannot reach this memory.
    #[must_use]
    pub fn with_lane(&self, lane: &Device) -> Self {
        assert!(self.device == *lane, "what is kept on {} is not in the memory of {}", self.device.id(), lane.id());
        Self { device: lane.clone(), arena: self.arena.clone() }
    }

    pub(crate) fn alloc(&self, bytes: usize, dtype: DType) -> Result<Buffer> {
        self.arena.alloc(bytes, dtype)
    }

    /// The most that it ever held, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }
}

/// Opens devices, in the order given: names alone, or [`Opening`]s. `cpu:N` devices that ask for no cores of their own
/// share evenly what the others leave of this process's.
///
/// # Errors
/// If one of them is not on this machine, or cores are asked for that this process may not use.
pub fn open<T: Clone + Into<Opening>>(devices: &[T]) -> Result<Vec<Device>> {
    let openings: Vec<Opening> = devices.iter().cloned().map(Into::into).collect();
    let is_share = |opening: &&Opening| opening.id.kind == DeviceKind::Cpu && opening.id.index.is_some();
    let wishes: Vec<_> = openings.iter().filter(is_share).map(|opening| opening.cores.as_deref()).collect();
    let mut shares = cpu::threads::shares(cpu::threads::cores(), &wishes).into_iter();
    openings
        .iter()
        .map(|Opening { id, cores, adapter }| {
            if let (DeviceKind::Cpu, Some(cores)) = (id.kind, cores) {
                check_cores(*id, cores)?;
            }
            match (id.kind, id.index, cores) {
                (DeviceKind::Cpu, None, None) => Ok(Device::new(*id, cpu::Cpu::whole()?)),
                (DeviceKind::Cpu, None, Some(cores)) => Ok(Device::new(*id, cpu::Cpu::on(cores.clone())?)),
                (DeviceKind::Cpu, Some(_), _) => {
                    let cores = shares.next().expect("there is a share for each of them");
                    Ok(Device::new(*id, cpu::Cpu::on(cores)?))
                }
                (DeviceKind::Cuda, index, _) => cuda_device(*id, index.unwrap_or_default()),
                (DeviceKind::Wgpu, index, _) => wgpu_device(*id, adapter.or(index).unwrap_or_default()),
                (DeviceKind::Numbered, ..) => Err(absent(*id)),
            }
        })
        .collect()
}

/// Refuses cores that this process may not use.
fn check_cores(id: DeviceId, cores: &[usize]) -> Result<()> {
    let allowed = cpu::threads::cores();
    match cores.iter().find(|core| !allowed.contains(core)) {
        None if cores.is_empty() => Err(Error::input(format!("{id}: there has to be at least one core"))),
        None => Ok(()),
        Some(core) => Err(Error::input(format!("{id}: this process may not use core {core}"))
            .found(format!("cores {}", cpu::threads::list(allowed)))
            .hint("`sdshard devices` says how many cores there are; SDSHARD_THREADS and the affinity limit them")),
    }
}

/// The message for a device that this machine does not have.
pub fn absent(id: DeviceId) -> Error {
    let found: Vec<String> = visible().iter().map(|device| device.id.to_string()).collect();
    Error::input(format!("there is no device \"{id}\""))
        .found(found.join(", "))
        .hint("`sdshard devices` lists what can be used")
}

/// The devices of this machine, best first. How fast they are is measured the first time and remembered: see
/// [`rates`](super::rates). Those that are used only where a map names them are not opened for that, see [`measured`].
pub fn visible() -> Vec<DeviceInfo> {
    let mut cuda = cuda_infos();
    // The same cards once more and slower, or slower ones: for those who name them.
    let only_named = cuda.iter().any(|device| !device.only_named);
    cuda.append(&mut wgpu_infos(only_named));
    let (named, free) = cuda.into_iter().partition::<Vec<_>, _>(|device| device.only_named);
    free.into_iter().chain([cpu::info()]).chain(named).collect()
}

#[cfg(feature = "cuda")]
fn cuda_infos() -> Vec<DeviceInfo> {
    super::cuda::infos()
}

#[cfg(feature = "cuda")]
fn cuda_device(id: DeviceId, gpu: usize) -> Result<Device> {
    Ok(Device::new(id, super::cuda::open(gpu)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda_device(id: DeviceId, _: usize) -> Result<Device> {
    Err(absent(id))
}

#[cfg(not(feature = "cuda"))]
fn cuda_infos() -> Vec<DeviceInfo> {
    Vec::new()
}

/// What is known of a device of this machine, with its rates measured even if it is used only where a map names it.
pub fn measured(info: &DeviceInfo) -> DeviceInfo {
    #[cfg(feature = "wgpu")]
    if info.only_named
        && info.id.kind == DeviceKind::Wgpu
        && let Some(DeviceInfo { rates, f32_flops, rates_measured, .. }) = super::wgpu::measured(info.id)
    {
        return DeviceInfo { rates, f32_flops, rates_measured, ..info.clone() };
    }
    info.clone()
}

#[cfg(feature = "wgpu")]
fn wgpu_infos(only_named: bool) -> Vec<DeviceInfo> {
    super::wgpu::infos(only_named)
}

#[cfg(feature = "wgpu")]
fn wgpu_device(id: DeviceId, adapter: usize) -> Result<Device> {
    Ok(Device::new(id, super::wgpu::open(id, adapter)?))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_device(id: DeviceId, _: usize) -> Result<Device> {
    Err(absent(id))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_infos(_: bool) -> Vec<DeviceInfo> {
    Vec::new()
}

/// What a plan may use of `available` bytes: less max(512 MiB, 5 %), down to whole 256 MiB, so that plans do not flip
/// with every program that starts.
pub fn plannable(available: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    available.saturating_sub((512 * MIB).max(available / 20)) / (256 * MIB) * (256 * MIB)
}
