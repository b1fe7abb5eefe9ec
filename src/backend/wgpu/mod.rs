//! GPUs of every make, through wgpu: Vulkan, Metal or Direct3D 12.
//!
//! An op is one dispatch of a shader in `shaders/`, recorded and submitted together with others. Weights have buffers
//! of their own. An arena is one buffer, of which an op binds the ranges that it uses: all of them as writable, because
//! a buffer may be bound in one way only. Every loop of a shader runs in an order that depends only on the layer.
//!
//! **Variants.** The source of a shader follows one of `f32.wgsl`, `f16.wgsl` and `packed.wgsl`, which define how
//! numbers are stored; all arithmetic is f32. `packed` is f16 in words, for adapters without the type. All three round
//! by the same integer arithmetic, so f16 gives the same bits with and without the type. Between them is one of
//! `alone.wgsl` and `subgroup.wgsl`, which define how invocations exchange values without workgroup memory: with
//! subgroups, norms compute the last levels of their trees of sums in a subgroup, and on an adapter that is the CPU,
//! invocations share their loads. Trees and chains are the same, so the bits do not depend on subgroups or their size.
//!
//! **llvmpipe** loads values for one invocation after the other, even if all of them load the same values, and checks
//! each word: this takes most of its time. Where eight invocations share their loads, a product of 1024x1024x1024 in
//! f32 takes 0.43 of the time (37 GFLOP/s for each second that both cores work, a sixth of their peak), a 3x3
//! convolution of 320 channels of 32x32 0.42, attention of 1024 queries and keys in 8 heads of 40 0.30, `layer_norm` of
//! 320 channels 0.8 and combining group norm's chunks 0.8 (Mesa 22.3, code for AVX2, two cores of a Zen 4).
//!
//! **Parts.** Tensors that are too large for one binding are computed in parts (`bind.rs`): rows, lines of a
//! convolution with the input of their windows, pixels of a norm, columns of a weight. Each element has the same chain
//! of operations in any part.
//!
//! The memory traffic of a GPU in theory, in numbers of the component's type. "Once" is the minimum; reads beyond it
//! come from caches.
//!
//! | op | reads | writes | workgroup memory | invocations and what they hold |
//! |---|---|---|---|---|
//! | `linear`, `conv2d` | x once per 256 columns and tap (once per 32 where it is shared out); w once per 16 rows, in panels of 32 columns | once | none | 64; 64 sums each, 128 for GEGLU |
//! | `attention` | q once per 16 keys; k and v once per 64 queries | once | none | 32; two rows of sums each, up to 256 channels |
//! | `group_norm` | x three times, the second from the cache | once, and 8 bytes per 64 pixels and group | 768 B | 32, 64 and 64; a few |
//! | `layer_norm` | x three times, two of them from the cache | once | 256 B | 64; a few |
//! | `activate`, `add_channels`, `scale_add`, `upsample2x`, `concat_channels` | once | once | none | 64; four elements each |
//! | `cast`, `copy` | once | once | none | 64; a word of the narrower type each |
//!
//! No op needs more than 768 bytes of workgroup memory or 64 invocations, which every driver offers, so neither limits
//! how many run at a time; the sums of `linear`, about 110 registers with what they are made of, leave room for 18
//! warps of 32 on a multiprocessor with 65536 registers.

mod bind;
mod bound;
mod device;
mod gpu;
mod memory;
mod pack;
mod pipeline;
mod product;

use std::{any::Any, sync::Arc};

use wgpu::{Adapter, DeviceType};

use super::{
    Activation, Backend, Buffer, DType, Device, DeviceId, DeviceInfo, DeviceKind, Form, Fusion, NumericsClass, Op,
    Precision, Rates, Slab, Values, Weight, WeightData, cpu, gpu_cost, gpu_rates, info,
    ops::Term,
    params::{Activate, AddChannels, Attention, Concat, Embedding, GroupNorm, LayerNorm, ScaleAdd, Upsample},
    rates::{self, Measured},
    rules::Rules,
};
use crate::error::{Error, Result};
use bound::Bound;
pub use device::Capabilities;
use device::{adapters, lacks};
pub use gpu::Wgpu;
use gpu::{MOST_GROUPS, Parameters, class, number, spread, type_number};
use memory::{Memory, STEP, parts, slab};
use pack::{host_weight, packed};
use pipeline::{Constants, Lanes, Shader, Storage, Variant};
use product::ROW_STEP;

/// The queries of one workgroup of attention, as in `attention.wgsl`.
const QUERIES: u32 = 64;
/// The keys that it reads at a time, as in `attention.wgsl`.
const KEYS: u32 = 16;
/// The largest number of groups of four channels that an invocation of attention sums.
const SLICE: u32 = 64;
/// The pixels whose statistics one workgroup of group norm computes, as in `group_norm.wgsl`.
const CHUNK: u32 = gpu_cost::NORM_CHUNK;

/// The devices `wgpu:N` of this machine. An adapter that is the CPU itself is used only where a map names it; with
/// `only_named`, so are all others. Such adapters are not opened for a measurement.
pub fn infos(only_named: bool) -> Vec<DeviceInfo> {
    let info = |index: usize| {
        let adapter = adapters().get(index)?;
        let only_named = only_named || adapter.get_info().device_type == DeviceType::Cpu;
        let opens = if only_named && !rates::is_measured_anew() { Opens::Nothing } else { Opens::Adapter };
        Some(DeviceInfo { only_named, ..info(index, opens)? })
    };
    (0..adapters().len()).filter_map(info).collect()
}

/// The adapter of this device with measured rates; `None` if there is no usable adapter.
pub fn measured(id: DeviceId) -> Option<DeviceInfo> {
    info(id.index?, Opens::Adapter)
}

/// Whether an adapter may be opened to measure rates that are not stored yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opens {
    Adapter,
    Nothing,
}

/// The facts about an adapter; `None` if there is no usable adapter with this number.
fn info(index: usize, opens: Opens) -> Option<DeviceInfo> {
    let adapter = adapters().get(index).filter(|adapter| lacks(adapter).is_none())?;
    let described = adapter.get_info();
    let memory_bytes = memory_bytes(adapter);
    let class = class(adapter, Capabilities::of(adapter));
    let rates = |precision| measured_rates(adapter, index, &class.in_type(precision), opens);
    let (measured, f32_flops) = (rates(Precision::F16), rates(Precision::F32).rates.flops);
    Some(DeviceInfo {
        id: DeviceId::new(DeviceKind::Wgpu, index),
        name: format!("{} ({:?}, {:?})", described.name, described.device_type, described.backend),
        cores: 0,
        allowed_cores: Vec::new(),
        memory_bytes,
        free_bytes: info::plannable(memory_bytes),
        overhead_bytes: OVERHEAD_BYTES,
        rules: Rules::Wgpu(Precision::F16),
        rates: measured.rates,
        f32_flops,
        rates_measured: measured.at,
        class,
        only_named: false,
    })
}

/// The speed of an adapter in the precision of `class`: measured at most once, by this process or an earlier one.
fn measured_rates(adapter: &Adapter, index: usize, class: &NumericsClass, opens: Opens) -> Measured {
    let key = match adapter.get_info().device_type {
        DeviceType::Cpu => format!("{class}, {}, {} cores", cpu::model_name(), cpu::threads::cores().len()),
        _ => class.to_string(),
    };
    let measure = || {
        let id = DeviceId::new(DeviceKind::Wgpu, index);
        let measured = open(id, index).and_then(|wgpu| gpu_rates::measure(&Device::new(id, wgpu), class.precision));
        measured.inspect_err(|error| tracing::debug!("how fast {id} is cannot be measured: {error}")).ok()
    };
    let measured = match opens {
        Opens::Adapter => rates::remembered(&key, measure),
        Opens::Nothing => rates::known(&key),
    };
    measured.unwrap_or(Measured { rates: UNMEASURED, at: None })
}

/// An allowance for the memory of the driver, pipelines and staging buffers.
const OVERHEAD_BYTES: u64 = 256 << 20;
/// The rates of an adapter that could not be measured: those of integrated graphics.
const UNMEASURED: Rates = Rates { flops: 2e12, bandwidth: 60e9, link: 10e9 };

/// The size of the adapter's own memory, in bytes. wgpu does not report it, but Vulkan does.
fn memory_bytes(adapter: &Adapter) -> u64 {
    #[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
    {
        use wgpu::hal::api::Vulkan;
        // SAFETY: only properties of the handles are read, and the handles live as long as the guard.
        let heaps = unsafe { adapter.as_hal::<Vulkan>() }.map(|vulkan| {
            let instance = vulkan.shared_instance().raw_instance();
            // SAFETY: the physical device is this instance's.
            let memory = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
            let heaps = memory.memory_heaps_as_slice().iter();
            // Bit 0 marks memory of the device itself.
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
/// If there is no such adapter, or its driver returns an error.
pub fn open(id: DeviceId, adapter: usize) -> Result<Wgpu> {
    open_with(id, adapter, |capabilities| capabilities)
}

/// Whether there is an adapter with this number.
pub fn is_there(adapter: usize) -> bool {
    adapter < adapters().len()
}

/// As [`open`], with fewer capabilities than the adapter has: for tests.
///
/// # Errors
/// As [`open`].
pub fn open_with(id: DeviceId, adapter: usize, fewer: impl Fn(Capabilities) -> Capabilities) -> Result<Wgpu> {
    let Some(adapter) = adapters().get(adapter) else { return Err(info::absent(id)) };
    Wgpu::new(id, adapter, fewer(Capabilities::of(adapter)))
}

impl Wgpu {
    /// Divides rows into parts, if tensors with this many rows are too large for one binding.
    fn row_parts(&self, rows: u32, tensors: &[&Buffer]) -> impl Iterator<Item = (usize, usize)> {
        let row_bytes = |buffer: &&Buffer| buffer.bytes() / rows as usize;
        let widest = tensors.iter().map(row_bytes).max().unwrap_or(1);
        let most = if self.fit(tensors) { rows as usize } else { self.rows_that_fit(widest) };
        parts(rows as usize, most, ROW_STEP)
    }

    fn layer<'a>(&'a self, w: &'a Weight) -> [Bound<'a>; 2] {
        let packed = packed(w);
        [packed.parts[0].memory.all(), packed.bias.as_ref().unwrap_or(&self.nothing).all()]
    }

    fn weight(&self, form: Form, data: impl Any + Send + Sync) -> Weight {
        Weight::new(form, self.packed_bytes(form), self.home.clone(), WeightData::Held(Arc::new(data)))
    }

    fn attention(&self, p: Attention, q: &Buffer, k: &Buffer, v: &Buffer, out: &Buffer) -> Result<()> {
        if p.batch * p.heads > MOST_GROUPS || p.queries.div_ceil(QUERIES) > MOST_GROUPS {
            return Err(Error::request(format!(
                "attention of {} heads over {} queries is too large for {}",
                p.batch * p.heads,
                p.queries,
                self.class
            )));
        }
        let fours = p.head_dim.div_ceil(4);
        // Slices of one size, as few as possible.
        let slices = fours.div_ceil(SLICE);
        self.check_turns(u64::from(p.keys.div_ceil(KEYS)) * u64::from(1 + fours + fours.div_ceil(slices)) + 512)?;
        let constants: Constants = vec![("WHOLE", u32::from(p.head_dim.is_multiple_of(4)))];
        let (width, dtype) = ((p.heads * p.head_dim) as usize, q.dtype());
        let (queries, keys) = (p.queries as usize * width, p.keys as usize * width);
        // One image at a time if all of them are too large for one binding.
        let each = if self.fit(&[q, k, v]) { p.batch } else { 1 };
        for (first, images) in parts(p.batch as usize, each as usize, 1) {
            let (q, q_first) = self.part(q, first * queries, images * queries)?;
            let (out, _) = self.part(out, first * queries, images * queries)?;
            let (k, k_first) = self.part(k, first * keys, images * keys)?;
            let (v, _) = self.part(v, first * keys, images * keys)?;
            let parameters = Parameters::default()
                .u32s(&[images as u32, p.queries, p.keys, p.heads, p.head_dim, p.causal])
                .f32s(&[p.scale])
                .u32s(&[q_first, k_first, fours.div_ceil(slices)]);
            let variant = self.variant(Shader::Attention, dtype, "attention", constants.clone());
            let groups = [p.queries.div_ceil(QUERIES), images as u32 * p.heads, slices];
            self.dispatch(variant, &[out, out, q, k, v], parameters, groups)?;
        }
        Ok(())
    }

    fn group_norm(&self, p: GroupNorm, x: &Buffer, w: &Weight, scratch: &Buffer, out: &Buffer) -> Result<()> {
        let chunks = p.pixels.div_ceil(CHUNK);
        if chunks > MOST_GROUPS || p.batch > MOST_GROUPS || p.groups > MOST_GROUPS {
            return Err(Error::request(format!("group norm of {} pixels is too large for {}", p.pixels, self.class)));
        }
        let [weight, bias] = self.layer(w);
        let has_bias = u32::from(w.form.has_bias);
        let width = p.channels as usize;
        let image = p.pixels as usize * width;
        // Each piece is: the first image, the number of images, the first pixel, the number of pixels.
        let fits = self.fit(&[x]);
        let most = self.rows_that_fit(width * x.dtype().size());
        let wholes = parts(p.batch as usize, if fits { p.batch as usize } else { 1 }, 1);
        let pieces: Vec<_> = wholes
            .flat_map(|(first, images)| {
                let pixels = parts(p.pixels as usize, if fits { p.pixels as usize } else { most }, ROW_STEP);
                pixels.map(move |(pixel, count)| (first, images, pixel, count))
            })
            .collect();
        for entry in ["statistics", "combine", "scale"] {
            for &(first, images, pixel, count) in &pieces {
                // One workgroup for each image and group combines all chunks, in the first piece only.
                if entry == "combine" && (first, pixel) != (0, 0) {
                    continue;
                }
                let elements = if images > 1 { images * image } else { count * width };
                let (x_bound, x_first) = self.part(x, first * image + pixel * width, elements)?;
                let (out_bound, _) = self.part(out, first * image + pixel * width, elements)?;
                let (origins, origin_first) = match fits {
                    true => (x_bound, x_first),
                    false => self.part(x, first * image, width)?,
                };
                let parameters = Parameters::default()
                    .u32s(&[p.batch, p.pixels, p.channels, p.groups])
                    .f32s(&[p.eps])
                    .u32s(&[p.silu, first as u32, images as u32, pixel as u32, count as u32, x_first, origin_first]);
                let groups = match entry {
                    "statistics" => [(count as u32).div_ceil(CHUNK), images as u32, 1],
                    "combine" => [p.groups, p.batch, 1],
                    _ => {
                        let (x, y) = spread((elements.div_ceil(4) as u32).div_ceil(64));
                        [x, y, 1]
                    }
                };
                let constants = if entry == "combine" { vec![("HAS_BIAS", has_bias)] } else { Vec::new() };
                let variant = self.variant(Shader::GroupNorm, x.dtype(), entry, constants);
                let bound = [out_bound, out_bound, x_bound, self.whole(scratch)?, origins, weight, bias];
                self.dispatch(variant, &bound, parameters, groups)?;
            }
        }
        Ok(())
    }

    fn layer_norm(&self, p: LayerNorm, x: &Buffer, w: &Weight, out: &Buffer) -> Result<()> {
        let [weight, bias] = self.layer(w);
        let width = p.channels as usize;
        for (first, rows) in self.row_parts(p.rows, &[x]) {
            let (x_bound, _) = self.part(x, first * width, rows * width)?;
            let (out, _) = self.part(out, first * width, rows * width)?;
            let parameters = Parameters::default().u32s(&[rows as u32, p.channels]).f32s(&[p.eps]);
            let constants =
                vec![("HAS_BIAS", u32::from(w.form.has_bias)), ("C4", u32::from(p.channels.is_multiple_of(4)))];
            let (groups, lines) = spread(rows as u32);
            let variant = self.variant(Shader::LayerNorm, x.dtype(), "layer_norm", constants);
            self.dispatch(variant, &[out, out, x_bound, weight, bias], parameters, [groups, lines, 1])?;
        }
        Ok(())
    }

    fn embedding(&self, p: Embedding, ids: &Buffer, table: &Weight, positions: &Weight, out: &Buffer) -> Result<()> {
        let (dtype, vocab) = (out.dtype(), p.vocab as usize);
        let row_bytes = dtype.size() * p.channels as usize;
        let (ids, to) = (self.whole(ids)?, self.whole(out)?);
        let [positions, _] = self.layer(positions);
        for (first, bound) in parts(vocab, self.rows_that_fit(row_bytes), ROW_STEP) {
            let table = packed(table).parts[0].memory.range(first * row_bytes, bound * row_bytes);
            let size = [p.batch, p.tokens, p.channels, p.vocab, first as u32, bound as u32];
            let (x, y) = spread((p.batch * p.tokens * p.channels).div_ceil(64));
            let variant = self.variant(Shader::Layout, dtype, "embedding", Vec::new());
            self.dispatch(
                variant,
                &[to, to, to, to, ids, table, positions],
                Parameters::default().u32s(&size),
                [x, y, 1],
            )?;
        }
        Ok(())
    }

    fn upsample2x(&self, p: Upsample, x: &Buffer, out: &Buffer) -> Result<()> {
        let size = [p.batch, p.height, p.width, p.channels, p.out_height, p.out_width];
        let channels = p.channels as usize;
        let (line, out_line) = (p.width as usize * channels, p.out_width as usize * channels);
        let fits = self.fit(&[x, out]);
        let most = self.rows_that_fit(out_line.max(line) * x.dtype().size());
        // The whole tensor, or lines of one image.
        let pieces: Vec<_> = match fits {
            true => vec![(0, (p.batch * p.out_height) as usize, 0, (p.batch * p.height) as usize)],
            false => (0..p.batch as usize)
                .flat_map(|image| {
                    parts(p.out_height as usize, most.saturating_sub(2).max(1), 1).map(move |(first, count)| {
                        let source = |y: usize| y * p.height as usize / p.out_height as usize;
                        let (begin, end) = (source(first), source(first + count - 1) + 1);
                        let (above, out_above) = (image * p.height as usize, image * p.out_height as usize);
                        (out_above + first, count, above + begin, end - begin)
                    })
                })
                .collect(),
        };
        for (first, count, begin, lines) in pieces {
            let (x_bound, x_first) = self.part(x, begin * line, lines * line)?;
            let (to, to_first) = self.part(out, first * out_line, count * out_line)?;
            let rows = count * p.out_width as usize;
            let row_first = first * p.out_width as usize;
            let parameters = Parameters::default().u32s(&size).u32s(&[
                rows as u32,
                row_first as u32,
                begin as u32,
                x_first,
                to_first,
            ]);
            let op = (Shader::Layout, x.dtype(), "upsample2x");
            self.fours(
                op,
                &[to, to, x_bound, x_bound, x_bound, self.nothing.all(), self.nothing.all()],
                parameters,
                rows * channels,
            )?;
        }
        Ok(())
    }

    fn concat_channels(&self, p: Concat, a: &Buffer, b: &Buffer, out: &Buffer) -> Result<()> {
        let (left, right) = (p.left as usize, p.right as usize);
        for (first, rows) in self.row_parts(p.rows, &[a, b, out]) {
            let (x, _) = self.part(a, first * left, rows * left)?;
            let (y, _) = self.part(b, first * right, rows * right)?;
            let (to, _) = self.part(out, first * (left + right), rows * (left + right))?;
            let parameters = Parameters::default().u32s(&[rows as u32, p.left, p.right]);
            let bound = [to, to, x, y, x, self.nothing.all(), self.nothing.all()];
            let op = (Shader::Layout, a.dtype(), "concat_channels");
            self.fours(op, &bound, parameters, rows * (left + right))?;
        }
        Ok(())
    }

    fn activate(&self, p: Activate, activation: Activation, x: &Buffer, out: &Buffer) -> Result<()> {
        let width = p.channels as usize;
        let wide = if activation == Activation::Geglu { 2 * width } else { width };
        for (first, rows) in self.row_parts(p.rows, &[x, out]) {
            let (a, _) = self.part(x, first * wide, rows * wide)?;
            let (to, _) = self.part(out, first * width, rows * width)?;
            let parameters = Parameters::default().u32s(&[rows as u32, p.channels, number(activation)]);
            let op = (Shader::Elementwise, x.dtype(), "activate");
            self.fours(op, &[to, to, a, a, a, a, a, a], parameters, rows * width)?;
        }
        Ok(())
    }

    fn add_channels(&self, p: AddChannels, x: &Buffer, per_channel: &Buffer, out: &Buffer) -> Result<()> {
        let (all, width) = (p.batch * p.pixels, p.channels as usize);
        let b = self.whole(per_channel)?;
        for (first, rows) in self.row_parts(all, &[x]) {
            let (a, _) = self.part(x, first * width, rows * width)?;
            let (to, _) = self.part(out, first * width, rows * width)?;
            let size = [rows as u32, p.channels, all / p.per_channel_rows, first as u32];
            let op = (Shader::Elementwise, x.dtype(), "add_channels");
            self.fours(op, &[to, to, a, b, a, a, a, a], Parameters::default().u32s(&size), rows * width)?;
        }
        Ok(())
    }

    fn scale_add(&self, p: ScaleAdd, terms: &[Term], out: &Buffer) -> Result<()> {
        for (first, count) in parts(p.elements as usize, self.rows_that_fit(4), ROW_STEP) {
            let (mut scales, mut starts) = ([0.0; 6], [0; 6]);
            let (to, _) = self.part(out, first, count)?;
            let mut bound = [to; 8];
            for (i, &(scale, x, start)) in terms.iter().enumerate() {
                (bound[2 + i], starts[i]) = self.part(x, start + first, count)?;
                scales[i] = scale;
            }
            let parameters =
                Parameters::default().u32s(&[count as u32, terms.len() as u32]).f32s(&scales).u32s(&starts);
            self.fours((Shader::Elementwise, DType::F32, "scale_add"), &bound, parameters, count)?;
        }
        Ok(())
    }

    fn cast(&self, x: &Buffer, out: &Buffer) -> Result<()> {
        for (first, count) in self.row_parts(x.elements() as u32, &[x, out]) {
            let (from, _) = self.part(x, first, count)?;
            let (to, _) = self.part(out, first, count)?;
            let types = [count as u32, type_number(x.dtype()), type_number(out.dtype())];
            let (groups, lines) = spread((count.div_ceil(2) as u32).div_ceil(64));
            self.dispatch(words("convert"), &[to, from], Parameters::default().u32s(&types), [groups, lines, 1])?;
        }
        Ok(())
    }
}

impl Backend for Wgpu {
    fn class(&self) -> &NumericsClass {
        &self.class
    }

    fn weight_home(&self) -> &str {
        &self.home
    }

    fn computes_in(&self, dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16)
    }

    fn slab(&self, bytes: usize) -> Result<Slab> {
        let memory = Memory::new(self.context.buffer(bytes, "arena")?, bytes, self.pipelines.groups());
        Ok(Slab::Held(Arc::new(memory)))
    }

    fn pack(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        Ok(self.weight(form, self.packed(form, weight, bias)?))
    }

    fn pack_to_host(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        Ok(self.weight(form, self.packed_for_host(form, weight, bias)?))
    }

    fn packed_bytes(&self, form: Form) -> usize {
        gpu_cost::packed_bytes(form)
    }

    fn fetch(&self, from: &Weight) -> Result<Weight> {
        Ok(self.weight(from.form, self.fetched(host_weight(from))?))
    }

    fn supports(&self, _: Fusion) -> bool {
        true
    }

    fn scratch(&self, op: &Op) -> Option<usize> {
        gpu_cost::wgpu_scratch(op)
    }

    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()> {
        match *op {
            Op::Linear { p, x, w, e } => self.linear(p, x, w, e, out),
            Op::Conv2d { p, x, w, e } => self.conv2d(p, x, w, e, out),
            Op::Attention { p, q, k, v, .. } => self.attention(p, q, k, v, out),
            Op::GroupNorm { p, x, w } => {
                self.group_norm(p, x, w, scratch.expect("an op has the scratch that it asks for"), out)
            }
            Op::LayerNorm { p, x, w } => self.layer_norm(p, x, w, out),
            Op::Embedding { p, ids, table, positions } => self.embedding(p, ids, table, positions, out),
            Op::Upsample2x { p, x } => self.upsample2x(p, x, out),
            Op::ConcatChannels { p, a, b } => self.concat_channels(p, a, b, out),
            Op::Activate { p, activation, x } => self.activate(p, activation, x, out),
            Op::AddChannels { p, x, per_channel } => self.add_channels(p, x, per_channel, out),
            Op::ScaleAdd { p, terms } => self.scale_add(p, terms, out),
            Op::Cast { x } => self.cast(x, out),
        }
    }

    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()> {
        let end = bytes.len() / 4 * 4;
        self.context.write(&bytes[..end], &slab(out).buffer, out.offset())?;
        if end == bytes.len() {
            return Ok(());
        }
        // The other half of the last word is not an element, and must not change.
        let mut word = [0; 4];
        self.context.read(&slab(out).buffer, out.offset() + end, &mut word)?;
        word[..bytes.len() - end].copy_from_slice(&bytes[end..]);
        self.context.write(&word, &slab(out).buffer, out.offset() + end)
    }

    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        self.context.read(&slab(x).buffer, x.offset(), bytes)
    }

    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()> {
        for (first, count) in parts(bytes, self.rows_that_fit(1), STEP) {
            let at =
                |buffer: &Buffer, byte: usize| (byte / buffer.dtype().size(), count.div_ceil(buffer.dtype().size()));
            let ((x_at, x_count), (to_at, to_count)) = (at(x, from + first), at(out, to + first));
            let (x_bound, x_first) = self.part(x, x_at, x_count)?;
            let (to_bound, to_first) = self.part(out, to_at, to_count)?;
            let halves = |elements: u32| elements * x.dtype().size() as u32 / 2;
            let parameters = Parameters::default().u32s(&[(count / 2) as u32, halves(x_first), halves(to_first)]);
            // One invocation per word of the result, whose first element may be in the middle of a word.
            let (groups, lines) = spread((count / 4 + 2).div_ceil(64) as u32);
            self.dispatch(words("copy"), &[to_bound, x_bound], parameters, [groups, lines, 1])?;
        }
        Ok(())
    }
}

/// An entry point that works on words.
fn words(entry: &'static str) -> Variant {
    Variant { shader: Shader::Words, storage: Storage::F32, lanes: Lanes::Alone, entry, constants: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_those_of_the_shaders() {
        for (shader, line) in [
            (Shader::Linear, format!("const ROWS = {}u;", product::ROWS)),
            (Shader::Linear, format!("const PANEL = {}u;", pack::PANEL)),
            (Shader::Linear, format!("const WIDTH = {}u;", product::WIDTH)),
            (Shader::Attention, format!("const QUERIES = {QUERIES}u;")),
            (Shader::Attention, format!("const KEYS = {KEYS}u;")),
            (Shader::Attention, format!("const MOST = {SLICE}u;")),
            (Shader::GroupNorm, format!("const CHUNK = {CHUNK}u;")),
        ] {
            assert!(shader.source(Storage::F32, Lanes::Alone).contains(&line), "{shader:?}: {line}");
        }
        let line = format!("const SHARE = {}u;", device::SHARE);
        assert!(Shader::Linear.source(Storage::F32, Lanes::Subgroup).contains(&line), "{line}");
    }

    #[test]
    fn workgroups_are_spread_over_rows_that_every_driver_takes() {
        for groups in [1, 2, MOST_GROUPS - 1, MOST_GROUPS, MOST_GROUPS + 1, 1 << 20, u32::MAX / 64] {
            let (x, y) = spread(groups);
            assert!(x <= MOST_GROUPS && y <= MOST_GROUPS && x * y >= groups && x * y - groups < y, "{groups}: {x} {y}");
        }
    }
}
