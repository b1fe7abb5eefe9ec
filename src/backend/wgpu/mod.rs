//! GPUs of every make, through wgpu: Vulkan, Metal or Direct3D 12.
//!
//! An op is one dispatch of a shader in `shaders/`, recorded and sent together with others. Weights have buffers of
//! their own. An arena is one buffer, of which an op binds the ranges that it uses: all of them for writing too, as a
//! buffer may be bound in one way only. Numbers are f32. Every loop of a shader runs in an order that depends on the
//! layer alone.
//!
//! What a GPU has to move, on paper. "Once" is what the op cannot do without; more than that comes from caches.
//!
//! | op | reads | writes | workgroup memory | invocations and what they hold |
//! |---|---|---|---|---|
//! | `linear`, `conv2d` | x once per 4 WIDTH columns (512 at most) and tap; w once per 8 rows, coalesced | once | none | up to 128; 32 sums each, 64 for GEGLU |
//! | `attention` | q once per 64 keys; k and v once per 16 queries | once | 4.2 KiB | 64; 64 sums each, 128 for heads of more than 256 channels |
//! | `group_norm` | x three times, the second from the cache | once, and 8 bytes per 64 pixels and group | 768 B | 32, 64 and 64; a few |
//! | `layer_norm` | x three times, two of them from the cache | once | 256 B | 64; a few |
//! | `activate`, `add_channels`, `scale_add`, `cast`, copies | once | once | none | 64; one element each |
//!
//! Workgroup memory of 16 KiB and workgroups of 128 are what every driver offers, so neither limits how many run at a time;
//! the sums of `linear` leave room for 16 warps of 32 on a multiprocessor with 65536 registers.

mod device;
mod pipeline;

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use wgpu::{Adapter, BindingResource, BufferBinding, DeviceType};

use super::{
    Activation, Backend, Buffer, DType, DeviceId, DeviceInfo, DeviceKind, Epilogue, Fusion, Layer, Rates, Slab, Term,
    Values, Weight, WeightData, device as devices,
    dry::Rules,
    gpu_cost,
    params::{
        Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
    },
    rates,
};
use crate::error::{Error, Result};
use device::{Context, PIECE_BYTES, adapters, lacks};
use pipeline::{Access, Constants, Pipelines, Shader, Variant};

/// Rows of a product that one invocation computes, as in `product.wgsl`.
const ROWS: u32 = 8;
/// Queries that a workgroup of attention looks at, as in `attention.wgsl`.
const QUERIES: u32 = 16;
/// Workgroups along one dimension: what every driver offers.
const MOST_GROUPS: u32 = 65535;
/// Channels of a head that attention goes up to.
const MOST_HEAD_DIM: u32 = 512;

/// One device of an adapter.
pub struct Wgpu {
    context: Context,
    pipelines: Pipelines,
    class: String,
    home: Arc<str>,
    /// Stands in the place of a bias that is not there.
    nothing: wgpu::Buffer,
}

/// A layer's parameters. Products have `[k, out]`, convolutions `[kernel, kernel, channels, out]`, all others the order
/// of the file.
pub struct Packed {
    weight: wgpu::Buffer,
    bias: Option<wgpu::Buffer>,
}

/// The same in the host's memory, for a weight that visits the device.
pub struct Resting {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// The numerics class of an adapter.
fn class(adapter: &Adapter) -> String {
    let info = adapter.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    format!("wgpu {}, {} f32", info.name, driver.trim())
}

/// What this machine has under the names `wgpu:N`. An adapter that is the processor itself is used only where it is
/// named.
pub fn infos() -> Vec<DeviceInfo> {
    (0..adapters().len()).filter_map(info).collect()
}

/// What is known of an adapter; `None` if there is none of this number that can be used.
pub fn info(index: usize) -> Option<DeviceInfo> {
    let adapter = adapters().get(index).filter(|adapter| lacks(adapter).is_none())?;
    let described = adapter.get_info();
    let is_processor = described.device_type == DeviceType::Cpu;
    let memory_bytes = memory_bytes(adapter);
    let rates = if is_processor { PROCESSOR } else { GRAPHICS };
    Some(DeviceInfo {
        id: DeviceId::new(DeviceKind::Wgpu, index),
        name: format!("{} ({:?}, {:?})", described.name, described.device_type, described.backend),
        class: class(adapter),
        cores: 0,
        allowed_cores: Vec::new(),
        memory_bytes,
        free_bytes: devices::plannable(memory_bytes),
        overhead_bytes: OVERHEAD_BYTES,
        rules: Rules::Wgpu(DType::F32),
        rates,
        f32_flops: rates.flops,
        only_named: is_processor,
    })
}

/// What the driver, pipelines and staging buffers take: an allowance.
const OVERHEAD_BYTES: u64 = 256 << 20;
/// What a GPU is planned with: a processor's own graphics.
const GRAPHICS: Rates = Rates { flops: 2e12, bandwidth: 60e9, link: 10e9 };
/// What an adapter that is the processor is planned with.
const PROCESSOR: Rates = Rates { flops: 1e10, bandwidth: 5e9, link: 5e9 };

/// The adapter's own memory, in bytes. wgpu does not tell; Vulkan does.
fn memory_bytes(adapter: &Adapter) -> u64 {
    #[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
    {
        use wgpu::hal::api::Vulkan;
        // SAFETY: the handles are only asked for properties, and live as long as the guard.
        let heaps = unsafe { adapter.as_hal::<Vulkan>() }.map(|vulkan| {
            let instance = vulkan.shared_instance().raw_instance();
            // SAFETY: the physical device is this instance's.
            let memory = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
            let heaps = memory.memory_heaps_as_slice().iter();
            // Bit 0: the device's own.
            heaps.filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).sum::<u64>()
        });
        if let Some(bytes) = heaps.filter(|&bytes| bytes > 0) {
            return bytes;
        }
    }
    adapter.limits().max_buffer_size
}

/// Opens adapter `adapter` under the name `id`.
///
/// # Errors
/// If there is no such adapter, or its driver refuses.
pub fn open(id: DeviceId, adapter: usize) -> Result<Wgpu> {
    let Some(adapter) = adapters().get(adapter) else { return Err(devices::absent(id)) };
    Wgpu::new(id, adapter)
}

/// Parameters of one call: the words that a shader reads.
#[derive(Default)]
struct Parameters(Vec<u8>);

impl Parameters {
    fn u32s(mut self, values: &[u32]) -> Self {
        self.0.extend(bytemuck::cast_slice(values));
        self
    }

    fn f32s(mut self, values: &[f32]) -> Self {
        self.0.extend(bytemuck::cast_slice(values));
        self
    }
}

/// Workgroups in rows of at most [`MOST_GROUPS`].
fn spread(groups: u32) -> (u32, u32) {
    let lines = groups.div_ceil(MOST_GROUPS);
    (groups.div_ceil(lines.max(1)), lines.max(1))
}

/// As numbered in the shaders.
fn number(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::Silu => 1,
        Activation::Gelu => 2,
        Activation::QuickGelu => 3,
        Activation::Geglu => 4,
    }
}

fn type_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 | DType::U32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}

fn packed(w: &Weight) -> &Packed {
    match w.data() {
        WeightData::Gpu(data) => data.downcast_ref(),
        _ => None,
    }
    .expect("tensor/ops.rs compares devices: a weight is in the memory of the device that it reaches")
}

fn slab(buffer: &Buffer) -> &wgpu::Buffer {
    match buffer.slab() {
        Slab::Gpu(slab) => slab.downcast_ref(),
        _ => None,
    }
    .expect("tensor/ops.rs compares devices: a buffer is in the memory of the device that it reaches")
}

/// `count` elements from `start` on, as f32.
fn read(values: Values, start: usize, to: &mut [f32]) -> Result<()> {
    let Values::Data { dtype, bytes } = values else {
        return Err(Error::process("a weight without values cannot be packed for a GPU"));
    };
    let bytes = &bytes[start * dtype.size()..][..to.len() * dtype.size()];
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut(to).copy_from_slice(bytes),
        DType::F16 => {
            let halves: Vec<half::f16> =
                bytes.chunks_exact(2).map(|x| half::f16::from_le_bytes([x[0], x[1]])).collect();
            halves.convert_to_f32_slice(to);
        }
        DType::BF16 => {
            let values = bytes.chunks_exact(2).map(|x| half::bf16::from_le_bytes([x[0], x[1]]).to_f32());
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
        }
        DType::U32 => return Err(Error::input("weights of type u32 are none")),
    }
    Ok(())
}

/// Calls `write(first element, values)` with the elements of a layer's weight in the order in which shaders read them,
/// a piece at a time.
fn in_order(layer: Layer, weight: Values, mut write: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
    const PIECE: usize = PIECE_BYTES / 4;
    let (out, channels, taps) = match layer {
        Layer::Linear { out, k } | Layer::Geglu { out, k } => (out, k, 1),
        Layer::Conv2d { out, channels, kernel } => (out, channels, kernel * kernel),
        Layer::Norm { .. } | Layer::Embedding { .. } => {
            let elements = layer.elements().0;
            let mut piece = vec![0.0; PIECE.min(elements)];
            for start in (0..elements).step_by(PIECE) {
                let count = PIECE.min(elements - start);
                read(weight, start, &mut piece[..count])?;
                write(start, &piece[..count])?;
            }
            return Ok(());
        }
    };
    // From [out, channels, taps] as stored to [taps, channels, out].
    let step = (PIECE / (out * taps)).clamp(1, channels);
    let mut row = vec![0.0; step * taps];
    let mut piece = vec![0.0; step * taps * out];
    for first in (0..channels).step_by(step) {
        let count = step.min(channels - first);
        for column in 0..out {
            read(weight, (column * channels + first) * taps, &mut row[..count * taps])?;
            for (i, value) in row[..count * taps].iter().enumerate() {
                piece[((i % taps) * count + i / taps) * out + column] = *value;
            }
        }
        for tap in 0..taps {
            write((tap * channels + first) * out, &piece[tap * count * out..][..count * out])?;
        }
    }
    Ok(())
}

impl Wgpu {
    /// A device of its own on `adapter`.
    fn new(id: DeviceId, adapter: &Adapter) -> Result<Self> {
        let context = Context::open(id, adapter)?;
        let home = format!("memory of {id}, device {}", context.number).into();
        let nothing = context.buffer(256, "nothing")?;
        let kept = wgpu::util::pipeline_cache_key(&adapter.get_info());
        let file = kept.and_then(|name| Some(rates::cache_folder()?.join(name)));
        let pipelines = Pipelines::new(&context.device, file);
        Ok(Self { context, pipelines, class: class(adapter), home, nothing })
    }

    /// The driver's device. Destroying it is how a lost one is tried out.
    pub fn driver(&self) -> wgpu::Device {
        self.context.device.clone()
    }

    /// The whole of a tensor, for an op to use.
    fn range<'a>(&self, buffer: &'a Buffer) -> Result<BindingResource<'a>> {
        let size = (buffer.bytes().max(1) as u64).next_multiple_of(256);
        let most = self.context.limits.max_storage_buffer_binding_size;
        if size > most {
            return Err(Error::request(format!("a tensor of {} bytes on {}", buffer.bytes(), self.class))
                .found(format!("the driver goes up to {most} bytes"))
                .hint("a smaller width and height, or another device for this component"));
        }
        let size = std::num::NonZero::new(size);
        Ok(BindingResource::Buffer(BufferBinding { buffer: slab(buffer), offset: buffer.offset() as u64, size }))
    }

    /// Enqueues one dispatch. `arenas` and `weights` fill the shader's bindings in order; what is missing at the end of
    /// the arenas is bound to the first of them.
    fn run(
        &self,
        variant: Variant,
        arenas: &[&Buffer],
        weights: Vec<BindingResource>,
        parameters: Parameters,
        groups: [u32; 3],
    ) -> Result<()> {
        let shader = variant.shader;
        let (mut arena, mut weight) = (arenas.iter(), weights.into_iter());
        let mut bindings = Vec::with_capacity(shader.bindings().len());
        for access in shader.bindings() {
            bindings.push(match access {
                Access::Arena => self.range(arena.next().unwrap_or(&arenas[0]))?,
                Access::Weight => weight.next().unwrap_or_else(|| self.nothing.as_entire_binding()),
            });
        }
        let group = self.pipelines.bind(&self.context.device, shader, bindings);
        let pipeline = self.pipelines.get(&self.context.device, variant);
        self.context.dispatch(&pipeline, &group, &parameters.0, groups)
    }

    fn layer<'a>(&'a self, w: &'a Weight) -> (Vec<BindingResource<'a>>, u32) {
        let packed = packed(w);
        let bias = packed.bias.as_ref().unwrap_or(&self.nothing);
        (vec![packed.weight.as_entire_binding(), bias.as_entire_binding()], u32::from(packed.bias.is_some()))
    }

    /// One invocation for each of `elements`, in workgroups of 64.
    fn each(
        &self,
        shader: Shader,
        entry: &'static str,
        arenas: &[&Buffer],
        parameters: Parameters,
        elements: u32,
    ) -> Result<()> {
        let (x, y) = spread(elements.div_ceil(64));
        self.run(Variant { shader, entry, constants: Vec::new() }, arenas, Vec::new(), parameters, [x, y, 1])
    }

    #[expect(clippy::too_many_arguments, reason = "what linear and conv2d have in common")]
    fn product(
        &self,
        shader: Shader,
        parameters: Parameters,
        [rows, channels, out]: [u32; 3],
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        to: &Buffer,
    ) -> Result<()> {
        let geglu = e.activation == Activation::Geglu;
        let columns = if geglu { out / 2 } else { out };
        let fours = columns.div_ceil(4);
        let groups = fours.div_ceil(128);
        let width = fours.div_ceil(groups).next_multiple_of(8);
        let (weights, has_bias) = self.layer(w);
        let constants: Constants = vec![
            ("WIDTH", width),
            ("K4", u32::from(channels.is_multiple_of(4))),
            ("N4", u32::from(out.is_multiple_of(4))),
            ("HAS_BIAS", has_bias),
            ("HAS_ADD", u32::from(e.channel_add.is_some())),
            ("HAS_RESIDUAL", u32::from(e.residual.is_some())),
            ("GEGLU", u32::from(geglu)),
            ("ACTIVATION", number(if geglu { Activation::None } else { e.activation })),
        ];
        let add = e.channel_add.map_or(x, |(add, _)| add);
        let (y, z) = spread(rows.div_ceil(ROWS));
        let variant = Variant { shader, entry: "product", constants };
        self.run(variant, &[x, add, e.residual.unwrap_or(x), to], weights, parameters, [fours.div_ceil(width), y, z])
    }

    fn upload(&self, label: &str, elements: usize, values: &[f32]) -> Result<wgpu::Buffer> {
        let buffer = self.context.buffer(elements * 4, label)?;
        self.context.write(bytemuck::cast_slice(values), &buffer, 0)?;
        Ok(buffer)
    }

    fn weight(&self, layer: Layer, dtype: DType, has_bias: bool, data: WeightData) -> Weight {
        let bytes = self.packed_bytes(layer, dtype, has_bias);
        Weight::new(layer, dtype, has_bias, bytes, self.home.clone(), data)
    }

    fn check_layer(&self, layer: Layer) -> Result<()> {
        let (elements, _) = layer.elements();
        let most = self.context.limits.max_storage_buffer_binding_size as usize;
        // A table is bound in parts.
        let splits = matches!(layer, Layer::Embedding { .. });
        if elements >= 1 << 31 || (!splits && elements * 4 > most) {
            return Err(Error::input(format!("{layer:?} has {elements} elements in f32"))
                .found(format!("{} goes up to {most} bytes", self.class))
                .hint("another device for this component"));
        }
        Ok(())
    }
}

fn bias_values(layer: Layer, bias: Option<Values>) -> Result<Option<Vec<f32>>> {
    let Some(bias) = bias else { return Ok(None) };
    let mut values = vec![0.0; layer.elements().1];
    read(bias, 0, &mut values)?;
    Ok(Some(values))
}

impl Backend for Wgpu {
    fn class(&self) -> &str {
        &self.class
    }

    fn weight_home(&self) -> &str {
        &self.home
    }

    fn computes_in(&self, dtype: DType) -> bool {
        dtype == DType::F32
    }

    fn slab(&self, bytes: usize) -> Result<Slab> {
        Ok(Slab::Gpu(Arc::new(self.context.buffer(bytes, "arena")?)))
    }

    fn pack(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.check_layer(layer)?;
        let elements = layer.elements().0;
        let buffer = self.context.buffer(elements * 4, "weight")?;
        in_order(layer, weight, |start, values| {
            self.context.write(bytemuck::cast_slice(values), &buffer, start * 4)?;
            // A large weight goes in pieces, so that no copy of all of it is made on the way.
            if elements * 4 > PIECE_BYTES { self.context.settle() } else { Ok(()) }
        })?;
        let values = bias_values(layer, bias)?;
        let bias = values.as_ref().map(|values| self.upload("bias", values.len(), values)).transpose()?;
        let has_bias = bias.is_some();
        Ok(self.weight(layer, dtype, has_bias, WeightData::Gpu(Arc::new(Packed { weight: buffer, bias }))))
    }

    fn pack_to_rest(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.check_layer(layer)?;
        let mut values = vec![0.0; layer.elements().0];
        in_order(layer, weight, |start, piece| {
            values[start..][..piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        let resting = Resting { weight: values, bias: bias_values(layer, bias)? };
        let has_bias = resting.bias.is_some();
        Ok(self.weight(layer, dtype, has_bias, WeightData::Gpu(Arc::new(resting))))
    }

    fn packed_bytes(&self, layer: Layer, dtype: DType, has_bias: bool) -> usize {
        gpu_cost::packed_bytes(dtype, layer, has_bias)
    }

    fn fetch(&self, resting: &Weight) -> Result<Weight> {
        let from = match resting.data() {
            WeightData::Gpu(data) => data.downcast_ref::<Resting>(),
            _ => None,
        };
        let from = from.expect("what a device fetches is what it packed to rest");
        let weight = self.upload("weight", from.weight.len(), &from.weight)?;
        let bias = from.bias.as_ref().map(|bias| self.upload("bias", bias.len(), bias)).transpose()?;
        let data = WeightData::Gpu(Arc::new(Packed { weight, bias }));
        Ok(self.weight(resting.layer, resting.dtype, resting.has_bias, data))
    }

    fn supports(&self, _: Fusion) -> bool {
        true
    }

    fn attention_scratch(&self, p: &Attention) -> usize {
        gpu_cost::attention_scratch(p)
    }

    fn group_norm_scratch(&self, p: &GroupNorm) -> usize {
        gpu_cost::group_norm_scratch(p)
    }

    fn linear(&self, p: Linear, x: &Buffer, w: &Weight, e: &Epilogue, out: &mut Buffer) -> Result<()> {
        let rows_per_add = rows_per_add(e, p.rows, p.rows);
        let parameters = Parameters::default().u32s(&[p.rows, p.out, p.k, rows_per_add]);
        self.product(Shader::Linear, parameters, [p.rows, p.k, p.out], x, w, e, out)
    }

    fn conv2d(&self, p: Conv2d, x: &Buffer, w: &Weight, e: &Epilogue, out: &mut Buffer) -> Result<()> {
        let rows = p.batch * p.out_height * p.out_width;
        let rows_per_add = rows_per_add(e, rows, rows);
        let size = [p.batch, p.height, p.width, p.channels, p.out, p.kernel, p.stride, p.padding];
        let parameters = Parameters::default().u32s(&size).u32s(&[p.out_height, p.out_width, rows_per_add]);
        self.product(Shader::Conv2d, parameters, [rows, p.channels, p.out], x, w, e, out)
    }

    fn attention(
        &self,
        p: Attention,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        _: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()> {
        if p.head_dim > MOST_HEAD_DIM || p.batch * p.heads > MOST_GROUPS || p.queries.div_ceil(QUERIES) > MOST_GROUPS {
            return Err(Error::request(format!(
                "attention of {} heads of {} channels over {} queries on {}: it goes up to {MOST_HEAD_DIM} channels",
                p.batch * p.heads,
                p.head_dim,
                p.queries,
                self.class
            )));
        }
        let fours = p.head_dim.div_ceil(4);
        let lanes = fours.next_power_of_two().clamp(4, 64);
        let constants: Constants = vec![
            ("D4", fours),
            ("WHOLE", u32::from(p.head_dim.is_multiple_of(4))),
            ("LANES", lanes),
            ("TWICE", u32::from(fours > lanes)),
        ];
        let parameters =
            Parameters::default().u32s(&[p.batch, p.queries, p.keys, p.heads, p.head_dim, p.causal]).f32s(&[p.scale]);
        let variant = Variant { shader: Shader::Attention, entry: "attention", constants };
        let groups = [p.queries.div_ceil(QUERIES), p.batch * p.heads, 1];
        self.run(variant, &[q, k, v, out], Vec::new(), parameters, groups)
    }

    fn group_norm(&self, p: GroupNorm, x: &Buffer, w: &Weight, scratch: &mut Buffer, out: &mut Buffer) -> Result<()> {
        let chunks = p.pixels.div_ceil(64);
        if chunks > MOST_GROUPS || p.batch > MOST_GROUPS || p.groups > MOST_GROUPS {
            return Err(Error::request(format!("group norm of {} pixels is too large for {}", p.pixels, self.class)));
        }
        let (x_groups, lines) = spread((p.batch * p.pixels * p.channels).div_ceil(64));
        for (entry, groups) in
            [("statistics", [chunks, p.batch, 1]), ("combine", [p.groups, p.batch, 1]), ("scale", [x_groups, lines, 1])]
        {
            let (weights, has_bias) = self.layer(w);
            let constants = if entry == "combine" { vec![("HAS_BIAS", has_bias)] } else { Vec::new() };
            let parameters =
                Parameters::default().u32s(&[p.batch, p.pixels, p.channels, p.groups]).f32s(&[p.eps]).u32s(&[p.silu]);
            let variant = Variant { shader: Shader::GroupNorm, entry, constants };
            self.run(variant, &[x, scratch, out], weights, parameters, groups)?;
        }
        Ok(())
    }

    fn layer_norm(&self, p: LayerNorm, x: &Buffer, w: &Weight, out: &mut Buffer) -> Result<()> {
        let (weights, has_bias) = self.layer(w);
        let parameters = Parameters::default().u32s(&[p.rows, p.channels]).f32s(&[p.eps]);
        let constants = vec![("HAS_BIAS", has_bias)];
        let (groups, lines) = spread(p.rows);
        let variant = Variant { shader: Shader::LayerNorm, entry: "layer_norm", constants };
        self.run(variant, &[x, out], weights, parameters, [groups, lines, 1])
    }

    fn embedding(
        &self,
        p: Embedding,
        ids: &Buffer,
        table: &Weight,
        positions: &Weight,
        out: &mut Buffer,
    ) -> Result<()> {
        // A table beyond what can be bound at once goes in parts that begin where a binding may begin.
        let row_bytes = 4 * p.channels as usize;
        let most = self.context.limits.max_storage_buffer_binding_size as usize;
        let rows = (most / row_bytes / 64 * 64).clamp(64, (p.vocab as usize).next_multiple_of(64));
        for first in (0..p.vocab as usize).step_by(rows) {
            let bound = rows.min(p.vocab as usize - first);
            let part = BindingResource::Buffer(BufferBinding {
                buffer: &packed(table).weight,
                offset: (first * row_bytes) as u64,
                size: std::num::NonZero::new((bound * row_bytes) as u64),
            });
            let weights = vec![part, packed(positions).weight.as_entire_binding()];
            let size = [p.batch, p.tokens, p.channels, p.vocab, first as u32, bound as u32];
            let (x, y) = spread((p.batch * p.tokens * p.channels).div_ceil(64));
            let variant = Variant { shader: Shader::Layout, entry: "embedding", constants: Vec::new() };
            self.run(variant, &[ids, ids, out], weights, Parameters::default().u32s(&size), [x, y, 1])?;
        }
        Ok(())
    }

    fn upsample2x(&self, p: Upsample, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let size = [p.batch, p.height, p.width, p.channels, p.out_height, p.out_width];
        let elements = p.batch * p.out_height * p.out_width * p.channels;
        self.each(Shader::Layout, "upsample2x", &[x, x, out], Parameters::default().u32s(&size), elements)
    }

    fn concat_channels(&self, p: Concat, a: &Buffer, b: &Buffer, out: &mut Buffer) -> Result<()> {
        let parameters = Parameters::default().u32s(&[p.rows, p.left, p.right]);
        self.each(Shader::Layout, "concat_channels", &[a, b, out], parameters, p.rows * (p.left + p.right))
    }

    fn activate(&self, p: Activate, activation: Activation, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let parameters = Parameters::default().u32s(&[p.rows, p.channels, number(activation)]);
        self.each(Shader::Elementwise, "activate", &[x, x, x, x, x, x, out], parameters, p.rows * p.channels)
    }

    fn add_channels(&self, p: AddChannels, x: &Buffer, per_channel: &Buffer, out: &mut Buffer) -> Result<()> {
        let parameters = Parameters::default().u32s(&[p.batch, p.pixels, p.channels, p.per_channel_rows]);
        let elements = p.batch * p.pixels * p.channels;
        self.each(Shader::Elementwise, "add_channels", &[x, per_channel, x, x, x, x, out], parameters, elements)
    }

    fn scale_add(&self, p: ScaleAdd, terms: &[Term], out: &mut Buffer) -> Result<()> {
        let (mut scales, mut starts) = ([0.0; 6], [0; 6]);
        let mut arenas: [&Buffer; 7] = [terms[0].1; 7];
        for (i, &(scale, x, start)) in terms.iter().enumerate() {
            (scales[i], starts[i], arenas[i]) = (scale, start as u32, x);
        }
        arenas[6] = out;
        let parameters = Parameters::default().u32s(&[p.elements, terms.len() as u32]).f32s(&scales).u32s(&starts);
        self.each(Shader::Elementwise, "scale_add", &arenas, parameters, p.elements)
    }

    fn cast(&self, x: &Buffer, out: &mut Buffer) -> Result<()> {
        let elements = x.elements() as u32;
        let parameters = Parameters::default().u32s(&[elements, type_number(x.dtype()), type_number(out.dtype())]);
        self.each(Shader::Layout, "convert", &[x, x, out], parameters, elements.div_ceil(2))
    }

    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()> {
        self.context.write(bytes, slab(out), out.offset())
    }

    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        self.context.read(slab(x), x.offset(), bytes)
    }

    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()> {
        // A whole tensor may end inside a word: the rest of the word is its range's padding.
        let whole = to == 0 && bytes == out.bytes();
        if !from.is_multiple_of(4) || !to.is_multiple_of(4) || !(bytes.is_multiple_of(4) || whole) {
            return Err(Error::request(format!(
                "{bytes} bytes from {from} to {to} are no whole words on {}",
                self.class
            )));
        }
        let words = bytes.div_ceil(4) as u32;
        let parameters = Parameters::default().u32s(&[words, (from / 4) as u32, (to / 4) as u32]);
        self.each(Shader::Layout, "copy", &[x, x, out], parameters, words)
    }
}

/// How many rows have a row of the per-channel sum in common.
fn rows_per_add(e: &Epilogue, rows: u32, otherwise: u32) -> u32 {
    e.channel_add.map_or(otherwise, |(_, adds)| rows / adds).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_those_of_the_shaders() {
        for (shader, line) in [
            (Shader::Linear, format!("const ROWS = {ROWS}u;")),
            (Shader::Linear, format!("var acc: array<vec4<f32>, {ROWS}>;")),
            (Shader::Conv2d, format!("const ROWS = {ROWS}u;")),
            (Shader::Attention, format!("const QUERIES = {QUERIES}u;")),
        ] {
            assert!(shader.source().contains(&line), "{shader:?}: {line}");
        }
    }

    #[test]
    fn workgroups_are_spread_over_rows_that_every_driver_takes() {
        for groups in [1, 2, MOST_GROUPS - 1, MOST_GROUPS, MOST_GROUPS + 1, 1 << 20, u32::MAX / 64] {
            let (x, y) = spread(groups);
            assert!(x <= MOST_GROUPS && y <= MOST_GROUPS && x * y >= groups && x * y - groups < y, "{groups}: {x} {y}");
        }
    }

    #[test]
    fn a_convolutions_weights_are_in_the_order_of_the_product() {
        let (out, channels, kernel) = (5, 3, 2);
        let layer = Layer::Conv2d { out, channels, kernel };
        let stored: Vec<f32> = (0..layer.elements().0).map(|i| i as f32).collect();
        let mut got = vec![f32::NAN; stored.len()];
        let weight = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&stored) };
        in_order(layer, weight, |start, values| {
            got[start..][..values.len()].copy_from_slice(values);
            Ok(())
        })
        .unwrap();
        for column in 0..out {
            for channel in 0..channels {
                for tap in 0..kernel * kernel {
                    let want = stored[(column * channels + channel) * kernel * kernel + tap];
                    assert_eq!(got[(tap * channels + channel) * out + column], want);
                }
            }
        }
    }
}
