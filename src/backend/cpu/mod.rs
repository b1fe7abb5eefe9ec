//! CPU cores. Ops run in the calling thread and have finished when they return, so they are always in order.

pub(crate) mod all_cores;
mod attention;
mod available;
pub mod cost;
mod element;
mod elementwise;
mod gemm;
mod kernels;
mod machine;
pub(super) mod memory;
mod narrow;
mod norm;
pub(super) mod pack;
mod peak;
mod simd;
pub mod threads;
mod transform;
mod winograd;

use std::{num::NonZero, sync::Arc};

use super::{
    Backend, Buffer, DType, Device, DeviceId, Epilogue, Form, Fusion, Layer, NumericsClass, Op, Precision, Slab,
    Stored, Values, Weight, WeightData,
    params::{Conv2d, Linear},
};
use crate::error::{Error, Result};
use all_cores::LOADING;
pub use available::address_space_limit;
use gemm::{Lhs, Product};
pub(super) use kernels::form;
pub use kernels::{Convolution, Kernels};
pub use machine::info;
#[cfg(feature = "wgpu")]
pub(super) use machine::model_name;
use memory::{read, write};
use pack::Elements;
pub use simd::Path;
use threads::Pool;

/// Weights with as many elements are packed on all cores: waking other threads takes longer than packing a smaller one,
/// which counts where weights are read from disk in every step.
const ELEMENTS_ON_ALL_CORES: usize = 1 << 17;

/// Some of this machine's cores.
pub struct Cpu {
    kernels: Kernels,
    pool: Pool,
    class: NumericsClass,
    home: Arc<str>,
    fuse: bool,
}

/// The kernel path of this process: the best that the machine supports, or the one that `SDSHARD_CPU_PATH` names.
pub fn path() -> Result<Path> {
    let here = || Path::ALL.into_iter().filter(|path| path.is_here());
    match std::env::var("SDSHARD_CPU_PATH") {
        Ok(name) => here().find(|path| path.name() == name).ok_or_else(|| {
            let possible: Vec<_> = here().map(Path::name).collect();
            Error::input(format!("SDSHARD_CPU_PATH: \"{name}\" is not a kernel path of this machine"))
                .found(possible.join(", "))
        }),
        Err(_) => Ok(here().next().expect("the portable path is everywhere")),
    }
}

impl Cpu {
    /// A CPU with `threads` on these core numbers; with `fuse` false, every epilogue except the bias becomes plain ops.
    ///
    /// # Errors
    /// If the system does not start that many threads.
    ///
    /// # Panics
    /// If the machine does not support the path.
    pub fn new(kernels: Kernels, threads: NonZero<usize>, cores: Vec<usize>, fuse: bool) -> Result<Self> {
        assert!(kernels.path.is_here(), "{} is not a kernel path of this machine", kernels.path);
        let home = format!("host memory, {kernels} panels{}", if fuse { "" } else { ", nothing fused" }).into();
        Ok(Self { kernels, pool: Pool::new(threads, cores)?, class: NumericsClass::cpu(kernels), home, fuse })
    }

    /// A CPU with all cores that this process may use; the system decides where the threads run.
    pub fn whole(convolution: Convolution) -> Result<Self> {
        threads::requested_threads()?;
        let threads = NonZero::new(threads::cores().len()).expect("a process has a core");
        Self::new(Kernels { path: path()?, convolution }, threads, Vec::new(), true)
    }

    /// A CPU with these cores, to which its threads are bound.
    pub fn on(cores: Vec<usize>, convolution: Convolution) -> Result<Self> {
        threads::requested_threads()?;
        let threads = NonZero::new(cores.len()).ok_or_else(|| Error::input("a CPU device needs a core"))?;
        Self::new(Kernels { path: path()?, convolution }, threads, cores, true)
    }

    /// A device over these cores.
    pub fn device(self, id: DeviceId) -> Device {
        Device::new(id, self)
    }

    /// The number of threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The form in which a weight is packed: hidden channels and gates are only interleaved for an epilogue that
    /// multiplies them.
    fn order(&self, form: Form) -> Form {
        match form.layer {
            Layer::Geglu { out, k } if !self.fuse => Form { layer: Layer::Linear { out, k }, ..form },
            _ => form,
        }
    }

    fn linear(&self, p: Linear, x: &Buffer, w: &Weight, e: &Epilogue, scratch: Option<&mut Buffer>, out: &mut Buffer) {
        let per_image = e.channel_add.map_or(1, |(_, rows)| (p.rows / rows) as usize);
        let product = self.product(Lhs::Linear(p, read(x)), p.out as usize, per_image, w, e);
        self.multiply(&product, w, scratch, out);
    }

    fn conv2d(&self, p: Conv2d, x: &Buffer, w: &Weight, e: &Epilogue, scratch: Option<&mut Buffer>, out: &mut Buffer) {
        let pixels = p.out_height * p.out_width;
        // A 1x1 convolution without padding is a linear layer, because channels are last.
        let every_pixel_once = p.kernel == 1 && p.stride == 1 && (p.out_height, p.out_width) == (p.height, p.width);
        let lhs = if every_pixel_once {
            Lhs::Linear(Linear { rows: p.batch * pixels, out: p.out, k: p.channels }, read(x))
        } else {
            Lhs::Conv2d(p, read(x))
        };
        let product = self.product(lhs, p.out as usize, pixels as usize, w, e);
        match self.kernels.filtering(w.form) {
            Some(filtering) => {
                let (path, pool) = (self.kernels.path, &self.pool);
                winograd::run(&product, filtering, path, pool, requested(scratch), write(out));
            }
            None => self.multiply(&product, w, scratch, out),
        }
    }

    fn multiply(&self, product: &Product, w: &Weight, scratch: Option<&mut Buffer>, out: &mut Buffer) {
        let (path, pool) = (self.kernels.path, &self.pool);
        match &product.packed.weight {
            Elements::Words(words) => {
                narrow::product::run(product, w.form, words, path, pool, requested(scratch), write(out))
            }
            _ => product.run(path, pool, write(out)),
        }
    }

    fn product<'a>(
        &self,
        lhs: Lhs<'a>,
        columns: usize,
        rows_per_image: usize,
        w: &'a Weight,
        e: &Epilogue<'a>,
    ) -> Product<'a> {
        Product {
            lhs,
            packed: packed(w),
            columns,
            rows_per_image,
            channel_add: e.channel_add.map(|(add, _)| read(add)),
            activation: e.activation,
            residual: e.residual.map(read),
        }
    }
}

fn packed(w: &Weight) -> &pack::CpuWeight {
    w.held().expect("tensor/ops.rs compares devices: a weight without data does not reach the CPU")
}

/// The scratch memory of an op that always needs some.
fn requested(scratch: Option<&mut Buffer>) -> &mut [f32] {
    write(scratch.expect("an op has the scratch that it asks for"))
}

impl Backend for Cpu {
    fn class(&self) -> &NumericsClass {
        &self.class
    }

    fn weight_home(&self) -> &str {
        &self.home
    }

    fn computes_in(&self, dtype: DType) -> bool {
        dtype == DType::F32
    }

    fn input_type(&self, _: Precision) -> Option<DType> {
        Some(DType::F32)
    }

    fn form(&self, layer: Layer, precision: Precision, has_bias: bool) -> Option<Form> {
        Some(form(layer, precision, has_bias))
    }

    fn slab(&self, bytes: usize) -> Result<Slab> {
        Ok(Slab::Held(Arc::new(memory::HostSlab::new(bytes)?)))
    }

    fn pack(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        if let Layer::Conv2d { channels, kernel, .. } = form.layer
            && (kernel * kernel > gemm::MAX_TAPS || channels > gemm::MAX_CHANNELS)
        {
            return Err(Error::input(format!(
                "a {kernel}x{kernel} convolution of {channels} channels: the CPU goes up to 7x7 and {} channels",
                gemm::MAX_CHANNELS
            )));
        }
        let few = form.layer.elements().0 < ELEMENTS_ON_ALL_CORES;
        let pack = || pack::pack(self.kernels, self.order(form), weight, bias);
        let packed = if few { pack() } else { LOADING.run(pack) }?;
        let bytes = self.packed_bytes(form);
        Ok(Weight::new(form, bytes, self.home.clone(), WeightData::Held(Arc::new(packed))))
    }

    fn packed_bytes(&self, form: Form) -> usize {
        cost::packed_bytes(self.kernels, self.order(form))
    }

    fn fetch(&self, host_weight: &Weight) -> Result<Weight> {
        let copy = Arc::new(packed(host_weight).copy()?);
        Ok(Weight::new(host_weight.form, host_weight.bytes(), self.home.clone(), WeightData::Held(copy)))
    }

    fn supports(&self, fusion: Fusion) -> bool {
        self.fuse || fusion == Fusion::default()
    }

    fn scratch(&self, op: &Op) -> Option<usize> {
        cost::scratch(self.kernels, op)
    }

    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()> {
        let (path, pool) = (self.kernels.path, &self.pool);
        match *op {
            Op::Linear { p, x, w, e } => self.linear(p, x, w, e, scratch, out),
            Op::Conv2d { p, x, w, e } => self.conv2d(p, x, w, e, scratch, out),
            Op::Attention { p, precision: Precision::Int8, q, k, v } if p.causal == 0 => {
                let call = narrow::attention::Call { p, q: read(q), k: read(k), v: read(v) };
                call.run(narrow::unit::Unit::best(path, Stored::Int8), pool, requested(scratch), write(out));
            }
            Op::Attention { p, q, k, v, .. } => {
                let call = attention::Call { p, q: read(q), k: read(k), v: read(v) };
                call.run(path, pool, requested(scratch), write(out));
            }
            Op::GroupNorm { p, x, w } => {
                norm::group_norm(path, pool, p, read(x), packed(w), requested(scratch), write(out))
            }
            Op::LayerNorm { p, x, w } => norm::layer_norm(path, pool, p, read(x), packed(w), write(out)),
            Op::Embedding { p, ids, table, positions } => {
                elementwise::embedding(pool, p, read(ids), packed(table), packed(positions), write(out));
            }
            Op::Upsample2x { p, x } => elementwise::upsample2x(pool, p, read(x), write(out)),
            Op::ConcatChannels { p, a, b } => elementwise::concat_channels(pool, p, read(a), read(b), write(out)),
            Op::Activate { p, activation, x } => {
                elementwise::activate(path, pool, p, activation, read(x), write(out));
            }
            Op::AddChannels { p, x, per_channel } => {
                elementwise::add_channels(pool, p, read(x), read(per_channel), write(out));
            }
            Op::ScaleAdd { p, terms } => {
                let part = |x, start| &read::<f32>(x)[start..][..p.elements as usize];
                let terms = terms.iter().map(|&(scale, x, start)| (scale, part(x, start)));
                elementwise::scale_add(path, pool, &terms.collect::<Vec<_>>(), write(out));
            }
            Op::Cast { x } => elementwise::cast(x.dtype(), read(x), out.dtype(), write(out)),
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()> {
        write(out)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&read(x)[..bytes.len()]);
        Ok(())
    }

    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()> {
        write::<u8>(out)[to..to + bytes].copy_from_slice(&read(x)[from..from + bytes]);
        Ok(())
    }
}
