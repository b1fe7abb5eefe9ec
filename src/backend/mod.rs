//! Buffers and kernels: knows sizes, does not know tensors.
//!
//! A `Backend` is what a kind of device can do. Its ops get a filled-in parameter struct and may trust it: shapes,
//! types and devices are compared once, in `tensor/ops.rs`. Every op only enqueues, in order; `read` waits.
//!
//! So the trait and all that its methods take are private to the crate: kernels write where their parameters say, and
//! from outside only the checked ops of [`Tensor`](crate::tensor::Tensor) reach them. A program cannot bring a device of its
//! own, whose memory might be smaller than it says:
//!
//! ```compile_fail,E0603
//! #![forbid(unsafe_code)]
//! use sdshard::backend::{Backend, Slab};
//! ```
//!
//! ```compile_fail,E0624
//! #![forbid(unsafe_code)]
//! use std::num::NonZero;
//! use sdshard::backend::{Device, DeviceId, cpu::{Cpu, Path}};
//! Device::new(DeviceId::CPU, Cpu::new(Path::Portable, NonZero::<usize>::MIN, Vec::new(), true).unwrap());
//! ```
//!
//! Nor can it call a kernel with other sizes than those of its tensors, look into memory by itself, or say that a packed
//! layer is another one:
//!
//! ```compile_fail,E0599
//! #![forbid(unsafe_code)]
//! use std::num::NonZero;
//! use sdshard::backend::{DType, Values, Layer, cpu::{Cpu, Path}};
//! let cpu = Cpu::new(Path::Portable, NonZero::<usize>::MIN, Vec::new(), true).unwrap();
//! let values = Values::Data { dtype: DType::F32, bytes: &[0; 4] };
//! cpu.pack(Layer::Linear { out: 1 << 20, k: 1 << 20 }, DType::F32, values, None);
//! ```
//!
//! ```compile_fail,E0603
//! #![forbid(unsafe_code)]
//! use sdshard::backend::cpu::memory::{read, write};
//! ```
//!
//! ```compile_fail,E0616
//! #![forbid(unsafe_code)]
//! use sdshard::backend::{DType, Device, Layer, Values};
//! let device = Device::cpu(1 << 20).unwrap();
//! let values = Values::Data { dtype: DType::F32, bytes: &[0; 256] };
//! let mut weight = device.pack(Layer::Linear { out: 8, k: 8 }, DType::F32, values, None).unwrap();
//! weight.layer = Layer::Linear { out: 8, k: 1 << 20 };
//! ```
//!
//! **Order contract.** Each output element is one fixed chain of operations that depends only on the layer, the numerics
//! class and its own image: never on the batch, the number of rows, threads or the position of a tile. It is what makes
//! the same request give the same picture wherever its parts run.
//!
//! **Types.** A buffer knows the type of its elements, and an op's output has its input's. All inputs of an op have one
//! type, and a layer's weight is packed for it; f32 are sums, softmax and the statistics of norms, biases, the scale and
//! shift of norms, and all of [`Tensor::scale_add`](crate::tensor::Tensor::scale_add).

pub mod arena;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod dry;
pub mod dtype;
pub mod gpu_cost;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gpu_rates;
pub mod id;
pub mod params;
pub mod rates;
pub mod sim;
mod weight;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::{any::Any, sync::Arc};

pub(crate) use arena::{Arena, Buffer};
pub use device::{Device, DeviceInfo, Keep, Opening, open, visible};
pub use dtype::DType;
pub use id::{DeviceId, DeviceKind};
pub use rates::Rates;
pub use weight::Weight;
use weight::WeightData;

use crate::error::{Error, Result};
use params::{
    Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
};

/// Memory of one kind of device.
#[derive(Clone)]
pub(crate) enum Slab {
    /// Host memory.
    Cpu(Arc<cpu::memory::HostSlab>),
    /// A GPU's, in a form that its backend alone knows.
    Gpu(Arc<dyn Any + Send + Sync>),
    /// None: only its size is known.
    Dry,
}

/// The shape of a layer's parameters, from which its packed form follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// `[out, k]`.
    Linear {
        /// Output channels.
        out: usize,
        /// Input channels.
        k: usize,
    },
    /// A linear layer whose output is halved by GEGLU: rows `0..out/2` are the hidden half, the rest the gate.
    Geglu {
        /// Output channels before halving.
        out: usize,
        /// Input channels.
        k: usize,
    },
    /// `[out, channels, kernel, kernel]` as stored, OHWI once packed.
    Conv2d {
        /// Output channels.
        out: usize,
        /// Input channels.
        channels: usize,
        /// Height and width of the window.
        kernel: usize,
    },
    /// Scale and shift of a norm, `[channels]` each.
    Norm {
        /// Channels.
        channels: usize,
    },
    /// A table of rows, `[rows, channels]`.
    Embedding {
        /// Rows.
        rows: usize,
        /// Channels.
        channels: usize,
    },
}

impl Layer {
    /// Elements of its weight and, if it has one, of its bias; saturates where no memory could hold them.
    pub fn elements(self) -> (usize, usize) {
        match self {
            Layer::Linear { out, k } | Layer::Geglu { out, k } => (out.saturating_mul(k), out),
            Layer::Conv2d { out, channels, kernel } => {
                (out.saturating_mul(channels).saturating_mul(kernel).saturating_mul(kernel), out)
            }
            Layer::Norm { channels } => (channels, channels),
            Layer::Embedding { rows, channels } => (rows.saturating_mul(channels), 0),
        }
    }
}

/// What can be read from any place.
pub trait ReadAt: std::fmt::Debug + Sync {
    /// Fills `to` with what stands from byte `start` on.
    ///
    /// # Errors
    /// If it cannot be read, or ends before that.
    fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()>;
}

/// A tensor as its file has it: the only form in which a weight reaches a backend.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Little-endian elements, not necessarily aligned.
    Data {
        /// Element type: a float.
        dtype: DType,
        /// The elements.
        bytes: &'a [u8],
    },
    /// The same in a file, to be read piece by piece.
    Stored {
        /// Element type: a float.
        dtype: DType,
        /// Of all elements.
        bytes: usize,
        /// The first byte in the file.
        start: usize,
        /// The file.
        file: &'a dyn ReadAt,
    },
    /// The file is not here; planning needs none.
    ShapeOnly,
}

impl Values<'_> {
    /// The type of the elements, and the bytes of all of them.
    ///
    /// # Errors
    /// If there are only shapes, or the type is no float.
    pub fn form(&self) -> Result<(DType, usize)> {
        let (dtype, bytes) = match *self {
            Values::Data { dtype, bytes } => (dtype, bytes.len()),
            Values::Stored { dtype, bytes, .. } => (dtype, bytes),
            Values::ShapeOnly => {
                return Err(Error::input("this model was opened for planning: its weights are not here"));
            }
        };
        if dtype == DType::U32 {
            return Err(Error::input("a weight must be of a float type, not u32"));
        }
        Ok((dtype, bytes))
    }

    /// Fills `to` with the bytes from `start` on.
    ///
    /// # Errors
    /// If there are only shapes, the elements end before that, or the file cannot be read.
    pub fn read(&self, start: usize, to: &mut [u8]) -> Result<()> {
        let (_, bytes) = self.form()?;
        if start.checked_add(to.len()).is_none_or(|end| end > bytes) {
            return Err(Error::input(format!("{} bytes at {start} of a weight of {bytes} bytes", to.len())));
        }
        match self {
            Values::Data { bytes, .. } => to.copy_from_slice(&bytes[start..start + to.len()]),
            Values::Stored { start: first, file, .. } => {
                let at = first.checked_add(start);
                let at = at.ok_or_else(|| Error::input(format!("a weight that begins at byte {first} of its file")))?;
                file.read_at(at, to)?;
            }
            Values::ShapeOnly => {}
        }
        Ok(())
    }
}

/// A function applied to each output element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// None.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, the exact form with erf.
    Gelu,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `hidden * gelu(gate)`; halves the channels.
    Geglu,
}

impl Activation {
    /// How wide a layer of `columns` output channels is behind it.
    pub fn width(self, columns: u32) -> u32 {
        if self == Activation::Geglu { columns / 2 } else { columns }
    }
}

/// What follows a matrix product while its result is still in registers:
/// `out = activation(x w + bias + channel_add) + residual`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// `[batch or 1, out]` and its rows: added to every row of an image.
    pub channel_add: Option<(&'a Buffer, u32)>,
    /// Applied to the sum.
    pub activation: Activation,
    /// The shape of the output; added last.
    pub residual: Option<&'a Buffer>,
}

/// Which parts of an [`Epilogue`] a call would use: the question [`Backend::supports`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Fusion {
    /// A per-channel sum.
    pub channel_add: bool,
    /// An activation.
    pub activation: Activation,
    /// A residual.
    pub residual: bool,
}

/// One term of [`Backend::scale_add`]: the factor, the buffer and the element to begin at.
pub(crate) type Term<'a> = (f32, &'a Buffer, usize);

/// What a kind of device can do. Sizes are already checked; buffers and weights are this backend's own.
pub(crate) trait Backend: Send + Sync {
    /// Everything that decides the bits of a result: kind, kernel path and, as the last word, the type in which it computes
    /// unless it is asked for another: `cpu avx512 f32` for example.
    fn class(&self) -> &str;

    /// In which memory and form packed weights are: devices with equal answers share them.
    fn weight_home(&self) -> &str;

    /// Whether ops can have inputs of this type. All backends have f32.
    fn computes_in(&self, dtype: DType) -> bool;

    /// Reserves memory.
    fn slab(&self, bytes: usize) -> Result<Slab>;

    /// Brings a layer's parameters into this backend's form, for inputs of `dtype`, in which it computes.
    fn pack(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight>;

    /// The same for a weight that is to rest in the host's memory, for [`Backend::fetch`].
    fn pack_to_rest(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.pack(layer, dtype, weight, bias)
    }

    /// A copy of a weight that another device has packed, in the memory where this one computes: less work than packing it
    /// again. `None` if this one packs otherwise or has nothing from there.
    fn copy_weight(&self, _packed: &Weight) -> Result<Option<Weight>> {
        Ok(None)
    }

    /// What [`Backend::pack`] makes of a layer, in bytes.
    fn packed_bytes(&self, layer: Layer, dtype: DType, has_bias: bool) -> usize;

    /// A copy, in the memory where the device computes, of a weight that [`Backend::pack_to_rest`] made and that rests in the
    /// host's memory.
    fn fetch(&self, resting: &Weight) -> Result<Weight>;

    /// Whether a matrix product can do this by itself; if not, plain ops follow it. Who fuses GEGLU does so beside a
    /// residual too and may pack its layers for it; who does not packs them in the order of the file.
    fn supports(&self, fusion: Fusion) -> bool;

    /// Bytes that [`Backend::linear`] and [`Backend::conv2d`] need beside their output for `rows` times `out` results, each
    /// the sum over a chain of `k`.
    fn product_scratch(&self, rows: u32, out: u32, k: u32) -> usize;

    /// Bytes that [`Backend::attention`] needs beside its output.
    fn attention_scratch(&self, p: &Attention) -> usize;

    /// Bytes that [`Backend::group_norm`] needs beside its output.
    fn group_norm_scratch(&self, p: &GroupNorm) -> usize;

    /// Matrix product with an epilogue. `scratch` is there if it needs some.
    fn linear(
        &self,
        p: Linear,
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        scratch: Option<&mut Buffer>,
        out: &mut Buffer,
    ) -> Result<()>;

    /// Convolution with an epilogue. `scratch` is there if it needs some.
    fn conv2d(
        &self,
        p: Conv2d,
        x: &Buffer,
        w: &Weight,
        e: &Epilogue,
        scratch: Option<&mut Buffer>,
        out: &mut Buffer,
    ) -> Result<()>;

    /// Attention with an online softmax: the score matrix never exists. Milakov and Gimelshein 2018; Dao et al. 2022.
    fn attention(
        &self,
        p: Attention,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        scratch: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<()>;

    /// Group norm, SiLU on request.
    fn group_norm(&self, p: GroupNorm, x: &Buffer, w: &Weight, scratch: &mut Buffer, out: &mut Buffer) -> Result<()>;

    /// Layer norm.
    fn layer_norm(&self, p: LayerNorm, x: &Buffer, w: &Weight, out: &mut Buffer) -> Result<()>;

    /// Token plus position embedding. Ids beyond the table must not come here.
    fn embedding(&self, p: Embedding, ids: &Buffer, table: &Weight, positions: &Weight, out: &mut Buffer)
    -> Result<()>;

    /// Nearest-neighbour upsampling to a given size.
    fn upsample2x(&self, p: Upsample, x: &Buffer, out: &mut Buffer) -> Result<()>;

    /// Two tensors side by side along the channels.
    fn concat_channels(&self, p: Concat, a: &Buffer, b: &Buffer, out: &mut Buffer) -> Result<()>;

    /// An activation by itself.
    fn activate(&self, p: Activate, activation: Activation, x: &Buffer, out: &mut Buffer) -> Result<()>;

    /// Adds a vector to every row of an image.
    fn add_channels(&self, p: AddChannels, x: &Buffer, per_channel: &Buffer, out: &mut Buffer) -> Result<()>;

    /// A weighted sum of up to six terms, all f32.
    fn scale_add(&self, p: ScaleAdd, terms: &[Term], out: &mut Buffer) -> Result<()>;

    /// The same values in the output's float type, rounded to the nearest even.
    fn cast(&self, x: &Buffer, out: &mut Buffer) -> Result<()>;

    /// Host to device.
    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()>;

    /// Device to host, after everything enqueued so far.
    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()>;

    /// Copies `bytes` from byte `from` of x to byte `to` of out, on this device.
    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()>;

    /// From here to [`Backend::release`] ops may be held back, to be enqueued as one: there is less to do for those that come
    /// again and again, with the same weights in the same places. Nobody can tell: whatever waits for them, or uses what
    /// they make, comes behind them.
    fn hold(&self) {}

    /// Enqueues what was held back.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// Whether it holds no values and only counts: `read` and `write` then need none.
    fn only_counts(&self) -> bool {
        false
    }

    /// Enqueues a copy of all of x, of another device, to `out` of this one. False if the two have no link: such a copy
    /// goes through the host.
    fn receive(&self, _x: &Buffer, _out: &mut Buffer) -> Result<bool> {
        Ok(false)
    }
}
