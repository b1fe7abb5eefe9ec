//! NVIDIA GPUs, by the kernels in `kernels/`.
//!
//! An op is one kernel (group norm has three, a product of long sums two for a thousand rows), enqueued on the device's
//! compute queue (`queue.rs`); only `read` waits. Weights, and tensors from other GPUs, are copied on a separate copy
//! queue. A GPU has one context and one set of kernels for the whole process, so all devices on a GPU share their
//! weights. Which kernel runs follows from the layer, the type and the GPU's architecture; see `launch.rs`.

mod buffer_pool;
mod driver;
pub mod kernels;
pub mod launch;
pub mod nvrtc;
mod pack;
mod peer;
mod queue;
mod staging;

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard},
};

use super::{
    Activation, Backend, Buffer, DType, Device, DeviceId, DeviceInfo, DeviceKind, Epilogue, Form, Fusion,
    NumericsClass, Op, Precision, Rates, Slab, Values, Weight, WeightData,
    class::KernelPath,
    gpu_cost, gpu_rates, info,
    params::{Conv2d, GroupNorm},
    rates::{self, Measured},
    rules::Rules,
};
use crate::{
    error::{Error, Result},
    sync::locked,
};
use buffer_pool::BufferPool;
use driver::{Arguments, Call, Context, Memory, Pinned, Properties, Stream};
use kernels::{Kernels, Origin};
use launch::Launch;
use pack::Packing;
pub use peer::Link;
use queue::Queue;
use staging::{PIECE_BYTES, Ring};

/// The largest number of blocks in the second and third dimension of a grid.
const MOST_BLOCKS: u32 = 65535;

/// A GPU with its kernels; there is one for each GPU in the process.
struct Gpu {
    context: Arc<Context>,
    kernels: Kernels,
    /// The memory that the kernels occupy, in bytes.
    kernel_bytes: u64,
}

/// A device in use.
pub struct Cuda {
    gpu: Arc<Gpu>,
    queues: Arc<Queues>,
    class: NumericsClass,
    home: Arc<str>,
    uploads: Mutex<Ring>,
    weights: Mutex<Ring>,
    download: Mutex<Pinned>,
}

/// The queues of a device, which order the work on the memory of its arenas.
struct Queues {
    compute: Queue,
    copy: Stream,
    /// Memory for offloaded weights.
    buffers: Mutex<BufferPool>,
}

/// The memory of an arena.
struct Arena {
    memory: Memory,
    queues: Arc<Queues>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Recorded kernels may use the memory. If they cannot be launched, the device has failed and runs nothing any
        // more.
        let _ = self.queues.compute.stream();
    }
}

/// A layer's packed parameters on a GPU: see `pack.rs`.
struct CudaWeight {
    /// The weight, then the bias if there is one.
    parts: Vec<Memory>,
    stay: Stay,
    /// The architecture that they are packed for.
    arch: u32,
    /// The queues that copied them here, and can copy them to another device.
    queues: Arc<Queues>,
}

/// How long a weight stays on its GPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stay {
    Permanent,
    /// While it is used, in memory of the buffer pool.
    WhileUsed,
}

impl Drop for CudaWeight {
    fn drop(&mut self) {
        if self.stay == Stay::WhileUsed {
            let mut buffers = locked(&self.queues.buffers);
            self.parts.drain(..).for_each(|memory| buffers.give_back(memory, &self.queues.compute));
        }
    }
}

/// A layer's packed parameters in host memory, for an offloaded weight.
struct HostWeight {
    weight: Vec<u8>,
    bias: Option<Vec<u8>>,
}

/// The context of a GPU and, once they are needed, its kernels.
#[derive(Default)]
struct Opened {
    contexts: HashMap<usize, Arc<Context>>,
    gpus: HashMap<usize, Arc<Gpu>>,
}

fn opened() -> MutexGuard<'static, Opened> {
    static OPENED: LazyLock<Mutex<Opened>> = LazyLock::new(Mutex::default);
    locked(&OPENED)
}

fn context(opened: &mut Opened, index: usize, properties: &'static Properties) -> Result<Arc<Context>> {
    if let Some(context) = opened.contexts.get(&index) {
        return Ok(context.clone());
    }
    let context = Arc::new(Context::new(index, properties)?);
    opened.contexts.insert(index, context.clone());
    Ok(context)
}

/// Whether the driver has a GPU with this number.
pub fn is_there(index: usize) -> bool {
    driver::gpus().is_ok_and(|gpus| index < gpus.len())
}

fn gpu(index: usize) -> Result<Arc<Gpu>> {
    let properties = driver::gpus().ok().and_then(|gpus| gpus.get(index));
    let properties = properties.ok_or_else(|| info::absent(DeviceId::new(DeviceKind::Cuda, index)))?;
    let opened = &mut opened();
    if let Some(gpu) = opened.gpus.get(&index) {
        return Ok(gpu.clone());
    }
    let context = context(opened, index, properties)?;
    let before = context.free_bytes()?;
    let kernels = Kernels::load(&context)?;
    let kernel_bytes = before.saturating_sub(context.free_bytes()?);
    let gpu = Arc::new(Gpu { context, kernels, kernel_bytes });
    opened.gpus.insert(index, gpu.clone());
    Ok(gpu)
}

/// The reason why there are no CUDA devices; `None` if there are any.
pub fn absence() -> Option<String> {
    match driver::gpus() {
        Ok([]) => Some("the driver has no GPU".into()),
        Ok(_) => None,
        Err(why) => Some(why.into()),
    }
}

/// The devices `cuda:N` of this machine.
pub fn infos() -> Vec<DeviceInfo> {
    let Ok(gpus) = driver::gpus() else { return Vec::new() };
    (0..gpus.len()).filter_map(|index| info(index, &gpus[index])).collect()
}

/// The precision in which a GPU computes by default.
const PRECISION: Precision = Precision::F16;

/// The numerics class of a GPU whose kernels are those of `arch`.
fn class(capability: u32, arch: u32) -> NumericsClass {
    let kernels = KernelPath::Capability { gpu: Some(capability), code: (arch != capability).then_some(arch) };
    NumericsClass { kind: DeviceKind::Cuda, kernels, precision: PRECISION }
}

/// `None` for a GPU whose driver opens no context: the GPU is lost, or its compute mode forbids it.
fn info(index: usize, properties: &'static Properties) -> Option<DeviceInfo> {
    let id = DeviceId::new(DeviceKind::Cuda, index);
    let context = context(&mut opened(), index, properties);
    let free = context.and_then(|context| context.free_bytes()).map_err(|error| tracing::warn!("{error}")).ok()?;
    let origin = Origin::of(properties);
    let arch = origin.as_ref().map_or(properties.capability, |origin| origin.arch(properties.capability));
    let mut name = format!(
        "{} (compute capability {}.{}, {})",
        properties.name,
        properties.capability / 10,
        properties.capability % 10,
        properties.uuid
    );
    let only_named = origin.is_err();
    if only_named {
        name += ", without kernels";
    }
    let kept = kernel_bytes(index);
    let rates = |precision| {
        let key =
            format!("{}, {}, CUDA {}, sm_{arch} {precision}", properties.name, properties.uuid, driver::version());
        let measure = || open(index).and_then(|gpu| gpu_rates::measure(&Device::new(id, gpu), precision)).ok();
        let measured = if only_named { None } else { rates::remembered(&key, measure) };
        measured.unwrap_or(Measured { rates: UNMEASURED, at: None })
    };
    let (measured, f32_flops) = (rates(PRECISION), rates(Precision::F32).rates.flops);
    Some(DeviceInfo {
        id,
        name,
        class: class(properties.capability, arch),
        cores: 0,
        allowed_cores: Vec::new(),
        memory_bytes: properties.memory_bytes,
        free_bytes: info::plannable(free + kept.unwrap_or_default()),
        overhead_bytes: kept.unwrap_or(KERNEL_BYTES),
        rules: Rules::Gpu(PRECISION),
        rates: measured.rates,
        f32_flops,
        rates_measured: measured.at,
        only_named,
    })
}

/// The memory that the kernels of a GPU occupy, once they are loaded.
fn kernel_bytes(index: usize) -> Option<u64> {
    opened().gpus.get(&index).map(|gpu| gpu.kernel_bytes)
}

/// An allowance for kernels that are not loaded yet. The free memory already excludes the driver's own context.
const KERNEL_BYTES: u64 = 32 << 20;
/// The rates of a GPU that could not be measured: those of a small one.
const UNMEASURED: Rates = Rates { flops: 4e12, bandwidth: 200e9, link: 6e9 };

/// Opens GPU `index` under the name `cuda:index`.
///
/// # Errors
/// If there is no such GPU, its driver returns an error, or there are no kernels for it.
pub fn open(index: usize) -> Result<Cuda> {
    let gpu = gpu(index)?;
    let context = &gpu.context;
    let queues =
        Arc::new(Queues { compute: Queue::new(context)?, copy: Stream::new(context)?, buffers: Mutex::default() });
    Ok(Cuda {
        class: class(context.properties.capability, gpu.kernels.arch),
        home: format!("memory of {}", context.id).into(),
        uploads: Mutex::new(Ring::new(context)?),
        weights: Mutex::new(Ring::new(context)?),
        download: Mutex::new(Pinned::new(context, PIECE_BYTES)?),
        queues,
        gpu,
    })
}

/// The link between two GPUs, tested with data.
///
/// # Errors
/// If one of them does not exist or fails.
pub fn link(a: usize, b: usize) -> Result<Link> {
    peer::link(&gpu(a)?.context, &gpu(b)?.context)
}

/// The activation's number in `common.cuh`.
fn number(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::QuickGelu => 3,
        Activation::Geglu => 4,
        Activation::Relu => 5,
    }
}

fn arena(buffer: &Buffer) -> Option<&Arena> {
    buffer.slab().held()
}

/// The memory that contains a buffer, and the offset of the buffer's first byte.
fn memory_of(buffer: &Buffer) -> (&Memory, usize) {
    let arena = arena(buffer).expect("tensor/ops.rs compares devices: a buffer is where its op runs");
    (&arena.memory, buffer.offset())
}

/// The address of a buffer's first byte.
fn address_of(buffer: &Buffer) -> u64 {
    let (memory, offset) = memory_of(buffer);
    memory.at(offset)
}

fn packed(w: &Weight) -> &CudaWeight {
    w.held().expect("tensor/ops.rs compares devices: a weight is where its op runs")
}

/// The addresses of a weight and its bias.
fn parts(w: &Weight) -> (u64, u64) {
    let packed = packed(w);
    (packed.parts[0].at(0), packed.parts.get(1).map_or(0, |bias| bias.at(0)))
}

impl Cuda {
    /// Enqueues a kernel that uses `weights`.
    fn launch(&self, launch: &Launch, arguments: Arguments, weights: &[&Weight]) -> Result<()> {
        if launch.grid[1] > MOST_BLOCKS || launch.grid[2] > MOST_BLOCKS {
            return Err(Error::request(format!("{} on {:?} blocks is too large", launch.kernel, launch.grid)));
        }
        let kernel = self.gpu.kernels.get(&launch.kernel)?;
        // SAFETY: `tensor/ops.rs` has compared shapes, types and devices, and its tensors are borrowed until the op is
        // enqueued; tests run every kernel with these arguments. Memory that is given back waits for what is enqueued,
        // and what is held back keeps its weights.
        let call = unsafe { Call::new(kernel, launch.grid, launch.threads, arguments) };
        self.queues.compute.launch(call, weights)
    }

    /// A matrix product. `fields` are its sizes; the rows of a launch, `rows_per_add` and the activation follow them.
    #[expect(clippy::too_many_arguments, reason = "what linear and conv2d have in common")]
    fn product(
        &self,
        op: &str,
        product: launch::Product,
        fields: &[u32],
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        scratch: Option<&Buffer>,
        to: &Buffer,
    ) -> Result<()> {
        let properties = self.gpu.context.properties;
        let (dtype, rows, columns) = (x.dtype(), product.rows, product.columns);
        let (weight, bias) = parts(w);
        let add = e.channel_add.map_or(0, |(add, _)| address_of(add));
        let residual = e.residual.map_or(0, address_of);
        let rows_per_add = e.channel_add.map_or(rows, |(_, adds)| rows / adds).max(1);
        let runs = gpu_cost::runs(product.k);
        let at_once = if runs > 1 { gpu_cost::SPLIT_ROWS } else { rows.max(1) };
        for first in (0..rows).step_by(at_once as usize) {
            let count = at_once.min(rows - first);
            let part = launch::Product { rows: count, ..product };
            let launch = launch::product(op, self.gpu.kernels.arch, properties.multiprocessors, dtype, part);
            let behind = [first, count, rows_per_add, number(e.activation)];
            let arguments = Arguments::default().address(address_of(x)).address(weight).address(bias).address(add);
            let arguments = arguments.address(residual).address(address_of(to)).address(scratch.map_or(0, address_of));
            self.launch(&launch, arguments.fields(&[fields, &behind].concat()), &[w])?;
            if let Some(parts) = scratch {
                let arguments =
                    Arguments::default().address(address_of(parts)).address(bias).address(add).address(residual);
                let fields = [&[columns, runs][..], &behind].concat();
                let launch = launch::split_k(dtype, count, e.activation.width(columns));
                self.launch(&launch, arguments.address(address_of(to)).fields(&fields), &[w])?;
            }
        }
        Ok(())
    }

    fn group_norm(&self, p: GroupNorm, x: &Buffer, w: &Weight, scratch: &Buffer, out: &Buffer) -> Result<()> {
        let fields = [p.batch, p.pixels, p.channels, p.groups, p.eps.to_bits(), p.silu];
        let (dtype, (weight, bias)) = (x.dtype(), parts(w));
        let (chunks, eights) = (p.pixels.div_ceil(gpu_cost::NORM_CHUNK), p.groups.div_ceil(8));
        let of = |kernel: String, grid| Launch { kernel, grid, threads: 256 };
        self.launch(
            &of(format!("group_norm_statistics_{dtype}"), [chunks, eights, p.batch]),
            Arguments::default().address(address_of(x)).address(address_of(scratch)).fields(&fields),
            &[],
        )?;
        self.launch(
            &of("group_norm_combine".into(), [eights, p.batch, 1]),
            Arguments::default().address(weight).address(bias).address(address_of(scratch)).fields(&fields),
            &[w],
        )?;
        self.launch(
            &launch::each("group_norm_scale", dtype, p.batch * p.pixels * p.channels),
            Arguments::default()
                .address(address_of(x))
                .address(address_of(scratch))
                .address(address_of(out))
                .fields(&fields),
            &[],
        )
    }

    /// Allocates memory, if necessary in place of buffers that the pool keeps.
    fn memory(&self, bytes: usize) -> Result<Memory> {
        let context = &self.gpu.context;
        Memory::new(context, bytes).or_else(|error| match locked(&self.queues.buffers).clear() {
            true => Memory::new(context, bytes),
            false => Err(error),
        })
    }

    /// Fills all of `memory` with the bytes that `piece` writes, over the copy queue, and waits for the copies.
    fn fill(&self, memory: &Memory, piece: impl Fn(usize, &mut [u8]) -> Result<()>) -> Result<()> {
        let mut ring = locked(&self.weights);
        for start in (0..memory.bytes()).step_by(PIECE_BYTES) {
            let count = PIECE_BYTES.min(memory.bytes() - start);
            ring.upload(&self.queues.copy, count, (memory, start), |to| piece(start, to))?;
        }
        // Any queue of this GPU may use the memory from here on.
        self.queues.copy.synchronize()
    }

    /// Uploads the elements of `packing` to new memory.
    fn upload(&self, packing: &Packing) -> Result<Memory> {
        let memory = self.memory(packing.packed_bytes())?;
        self.fill(&memory, |start, to| packing.piece(start, to))?;
        Ok(memory)
    }

    /// Copies `from`, which `sender` filled, to new memory: over the link if there is one that works, or else through
    /// the host.
    fn copy_from(&self, sender: &Queues, from: &Memory) -> Result<Memory> {
        let memory = self.memory(from.bytes())?;
        match peer::link(from.context(), &self.gpu.context)? {
            Link::Direct => {
                let sent = sender.copy.send((from, 0), (&memory, 0), from.bytes());
                if let Err(error) = sent.and_then(|()| sender.copy.synchronize()) {
                    // A copy that cannot be waited for may still write, so this memory is never freed.
                    std::mem::forget(memory);
                    return Err(error);
                }
            }
            Link::None | Link::Corrupt => self.fill(&memory, |start, to| sender.copy.read(from, start, to))?,
        }
        Ok(memory)
    }

    /// A layer's parameters in this device's memory.
    fn on_device(&self, parts: Vec<Memory>, stay: Stay) -> CudaWeight {
        CudaWeight { parts, stay, arch: self.gpu.kernels.arch, queues: self.queues.clone() }
    }

    fn weight(&self, form: Form, data: impl Any + Send + Sync) -> Weight {
        Weight::new(form, self.packed_bytes(form), self.home.clone(), WeightData::Held(Arc::new(data)))
    }
}

impl Backend for Cuda {
    fn class(&self) -> &NumericsClass {
        &self.class
    }

    fn weight_home(&self) -> &str {
        &self.home
    }

    fn computes_in(&self, dtype: DType) -> bool {
        match dtype {
            DType::F32 | DType::F16 => true,
            DType::BF16 => self.gpu.context.properties.capability >= 80,
            DType::U32 => false,
        }
    }

    fn slab(&self, bytes: usize) -> Result<Slab> {
        let memory = self.memory(bytes)?;
        Ok(Slab::Held(Arc::new(Arena { memory, queues: self.queues.clone() })))
    }

    fn pack(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        let mut parts = vec![self.upload(&Packing::weight(form.layer, form.stored, weight)?)?];
        if let Some(bias) = bias {
            parts.push(self.upload(&Packing::bias(bias)?)?);
        }
        Ok(self.weight(form, self.on_device(parts, Stay::Permanent)))
    }

    fn copy_weight(&self, packed: &Weight) -> Result<Option<Weight>> {
        let from: Option<&CudaWeight> = packed.held();
        // Another architecture may need them in another order.
        let Some(from) = from.filter(|from| from.arch == self.gpu.kernels.arch) else { return Ok(None) };
        let parts = from.parts.iter().map(|part| self.copy_from(&from.queues, part)).collect::<Result<_>>()?;
        let data = self.on_device(parts, Stay::Permanent);
        Ok(Some(self.weight(packed.form, data)))
    }

    fn pack_to_host(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        let rest = |packing: Packing| {
            let mut bytes = vec![0; packing.packed_bytes()];
            let pieces = bytes.chunks_mut(PIECE_BYTES).enumerate();
            pieces.map(|(i, to)| (i * PIECE_BYTES, to)).try_for_each(|(start, to)| packing.piece(start, to))?;
            Ok(bytes)
        };
        let weight = rest(Packing::weight(form.layer, form.stored, weight)?)?;
        let bias = bias.map(|bias| Packing::bias(bias).and_then(rest)).transpose()?;
        Ok(self.weight(form, HostWeight { weight, bias }))
    }

    fn packed_bytes(&self, form: Form) -> usize {
        gpu_cost::packed_bytes(form)
    }

    fn fetch(&self, host_weight: &Weight) -> Result<Weight> {
        let from: Option<&HostWeight> = host_weight.held();
        let from = from.expect("a device only fetches weights that it packed for the host");
        let mut here = self.on_device(Vec::new(), Stay::WhileUsed);
        for bytes in std::iter::once(&from.weight).chain(&from.bias) {
            let memory = locked(&self.queues.buffers).take(&self.queues.copy, bytes.len())?;
            here.parts.push(memory);
            self.fill(&here.parts[here.parts.len() - 1], |start, to| {
                to.copy_from_slice(&bytes[start..][..to.len()]);
                Ok(())
            })?;
        }
        Ok(self.weight(host_weight.form, here))
    }

    fn supports(&self, _: Fusion) -> bool {
        true
    }

    fn scratch(&self, op: &Op) -> Option<usize> {
        gpu_cost::cuda_scratch(op)
    }

    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()> {
        let (name, scratch, arguments) = (op.name(), scratch.as_deref(), Arguments::default());
        match *op {
            Op::Linear { p, x, w, e } => {
                let product = launch::Product { rows: p.rows, columns: p.out, channels: p.k, k: p.k };
                self.product(name, product, &[p.rows, p.out, p.k], x, w, e, scratch, out)
            }
            Op::Conv2d { p, x, w, e } => {
                let Conv2d {
                    batch,
                    height,
                    width,
                    channels,
                    out: columns,
                    kernel,
                    stride,
                    padding,
                    out_height,
                    out_width,
                } = p;
                let fields = [batch, height, width, channels, columns, kernel, stride, padding, out_height, out_width];
                let (rows, k) = (batch * out_height * out_width, kernel * kernel * channels);
                let product = launch::Product { rows, columns, channels, k };
                self.product(name, product, &fields, x, w, e, scratch, out)
            }
            Op::Attention { p, q, k, v, .. } => {
                let launch = launch::attention(self.gpu.kernels.arch, q.dtype(), &p).ok_or_else(|| {
                    let most = launch::MOST_HEAD_DIM;
                    Error::request(format!("{name} with heads of {} channels: it goes up to {most}", p.head_dim))
                })?;
                let fields = [p.batch, p.queries, p.keys, p.heads, p.head_dim, p.causal, p.scale.to_bits()];
                let arguments = arguments
                    .address(address_of(q))
                    .address(address_of(k))
                    .address(address_of(v))
                    .address(address_of(out));
                self.launch(&launch, arguments.fields(&fields), &[])
            }
            Op::GroupNorm { p, x, w } => {
                self.group_norm(p, x, w, scratch.expect("an op has the scratch that it asks for"), out)
            }
            Op::LayerNorm { p, x, w } => {
                let (weight, bias) = parts(w);
                let kernel = format!("{name}_{}", x.dtype());
                let arguments = arguments.address(address_of(x)).address(weight).address(bias).address(address_of(out));
                self.launch(
                    &Launch { kernel, grid: [p.rows.div_ceil(8), 1, 1], threads: 256 },
                    arguments.fields(&[p.rows, p.channels, p.eps.to_bits()]),
                    &[w],
                )
            }
            Op::Embedding { p, ids, table, positions } => {
                let launch = launch::each(name, out.dtype(), p.batch * p.tokens * p.channels);
                let tables = [parts(table).0, parts(positions).0];
                let arguments =
                    arguments.address(address_of(ids)).address(tables[0]).address(tables[1]).address(address_of(out));
                let fields = [p.batch, p.tokens, p.channels, p.vocab];
                self.launch(&launch, arguments.fields(&fields), &[table, positions])
            }
            Op::Upsample2x { p, x } => {
                let launch = launch::each(name, x.dtype(), p.batch * p.out_height * p.out_width * p.channels);
                let fields = [p.batch, p.height, p.width, p.channels, p.out_height, p.out_width];
                self.launch(&launch, arguments.address(address_of(x)).address(address_of(out)).fields(&fields), &[])
            }
            Op::ConcatChannels { p, a, b } => {
                let launch = launch::each(name, a.dtype(), p.rows * (p.left + p.right));
                let arguments = arguments.address(address_of(a)).address(address_of(b)).address(address_of(out));
                self.launch(&launch, arguments.fields(&[p.rows, p.left, p.right]), &[])
            }
            Op::Activate { p, activation, x } => {
                let launch = launch::each(name, x.dtype(), p.rows * p.channels);
                let fields = [p.rows, p.channels, number(activation)];
                self.launch(&launch, arguments.address(address_of(x)).address(address_of(out)).fields(&fields), &[])
            }
            Op::AddChannels { p, x, per_channel } => {
                let launch = launch::each(name, x.dtype(), p.batch * p.pixels * p.channels);
                let arguments =
                    arguments.address(address_of(x)).address(address_of(per_channel)).address(address_of(out));
                let fields = [p.batch, p.pixels, p.channels, p.per_channel_rows];
                self.launch(&launch, arguments.fields(&fields), &[])
            }
            Op::ScaleAdd { p, terms } => {
                let launch = launch::each(name, out.dtype(), p.elements);
                let mut fields = [p.elements, terms.len() as u32, 0, 0, 0, 0, 0, 0];
                // Terms beyond the last one are never read.
                let mut from = [address_of(terms[0].1); 6];
                for (i, &(scale, x, start)) in terms.iter().enumerate() {
                    fields[2 + i] = scale.to_bits();
                    from[i] = address_of(x) + (start * x.dtype().size()) as u64;
                }
                let arguments = from.into_iter().fold(arguments, Arguments::address);
                self.launch(&launch, arguments.address(address_of(out)).fields(&fields), &[])
            }
            Op::Cast { x } => {
                let elements = x.elements() as u32;
                let kernel = format!("{name}_{}_{}", x.dtype(), out.dtype());
                let launch = Launch { kernel, grid: [elements.div_ceil(4 * 256), 1, 1], threads: 256 };
                self.launch(&launch, arguments.address(address_of(x)).address(address_of(out)).fields(&[elements]), &[])
            }
        }
    }

    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()> {
        let (mut ring, stream) = (locked(&self.uploads), self.queues.compute.stream()?);
        let (memory, start) = memory_of(out);
        for (i, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            ring.upload(stream, piece.len(), (memory, start + i * PIECE_BYTES), |to| {
                to.copy_from_slice(piece);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        let (mut staging, stream) = (locked(&self.download), self.queues.compute.stream()?);
        let (memory, start) = memory_of(x);
        for (i, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
            stream.download(memory, start + i * PIECE_BYTES, piece.len(), &mut staging)?;
            stream.synchronize()?;
            piece.copy_from_slice(&staging.as_mut()[..piece.len()]);
        }
        Ok(())
    }

    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()> {
        let ((x, x_start), (out, out_start)) = (memory_of(x), memory_of(out));
        self.queues.compute.stream()?.copy((x, x_start + from), (out, out_start + to), bytes)
    }

    fn start_recording(&self) {
        self.queues.compute.start_recording();
    }

    fn submit_recorded(&self) -> Result<()> {
        self.queues.compute.submit_recorded()
    }

    fn receive(&self, x: &Buffer, out: &mut Buffer) -> Result<bool> {
        let Some(Arena { memory, queues: sender }) = arena(x) else { return Ok(false) };
        if peer::link(memory.context(), &self.gpu.context)? != Link::Direct {
            return Ok(false);
        }
        let (theirs, ours) = (sender.compute.stream()?, self.queues.compute.stream()?);
        // From here on the tensor is computed, and the memory of `out` is no longer used by earlier work.
        sender.copy.wait(&theirs.record()?)?;
        sender.copy.wait(&ours.record()?)?;
        sender.copy.send(memory_of(x), memory_of(out), x.bytes())?;
        let arrived = sender.copy.record()?;
        ours.wait(&arrived)?;
        // The sender may reuse the memory as soon as this returns, so its queue waits for the copy. Otherwise the
        // tensor would have to live for longer than the plan counts.
        theirs.wait(&arrived)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_names_the_gpu_and_whose_code_runs_if_it_is_anothers() {
        assert_eq!(class(89, 89).to_string(), "cuda sm_89 f16");
        assert_eq!(class(90, 80).to_string(), "cuda sm_90 as sm_80 f16");
        assert_eq!(class(90, 80).in_type(Precision::BF16).to_string(), "cuda sm_90 as sm_80 bf16");
    }
}
