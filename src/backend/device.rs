//! A device in use: its backend and its transient arena.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    arena::{Arena, Buffer, Slab},
    class::NumericsClass,
    dry,
    dtype::DType,
    id::DeviceId,
    layer::{Layer, Values},
    ops::{Backend, Op},
    precision::Precision,
    rates::Rates,
    rules::Rules,
    sim,
    weight::{Form, Meter, Weight},
};
use crate::error::{Error, Result};

/// An open device. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    id: DeviceId,
    backend: Arc<dyn Backend>,
    weights: Arc<Meter>,
    transient: Mutex<Option<Arena>>,
    /// The number of ranges that were ever allocated: every op allocates one.
    calls: Arc<AtomicU64>,
    times: Arc<OpTimes>,
}

/// The time of the ops of a device by their names, from [`Device::time_ops`] on.
#[derive(Default)]
struct OpTimes {
    is_on: AtomicBool,
    seconds: Mutex<BTreeMap<&'static str, f64>>,
}

/// The largest number of elements of a layer: kernels count them in 32 bits, and some of these counters are signed.
const MOST_ELEMENTS: usize = 1 << 31;

/// A small arena for what outlives a section: latents, text features, keys and values.
#[derive(Clone)]
pub struct PersistentArena {
    device: Device,
    arena: Arena,
}

impl Device {
    /// A device over a backend.
    pub(crate) fn new(id: DeviceId, backend: impl Backend + 'static) -> Self {
        Self(Arc::new(Inner {
            id,
            backend: Arc::new(backend),
            weights: Arc::default(),
            transient: Mutex::default(),
            calls: Arc::default(),
            times: Arc::default(),
        }))
    }

    /// The same device with the request scratch of one request, of `bytes`, in place of the transient arena: other
    /// requests may use the device between two ops of this request.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn request_scratch(&self, bytes: usize) -> Result<Self> {
        let Inner { id, backend, weights, transient: _, calls, times } = &*self.0;
        let (backend, weights, calls, times) = (backend.clone(), weights.clone(), calls.clone(), times.clone());
        let scratch = Self(Arc::new(Inner { id: *id, backend, weights, transient: Mutex::default(), calls, times }));
        scratch.reserve(bytes)?;
        Ok(scratch)
    }

    /// A device without data with the name `id`, and the counter that it fills.
    pub fn dry(id: DeviceId, rules: Rules, rates: Rates) -> (Self, Arc<dry::CostCounter>) {
        let counter = Arc::new(dry::CostCounter::default());
        let device = Self::new(id, dry::Dry::new(id, rules, rates, counter.clone()));
        *device.transient() = Some(Arena::new(id, "transient", Slab::Dry, usize::MAX));
        (device, counter)
    }

    /// A device on a simulated clock with the name `id`, and the record of what it does.
    pub fn simulated(id: DeviceId, setup: sim::Setup) -> (Self, Arc<sim::Record>) {
        let (backend, record) = sim::Sim::new(id, setup);
        (Self::new(id, backend), record)
    }

    /// The device's name.
    pub fn id(&self) -> DeviceId {
        self.0.id
    }

    /// Everything that decides the bits of its results.
    pub fn class(&self) -> &NumericsClass {
        self.0.backend.class()
    }

    /// The identity of the memory and layout of packed weights: devices with equal values share them.
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

    /// Makes the transient arena `bytes` large. The arena must be empty.
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

    /// Allocates a range of the transient arena.
    pub(crate) fn alloc(&self, bytes: usize, dtype: DType) -> Result<Buffer> {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        match &*self.transient() {
            Some(arena) => arena.alloc(bytes, dtype),
            None => Err(Error::device(self.id(), "no arena is reserved yet")),
        }
    }

    /// Enqueues an op, see [`Backend::run`].
    pub(crate) fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()> {
        let times = &self.0.times;
        if !times.is_on.load(Ordering::Relaxed) {
            return self.backend().run(op, scratch, out);
        }
        let started = Instant::now();
        let done = self.backend().run(op, scratch, out);
        let mut seconds = times.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        *seconds.entry(op.name()).or_default() += started.elapsed().as_secs_f64();
        done
    }

    /// Begins to measure how long ops take. Only a CPU's ops have finished when they return.
    pub fn time_ops(&self) {
        self.0.times.is_on.store(true, Ordering::Relaxed);
    }

    /// The seconds that ops of each name have taken since the last call; resets them to zero.
    pub fn take_op_times(&self) -> BTreeMap<&'static str, f64> {
        std::mem::take(&mut self.0.times.seconds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `work`; the device may enqueue all ops of it as one: see [`Backend::start_recording`].
    ///
    /// # Errors
    /// As `work`, and if the device fails.
    pub(crate) fn as_one<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        struct Recording<'a>(&'a dyn Backend);
        impl Drop for Recording<'_> {
            fn drop(&mut self) {
                // Only a panic can have left recorded ops that are not enqueued yet.
                drop(self.0.submit_recorded());
            }
        }
        self.backend().start_recording();
        let recording = Recording(self.backend());
        let done = work();
        // Also after a failure, so that no op stays recorded.
        let submitted = recording.0.submit_recorded();
        let done = done?;
        submitted.map(|()| done)
    }

    /// The number of allocations by ops so far: it grows while the device works.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Whether its memory holds anything; dry and simulated devices only count.
    pub fn has_data(&self) -> bool {
        !matches!(self.backend().slab(0), Ok(Slab::Dry))
    }

    /// The most bytes that the transient arena ever held.
    pub fn peak_bytes(&self) -> usize {
        self.transient().as_ref().map_or(0, Arena::peak_bytes)
    }

    /// The number of tensors in the transient arena; zero between sections.
    pub fn live(&self) -> usize {
        self.transient().as_ref().map_or(0, Arena::live)
    }

    /// Reserves a persistent arena of `bytes` beside the transient one.
    pub fn persistent_arena(&self, bytes: usize) -> Result<PersistentArena> {
        let arena = Arena::new(self.id(), "keep", self.slab(bytes)?, bytes);
        Ok(PersistentArena { device: self.clone(), arena })
    }

    /// Whether ops on this device accept inputs of this type.
    pub fn computes_in(&self, dtype: DType) -> bool {
        self.backend().computes_in(dtype)
    }

    /// The type of the tensors of a component in this precision; `None` if the device has no such kernels.
    pub fn input_type(&self, precision: Precision) -> Option<DType> {
        self.backend().input_type(precision)
    }

    /// Brings a layer's parameters into this device's form in this precision.
    ///
    /// # Errors
    /// If the values are not as many as the layer has, are not floats, or if the device cannot run such a layer.
    pub fn pack(&self, layer: Layer, precision: Precision, weight: Values, bias: Option<Values>) -> Result<Weight> {
        let form = self.checked(layer, precision, weight, bias)?;
        let packed = self.backend().pack(form, weight, bias).map_err(|error| error.of_device(self.id()))?;
        Ok(packed.charged_to(&self.0.weights))
    }

    /// As [`Device::pack`], for a weight that is kept in host memory: its bytes do not count as the device's.
    ///
    /// # Errors
    /// As [`Device::pack`].
    pub fn pack_to_host(
        &self,
        layer: Layer,
        precision: Precision,
        weight: Values,
        bias: Option<Values>,
    ) -> Result<Weight> {
        let form = self.checked(layer, precision, weight, bias)?;
        self.backend().pack_to_host(form, weight, bias).map_err(|error| error.of_device(self.id()))
    }

    /// Copies a weight that another device has packed; `None` if it has to be packed here.
    ///
    /// # Errors
    /// If this device has no room, or one of them fails.
    pub fn copy_weight(&self, packed: &Weight) -> Result<Option<Weight>> {
        let copy = self.backend().copy_weight(packed)?;
        Ok(copy.map(|copy| copy.charged_to(&self.0.weights)))
    }

    /// The bytes that a layer occupies on this device once it is packed in this precision. Saturates where
    /// [`Device::pack`] would reject the layer for its size or its precision.
    pub fn packed_bytes(&self, layer: Layer, precision: Precision, has_bias: bool) -> usize {
        match layer.elements() {
            (weight, bias) if weight.max(bias) < MOST_ELEMENTS => {
                let form = self.backend().form(layer, precision, has_bias);
                form.map_or(usize::MAX, |form| self.backend().packed_bytes(form))
            }
            _ => usize::MAX,
        }
    }

    /// Copies a weight that is kept in host memory to this device.
    ///
    /// # Errors
    /// If the device has no room, or the weight was not packed by [`Device::pack_to_host`] for this kind of device.
    pub fn fetch(&self, host_weight: &Weight) -> Result<Weight> {
        if !host_weight.is_on(self) {
            return Err(Error::request(format!(
                "{:?} was not packed in host memory for {}",
                host_weight.layer(),
                self.id()
            )));
        }
        let here = self.backend().fetch(host_weight).map_err(|error| error.of_device(self.id()))?;
        Ok(here.charged_to(&self.0.weights))
    }

    /// The form of a layer on this device. Rejects a precision that the device does not support.
    fn form(&self, layer: Layer, precision: Precision, has_bias: bool) -> Result<Form> {
        self.backend().form(layer, precision, has_bias).ok_or_else(|| {
            Error::input(format!("{layer:?} in {precision}: {} has no such arithmetic", self.id()))
                .found(self.class().to_string())
                .hint("another dtype for this component")
        })
    }

    /// The form in which a layer will be packed. Rejects an invalid layer, the wrong number of values, and a precision
    /// that the device does not support.
    fn checked(&self, layer: Layer, precision: Precision, weight: Values, bias: Option<Values>) -> Result<Form> {
        let (elements, bias_elements) = layer.elements();
        let odd_halves = matches!(layer, Layer::Geglu { out, .. } if out % 2 != 0);
        if elements == 0 || odd_halves {
            return Err(Error::input(format!("{layer:?} is not a layer")));
        }
        if elements.max(bias_elements) >= MOST_ELEMENTS {
            return Err(Error::input(format!("{layer:?} has {elements} elements: kernels count fewer than 2^31")));
        }
        let form = self.form(layer, precision, bias.is_some())?;
        check_size(layer, "weight", elements, weight)?;
        if let Some(bias) = bias {
            check_size(layer, "bias", bias_elements, bias)?;
        }
        Ok(form)
    }

    /// Bytes of packed weights that are on the device now.
    pub fn weight_bytes(&self) -> usize {
        self.0.weights.live()
    }

    /// The most bytes of packed weights that were ever on the device at one time. Weights that devices share count on
    /// the device that packed them.
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

impl Weight {
    /// An offloaded weight, which `fetch` packs for `device` when it is used. It occupies `bytes` on the device then.
    ///
    /// # Errors
    /// If the device does not support the precision.
    pub fn offloaded(
        device: &Device,
        layer: Layer,
        precision: Precision,
        has_bias: bool,
        bytes: usize,
        fetch: impl Fn() -> Result<Self> + Send + Sync + 'static,
    ) -> Result<Self> {
        Ok(Self::offloaded_at(device.weight_home(), device.form(layer, precision, has_bias)?, bytes, fetch))
    }

    /// Whether `device` can use this weight.
    pub(crate) fn is_on(&self, device: &Device) -> bool {
        self.is_at(device.weight_home())
    }
}

impl PartialEq for Device {
    /// A device is equal to all its request scratches: a tensor on one is on all of them.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0.backend), Arc::as_ptr(&other.0.backend))
    }
}

impl PersistentArena {
    /// The device that the arena belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same arena, where ops on its tensors use `scratch`, a request scratch of the same device.
    ///
    /// # Panics
    /// If `scratch` is on another device, which cannot reach this memory.
    #[must_use]
    pub fn with_request_scratch(&self, scratch: &Device) -> Self {
        assert!(
            self.device == *scratch,
            "what is kept on {} is not in the memory of {}",
            self.device.id(),
            scratch.id()
        );
        Self { device: scratch.clone(), arena: self.arena.clone() }
    }

    pub(crate) fn alloc(&self, bytes: usize, dtype: DType) -> Result<Buffer> {
        self.arena.alloc(bytes, dtype)
    }

    /// The most bytes that the arena ever held.
    pub fn peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }
}
