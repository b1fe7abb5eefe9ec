//! The driver's interface: nearly all of this backend's `unsafe`.
//!
//! The driver is a library that is loaded when it is first needed. The library and every function that is used here are
//! looked up before any of them is called, so a machine without a driver, or with one that is too old, gives an error
//! and no panic. Handles close themselves. An error that the driver returns from then on (a lost device, an invalid
//! memory access of a kernel) is stored, and every later call fails with it.

use std::{
    ffi::{CString, c_int, c_void},
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cudarc::driver::{
    DriverError, result,
    sys::{
        self, CUDA_KERNEL_NODE_PARAMS, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUevent_flags,
        CUevent_wait_flags, CUfunction, CUgraph, CUgraphExec, CUgraphNode, CUmodule, CUresult, CUstream,
    },
};

use crate::{
    backend::{DeviceId, DeviceKind},
    error::{Error, Result},
};

/// All functions that are called, here and inside `result`.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDeviceCanAccessPeer",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuCtxEnablePeerAccess",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyPeerAsync",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

/// These functions are also needed for graphs: drivers of CUDA 12 and later have them.
const GRAPH_FUNCTIONS: &[&str] = &[
    "cuGraphCreate",
    "cuGraphAddKernelNode_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// The driver's facts about a GPU.
#[derive(Debug, Clone)]
pub struct Properties {
    /// The product name.
    pub name: String,
    /// The GPU's unique id, which begins with `GPU-`.
    pub uuid: String,
    /// Compute capability, 89 for 8.9.
    pub capability: u32,
    /// The number of multiprocessors.
    pub multiprocessors: u32,
    /// The size of the GPU's memory, in bytes.
    pub memory_bytes: u64,
}

/// The GPUs of this machine in the driver's order, or why there are none.
pub fn gpus() -> Result<&'static [Properties], &'static str> {
    static GPUS: OnceLock<Result<Vec<Properties>, String>> = OnceLock::new();
    match GPUS.get_or_init(find) {
        Ok(gpus) => Ok(gpus),
        Err(why) => Err(why),
    }
}

static HAS_GRAPHS: AtomicBool = AtomicBool::new(false);

/// Whether the driver can launch many kernels as one graph. [`gpus`] must have been called before.
pub fn has_graphs() -> bool {
    HAS_GRAPHS.load(Ordering::Relaxed)
}

fn find() -> Result<Vec<Properties>, String> {
    // SAFETY: loading the driver's library runs the code that it runs in every program that uses it.
    if !unsafe { sys::is_culib_present() } {
        return Err("no driver (libcuda) on this machine".into());
    }
    // SAFETY: the library is there, so this returns it.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbol is only looked up.
    let lacks = |name: &&&str| unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_err();
    if let Some(name) = FUNCTIONS.iter().find(lacks) {
        return Err(format!("the driver has no function {name}: it is too old"));
    }
    let missing = GRAPH_FUNCTIONS.iter().find(lacks);
    if let Some(name) = missing {
        tracing::debug!("CUDA: the driver has no function {name}: no graphs");
    }
    HAS_GRAPHS.store(missing.is_none(), Ordering::Relaxed);
    let words = |error: DriverError| describe(error);
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        other => other.map_err(words)?,
    }
    let count = result::device::get_count().map_err(words)?;
    (0..count).map(|ordinal| properties(ordinal).map_err(words)).collect()
}

fn properties(ordinal: c_int) -> Result<Properties, DriverError> {
    let device = result::device::get(ordinal)?;
    let uuid: Vec<String> =
        result::device::get_uuid(device)?.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
    let uuid = uuid.concat();
    // SAFETY: the device is one that the driver named.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(Properties {
        name: result::device::get_name(device)?,
        uuid: format!("GPU-{}-{}-{}-{}-{}", &uuid[..8], &uuid[8..12], &uuid[12..16], &uuid[16..20], &uuid[20..]),
        capability: (10 * major + minor) as u32,
        multiprocessors: multiprocessors.max(1) as u32,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
    })
}

/// The version of CUDA that the driver supports, 12040 for 12.4; 0 if it is not known.
pub fn version() -> u32 {
    let mut version = 0;
    // SAFETY: it is called after `gpus`, which looked the function up, and writes one int.
    let answer = unsafe { sys::cuDriverGetVersion(&mut version) };
    if answer == CUresult::CUDA_SUCCESS { version as u32 } else { 0 }
}

/// The driver's name and description of an error.
fn describe(error: DriverError) -> String {
    let text = |words: Result<&std::ffi::CStr, DriverError>| {
        words.map_or_else(|_| format!("error {}", error.0 as u32), |words| words.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_name()), text(error.error_string()))
}

/// Whether later calls can succeed after this error. After any other error, the driver returns it from every call.
fn passes(error: DriverError) -> bool {
    use CUresult::*;
    matches!(
        error.0,
        CUDA_ERROR_OUT_OF_MEMORY
            | CUDA_ERROR_INVALID_VALUE
            | CUDA_ERROR_NOT_FOUND
            | CUDA_ERROR_INVALID_IMAGE
            | CUDA_ERROR_INVALID_PTX
            | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
            | CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
            | CUDA_ERROR_TOO_MANY_PEERS
    )
}

/// A GPU's primary context, which the whole process shares and which exists as long as the process.
pub struct Context {
    /// The device's name in messages.
    pub id: DeviceId,
    /// The driver's facts about the GPU.
    pub properties: &'static Properties,
    device: CUdevice,
    raw: CUcontext,
    failure: Mutex<Option<String>>,
}

// SAFETY: a context may be current on any number of threads at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context of a GPU.
    ///
    /// # Errors
    /// If the driver cannot create it.
    pub fn new(ordinal: usize, properties: &'static Properties) -> Result<Self> {
        let id = DeviceId::new(DeviceKind::Cuda, ordinal);
        let refuse = |error| Error::device(id, "its driver opens no context").source(describe(error));
        let device = result::device::get(ordinal as c_int).map_err(refuse)?;
        // SAFETY: the device is one that the driver named.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(refuse)?;
        Ok(Self { id, properties, device, raw, failure: Mutex::default() })
    }

    /// Makes this context current in the calling thread.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn enter(&self) -> Result<()> {
        if let Some(failure) = &*self.failure() {
            return Err(Error::device(self.id, failure.as_str()));
        }
        // SAFETY: the context lives as long as the process.
        self.done("making its context current", unsafe { result::ctx::set_current(self.raw) })
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `doing` to the message of an error, and stores an error that is permanent.
    fn done<T>(&self, doing: &str, answer: Result<T, DriverError>) -> Result<T> {
        answer.map_err(|error| {
            let words = describe(error);
            if !passes(error) {
                self.failure().get_or_insert_with(|| format!("{doing}: {words}"));
            }
            Error::device(self.id, doing).source(words)
        })
    }

    /// The bytes of memory that are free now.
    pub fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        Ok(self.done("asking for its free memory", result::mem_get_info())?.0 as u64)
    }

    /// Waits for everything that was enqueued in this process.
    pub fn synchronize(&self) -> Result<()> {
        self.enter()?;
        self.done("waiting for it", result::ctx::synchronize())
    }

    /// Lets kernels and copies of this context use the memory of `other`; false if the GPUs have no such link.
    pub fn reach(&self, other: &Self) -> Result<bool> {
        self.enter()?;
        let mut can = 0;
        // SAFETY: both devices are the driver's, and it writes one int.
        let answer = unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.device, other.device) }.result();
        self.done("asking for a link", answer)?;
        if can == 0 {
            return Ok(false);
        }
        // SAFETY: both contexts live as long as the process.
        match unsafe { sys::cuCtxEnablePeerAccess(other.raw, 0) }.result() {
            Ok(()) | Err(DriverError(CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)) => Ok(true),
            Err(error) if passes(error) => Ok(false),
            Err(error) => self.done("opening a link", Err(error)),
        }
    }

    /// Loads compiled kernels: a cubin, or PTX that ends with a NUL.
    pub fn load(self: &Arc<Self>, image: &[u8]) -> Result<Module> {
        self.enter()?;
        // SAFETY: the driver reads an ELF's own length, or a text up to its NUL.
        let raw = self.done("loading kernels", unsafe { result::module::load_data(image.as_ptr().cast()) })?;
        Ok(Module { raw, context: self.clone() })
    }
}

/// A block of a GPU's memory.
pub struct Memory {
    context: Arc<Context>,
    at: u64,
    bytes: usize,
}

impl Memory {
    /// Allocates `bytes`, or at least one byte.
    ///
    /// # Errors
    /// If there is no room.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        // SAFETY: nothing is assumed of what is in it.
        let at = unsafe { result::malloc_sync(bytes.max(1)) };
        let at = match at {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free = context.free_bytes().map_or_else(|_| "unknown".into(), |free| free.to_string());
                return Err(Error::device(context.id, format!("no memory for {bytes} bytes"))
                    .found(format!("{free} bytes are free"))
                    .hint("fewer parts or smaller pictures on this device, or close what else uses it"));
            }
            other => context.done("reserving memory", other)?,
        };
        Ok(Self { context: context.clone(), at, bytes })
    }

    /// The size that was requested, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of byte `offset`, for a kernel.
    pub fn at(&self, offset: usize) -> u64 {
        self.at + offset as u64
    }

    /// The address of byte `offset`, after a check that `bytes` follow it.
    fn range(&self, offset: usize, bytes: usize) -> u64 {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{bytes} bytes at {offset} of {} on {}", self.bytes, self.context.id);
        self.at(offset)
    }

    /// The context of the GPU that owns the memory.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Enqueued work may still use the memory. On a device that has failed there is nothing to free.
        if self.context.synchronize().is_ok() {
            // SAFETY: it came from `malloc_sync`, and its address is not used any more.
            let freed = unsafe { result::free_sync(self.at) };
            drop(self.context.done("giving memory back", freed));
        }
    }
}

/// Host memory that GPUs read and write directly (page-locked).
pub struct Pinned {
    context: Arc<Context>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: it is memory like any other; its owner hands out exclusive parts.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocates `bytes`.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        // SAFETY: nothing is assumed of what is in it until it is written.
        let at = context.done("reserving the host's memory for copies", unsafe { result::malloc_host(bytes, 0) })?;
        // SAFETY: it is `bytes` long; from here on it is initialised.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { context: context.clone(), at: at.cast(), bytes })
    }

    /// All bytes. No copy from or to this memory may be running.
    pub fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: it is as long, initialised, and borrowed through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: it came from `malloc_host`, and no copy is running.
            let freed = unsafe { result::free_host(self.at.cast::<c_void>()) };
            drop(self.context.done("giving the host's memory back", freed));
        }
    }
}

/// A stream, whose work is done in order.
pub struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: any thread may enqueue work on a stream, and the driver locks it.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Creates a stream of `context`.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let raw = context.done("making a queue", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Self { context: context.clone(), raw })
    }

    /// The context of the GPU that runs the stream.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits for everything that was enqueued.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream is open.
        self.context.done("waiting for it", unsafe { result::stream::synchronize(self.raw) })
    }

    /// Records an event at the end of the work that was enqueued so far.
    pub fn record(&self) -> Result<Event> {
        self.context.enter()?;
        let raw = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let event = Event { raw: self.context.done("making an event", raw)?, context: self.context.clone() };
        // SAFETY: both are open and of one context.
        self.context.done("recording an event", unsafe { result::event::record(event.raw, self.raw) })?;
        Ok(event)
    }

    /// Work that is enqueued from here on begins after `event`, which may belong to another GPU.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are open; the driver keeps what it needs of an event that is closed before it happens.
        self.context.done("awaiting an event", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }

    /// Copies from the host to the device: `range` of pinned memory, which must not change until an event recorded
    /// later has happened, to byte `at` of `to`.
    ///
    /// # Panics
    /// If one of them is too small, as in all copies.
    pub fn upload(&self, from: &Pinned, range: Range<usize>, to: &Memory, at: usize) -> Result<()> {
        self.context.enter()?;
        assert!(range.start <= range.end && range.end <= from.bytes, "a copy from inside the pinned memory");
        let to = to.range(at, range.len());
        // SAFETY: the range is inside, and memory of either kind waits for all work before it is given back.
        let bytes = unsafe { std::slice::from_raw_parts(from.at.add(range.start), range.len()) };
        // SAFETY: `to` has room for them, as just checked.
        self.context.done("copying to it", unsafe { result::memcpy_htod_async(to, bytes, self.raw) })
    }

    /// Copies from the device to the host: from byte `at` into the first `bytes` of pinned memory, which are valid once
    /// the stream was waited for.
    pub fn download(&self, from: &Memory, at: usize, bytes: usize, to: &mut Pinned) -> Result<()> {
        self.context.enter()?;
        let from = from.range(at, bytes);
        // SAFETY: both are as long, and memory of either kind waits for all work before it is given back.
        let copied = unsafe { result::memcpy_dtoh_async(&mut to.as_mut()[..bytes], from, self.raw) };
        self.context.done("copying from it", copied)
    }

    /// Copies from the device to the host, from byte `at` on, and waits.
    pub fn read(&self, from: &Memory, at: usize, to: &mut [u8]) -> Result<()> {
        self.context.enter()?;
        let from = from.range(at, to.len());
        let mut here = vec![0; to.len()];
        // SAFETY: both are as long, and `here` outlives the copy: see below.
        let copied = unsafe { result::memcpy_dtoh_async(&mut here, from, self.raw) };
        let done = self.context.done("copying from it", copied).and_then(|()| self.synchronize());
        match &done {
            Ok(()) => to.copy_from_slice(&here),
            // A copy that cannot be waited for may still write, so this memory is never freed.
            Err(_) => std::mem::forget(here),
        }
        done
    }

    /// Copies within the device: `bytes` from a byte of one memory to a byte of another.
    pub fn copy(&self, (from, at): (&Memory, usize), (to, to_at): (&Memory, usize), bytes: usize) -> Result<()> {
        self.context.enter()?;
        let (from, to) = (from.range(at, bytes), to.range(to_at, bytes));
        // SAFETY: both are as long, and memory waits for all work before it is given back.
        self.context.done("copying within it", unsafe { result::memcpy_dtod_async(to, from, bytes, self.raw) })
    }

    /// Copies to another GPU's memory, which must not be freed until this stream was waited for, by an event or here.
    pub fn send(&self, (from, at): (&Memory, usize), (to, to_at): (&Memory, usize), bytes: usize) -> Result<()> {
        self.context.enter()?;
        let (receiver, from, to) = (to.context.raw, from.range(at, bytes), to.range(to_at, bytes));
        // SAFETY: both have this length, each in its own context. This context waits for all work before its memory is
        // freed, and the caller keeps the receiver's memory until the copy is done.
        let sent = unsafe { result::memcpy_peer_async(receiver, to, self.context.raw, from, bytes, self.raw) };
        self.context.done("copying to another device", sent)
    }

    /// Enqueues a kernel.
    pub fn launch(&self, call: &Call) -> Result<()> {
        self.context.enter()?;
        let Call { kernel, grid: [x, y, z], threads, arguments } = call;
        let mut places = arguments.places();
        // SAFETY: a call holds the module of its kernel, `Call::new` was promised that the arguments fit, and the
        // driver copies them before it returns.
        let launched =
            unsafe { result::launch_kernel(kernel.raw, (*x, *y, *z), (*threads, 1, 1), 0, self.raw, &mut places) };
        self.context.done("starting a kernel", launched)
    }

    /// Enqueues a graph of this context.
    ///
    /// # Safety
    /// The calls that the graph was made of could be launched in its place: their memory still exists.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both are open; what its kernels read and write is there, as the caller promises.
        self.context.done("starting a graph", unsafe { result::graph::launch(graph.raw, self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the stream is open; the driver finishes what is enqueued.
            let closed = unsafe { result::stream::destroy(self.raw) };
            drop(self.context.done("closing a queue", closed));
        }
    }
}

/// A position in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: any thread may wait for an event.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Waits until the event has happened.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event is open.
        self.context.done("waiting for it", unsafe { result::event::synchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: the event is open; waits that have begun continue.
            let closed = unsafe { result::event::destroy(self.raw) };
            drop(self.context.done("closing an event", closed));
        }
    }
}

/// Loaded kernels.
pub struct Module {
    context: Arc<Context>,
    raw: CUmodule,
}

// SAFETY: modules are only read once they are loaded.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel, and its module, which stays loaded as long as the kernel exists.
#[derive(Clone)]
pub struct Function {
    raw: CUfunction,
    _module: Arc<Module>,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl Eq for Function {}

// SAFETY: a function is an address in a module that is only read.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// The kernel with this name; `None` if the module has none.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Option<Function>> {
        self.context.enter()?;
        let name = CString::new(name).expect("a kernel's name has no NUL");
        // SAFETY: the module is loaded.
        match unsafe { result::module::get_function(self.raw, name) } {
            Ok(raw) => Ok(Some(Function { raw, _module: self.clone() })),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => Ok(None),
            Err(error) => self.context.done("looking a kernel up", Err(error)),
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: nothing that was enqueued runs any more, and no function of the module exists any more.
            let unloaded = unsafe { result::module::unload(self.raw) };
            drop(self.context.done("unloading kernels", unloaded));
        }
    }
}

/// A kernel with its grid and arguments, ready to be launched.
#[derive(PartialEq, Eq)]
pub struct Call {
    kernel: Function,
    /// The number of blocks in each dimension.
    grid: [u32; 3],
    /// The number of threads of a block.
    threads: u32,
    /// The arguments.
    arguments: Arguments,
}

impl Call {
    /// A launch of a kernel on a grid of blocks.
    ///
    /// # Safety
    /// The arguments are those of the kernel's signature, every address is one of memory of the kernel's GPU that holds
    /// what the kernel reads and writes from there, and that memory lives until the call is launched.
    pub unsafe fn new(kernel: Function, grid: [u32; 3], threads: u32, arguments: Arguments) -> Self {
        Self { kernel, grid, threads, arguments }
    }
}

/// Kernels that run one after the other and are launched as one.
///
/// A graph is made from a list of kernels rather than by capturing a stream, because other threads could disturb a
/// capture: waiting for a context while one of its streams captures ends the capture.
pub struct Graph {
    context: Arc<Context>,
    raw: CUgraphExec,
}

// SAFETY: any thread may launch a graph; its owner launches it once at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// The graph of `calls`, uploaded to the device, so that launching it needs no memory.
    ///
    /// # Errors
    /// If the driver cannot create it. If the device has failed, its next call reports it too.
    pub fn new(stream: &Stream, calls: &[Call]) -> Result<Self> {
        let context = &stream.context;
        context.enter()?;
        let refuse = |error| Error::device(context.id, "making a graph").source(describe(error));
        let mut list = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        unsafe { sys::cuGraphCreate(&mut list, 0) }.result().map_err(refuse)?;
        let added = chain(list, calls);
        // SAFETY: the list is open, and 0 means no options.
        let raw = added.and_then(|()| unsafe { result::graph::instantiate(list, sys::CUgraphInstantiate_flags(0)) });
        // SAFETY: the list is open and not used elsewhere; the graph that was made of it stays.
        let _ = unsafe { result::graph::destroy(list) };
        let graph = Self { context: context.clone(), raw: raw.map_err(refuse)? };
        // SAFETY: both are open and of one context.
        unsafe { result::graph::upload(graph.raw, stream.raw) }.map_err(refuse)?;
        Ok(graph)
    }
}

/// Adds kernels to a graph, each after the one before.
fn chain(graph: CUgraph, calls: &[Call]) -> Result<(), DriverError> {
    let mut before: Option<CUgraphNode> = None;
    for Call { kernel, grid, threads, arguments } in calls {
        let mut places = arguments.places();
        let node = CUDA_KERNEL_NODE_PARAMS {
            func: kernel.raw,
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: *threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: places.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        let dependencies = before.as_slice();
        let mut added = std::ptr::null_mut();
        // SAFETY: as in `Stream::launch`; the driver copies the arguments and the list of nodes before it returns.
        unsafe { sys::cuGraphAddKernelNode_v2(&mut added, graph, dependencies.as_ptr(), dependencies.len(), &node) }
            .result()?;
        before = Some(added);
    }
    Ok(())
}

impl Drop for Graph {
    fn drop(&mut self) {
        // The graph may still be running.
        if self.context.synchronize().is_ok() {
            // SAFETY: the graph is open, and nothing of it runs any more.
            let closed = unsafe { result::graph::exec_destroy(self.raw) };
            drop(self.context.done("closing a graph", closed));
        }
    }
}

/// The arguments of a kernel, in the order of its parameters.
#[derive(Default, PartialEq, Eq)]
pub struct Arguments {
    words: Vec<u64>,
    starts: Vec<usize>,
}

impl Arguments {
    /// The address of each argument, as the driver needs it.
    fn places(&self) -> Vec<*mut c_void> {
        self.starts.iter().map(|&start| self.words[start..].as_ptr().cast_mut().cast()).collect()
    }

    /// Adds an address; 0 for none.
    pub fn address(mut self, at: u64) -> Self {
        self.starts.push(self.words.len());
        self.words.push(at);
        self
    }

    /// Adds a struct of fields of four bytes, or one such number.
    pub fn fields(mut self, fields: &[u32]) -> Self {
        self.starts.push(self.words.len());
        let mut pairs = fields.chunks(2);
        self.words.extend(pairs.by_ref().map(|pair| {
            let mut bytes = [0; 8];
            for (to, field) in bytes.chunks_exact_mut(4).zip(pair) {
                to.copy_from_slice(&field.to_ne_bytes());
            }
            u64::from_ne_bytes(bytes)
        }));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_as_a_kernel_reads_them() {
        let arguments = Arguments::default().address(7).fields(&[1, 2, 3]).address(9).fields(&[4]);
        assert_eq!(arguments.starts, [0, 1, 3, 4]);
        let bytes: &[u8] = bytemuck::cast_slice(&arguments.words);
        let fields: Vec<u32> = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(fields[2..5], [1, 2, 3]);
        assert_eq!((arguments.words[0], arguments.words[3], fields[8]), (7, 9, 4));
    }
}
