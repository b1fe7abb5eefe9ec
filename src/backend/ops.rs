//! The ops, and the trait that every kind of device implements.

use super::{
    arena::{Buffer, Slab},
    class::NumericsClass,
    dtype::DType,
    layer::{Activation, Layer, Values},
    params::{
        Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
    },
    precision::Precision,
    weight::{Form, Weight},
};
use crate::error::Result;

/// The operations that follow a matrix product while its result is still in registers:
/// `out = activation(x w + bias + channel_add) + residual`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// A buffer `[batch or 1, out]` and the number of its rows: each row is added to all rows of an image.
    pub channel_add: Option<(&'a Buffer, u32)>,
    /// The activation of the sum.
    pub activation: Activation,
    /// A buffer with the shape of the output, which is added last.
    pub residual: Option<&'a Buffer>,
}

/// The parts of an [`Epilogue`] that a call would use: the argument of [`Backend::supports`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Fusion {
    /// Whether there is a sum per channel.
    pub channel_add: bool,
    /// The activation.
    pub activation: Activation,
    /// Whether there is a residual.
    pub residual: bool,
}

/// One term of [`Op::ScaleAdd`]: the factor, the buffer and its first element.
pub(crate) type Term<'a> = (f32, &'a Buffer, usize);

/// One operation on a device: its sizes and inputs. Its output is passed separately, see [`Backend::run`].
#[derive(Clone, Copy)]
pub(crate) enum Op<'a> {
    /// Matrix product with an epilogue.
    Linear { p: Linear, x: &'a Buffer, w: &'a Weight, e: &'a Epilogue<'a> },
    /// Convolution with an epilogue.
    Conv2d { p: Conv2d, x: &'a Buffer, w: &'a Weight, e: &'a Epilogue<'a> },
    /// Attention with an online softmax: the score matrix never exists. Milakov and Gimelshein 2018; Dao et al. 2022.
    Attention { p: Attention, precision: Precision, q: &'a Buffer, k: &'a Buffer, v: &'a Buffer },
    /// Group norm, followed by SiLU if `p` says so.
    GroupNorm { p: GroupNorm, x: &'a Buffer, w: &'a Weight },
    /// Layer norm.
    LayerNorm { p: LayerNorm, x: &'a Buffer, w: &'a Weight },
    /// Token plus position embedding. All ids must be within the table.
    Embedding { p: Embedding, ids: &'a Buffer, table: &'a Weight, positions: &'a Weight },
    /// Nearest-neighbour upsampling to a given size.
    Upsample2x { p: Upsample, x: &'a Buffer },
    /// Concatenation of two tensors along the channels.
    ConcatChannels { p: Concat, a: &'a Buffer, b: &'a Buffer },
    /// An activation as an op of its own.
    Activate { p: Activate, activation: Activation, x: &'a Buffer },
    /// Adds a vector to every row of an image.
    AddChannels { p: AddChannels, x: &'a Buffer, per_channel: &'a Buffer },
    /// A weighted sum of up to six terms, all f32.
    ScaleAdd { p: ScaleAdd, terms: &'a [Term<'a>] },
    /// Conversion to the output's float type, rounded to the nearest, ties to even.
    Cast { x: &'a Buffer },
}

impl Op<'_> {
    /// The op's name in kernels, fault injection and error messages: that of its method in `tensor/ops.rs`.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Linear { .. } => "linear",
            Op::Conv2d { .. } => "conv2d",
            Op::Attention { .. } => "attention",
            Op::GroupNorm { .. } => "group_norm",
            Op::LayerNorm { .. } => "layer_norm",
            Op::Embedding { .. } => "embedding",
            Op::Upsample2x { .. } => "upsample2x",
            Op::ConcatChannels { .. } => "concat_channels",
            Op::Activate { .. } => "activate",
            Op::AddChannels { .. } => "add_channels",
            Op::ScaleAdd { .. } => "scale_add",
            Op::Cast { .. } => "cast",
        }
    }

    /// The multiplications and additions of products and attention, each counted as one; other ops are counted only by
    /// their bytes.
    pub fn flops(&self) -> f64 {
        let product = |sizes: &[u32]| sizes.iter().fold(2.0, |product, &size| product * f64::from(size));
        match self {
            Op::Linear { p, .. } => product(&[p.rows, p.out, p.k]),
            Op::Conv2d { p, .. } => {
                product(&[p.batch, p.out_height, p.out_width, p.out, p.kernel, p.kernel, p.channels])
            }
            Op::Attention { p, .. } => 2.0 * product(&[p.batch, p.heads, p.queries, p.keys, p.head_dim]),
            _ => 0.0,
        }
    }

    /// The bytes that the op reads and writes when its output is `out`: each input once, unless the arm says otherwise.
    pub fn bytes(&self, scratch: Option<&Buffer>, out: &Buffer) -> usize {
        // Partial sums, gathered keys and values, or transformed inputs are written and read again.
        let scratch = scratch.map_or(0, |scratch| 2 * scratch.bytes());
        let inputs = match self {
            Op::Linear { x, w, e, .. } | Op::Conv2d { x, w, e, .. } => {
                let epilogue = [e.channel_add.map(|(add, _)| add), e.residual];
                x.bytes() + w.bytes() + epilogue.into_iter().flatten().map(Buffer::bytes).sum::<usize>() + scratch
            }
            Op::Attention { q, k, v, .. } => q.bytes() + k.bytes() + v.bytes() + scratch,
            // The values are read once for the statistics and once more for the result.
            Op::GroupNorm { x, w, .. } => 2 * x.bytes() + w.bytes(),
            Op::LayerNorm { x, w, .. } => x.bytes() + w.bytes(),
            // As many rows of each table are read as the output has.
            Op::Embedding { ids, .. } => ids.bytes() + 2 * out.bytes(),
            Op::ConcatChannels { a, b, .. } => a.bytes() + b.bytes(),
            Op::AddChannels { x, per_channel, .. } => x.bytes() + per_channel.bytes(),
            // A term may be a part of a larger tensor: only that part is read.
            Op::ScaleAdd { terms, .. } => terms.len() * out.bytes(),
            Op::Upsample2x { x, .. } | Op::Activate { x, .. } | Op::Cast { x } => x.bytes(),
        };
        inputs + out.bytes()
    }
}

/// The operations of one kind of device. Sizes are already checked; buffers and weights are this backend's own.
pub(crate) trait Backend: Send + Sync {
    /// Everything that decides the bits of a result, in the backend's default precision.
    fn class(&self) -> &NumericsClass;

    /// The identity of the memory and layout of packed weights: devices with equal values share them.
    fn weight_home(&self) -> &str;

    /// Whether ops can have inputs of this type. All backends support f32.
    fn computes_in(&self, dtype: DType) -> bool;

    /// The type of the tensors of a component in this precision; `None` if the device has no such kernels.
    fn input_type(&self, precision: Precision) -> Option<DType> {
        precision.dtype().filter(|dtype| self.computes_in(*dtype))
    }

    /// The form of a layer in this precision; `None` if the device has no such kernels.
    fn form(&self, layer: Layer, precision: Precision, has_bias: bool) -> Option<Form> {
        Some(Form::new(layer, self.input_type(precision)?, has_bias))
    }

    /// Reserves memory.
    fn slab(&self, bytes: usize) -> Result<Slab>;

    /// Packs a layer's parameters in the given form and in the order of this backend's kernels.
    fn pack(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight>;

    /// As [`Backend::pack`], for a weight that is kept in host memory until [`Backend::fetch`].
    fn pack_to_host(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.pack(form, weight, bias)
    }

    /// Copies a weight that another device has packed to the memory where this one computes, which is less work than
    /// packing it again. `None` if this device packs differently or cannot copy from there.
    fn copy_weight(&self, _packed: &Weight) -> Result<Option<Weight>> {
        Ok(None)
    }

    /// The bytes that a weight of this form occupies once [`Backend::pack`] has packed it.
    fn packed_bytes(&self, form: Form) -> usize;

    /// Copies a weight that [`Backend::pack_to_host`] made from host memory to the memory where the device computes.
    fn fetch(&self, host_weight: &Weight) -> Result<Weight>;

    /// Whether a matrix product can apply this epilogue; if not, plain ops follow it. A backend that fuses GEGLU also
    /// does so with a residual, and may pack its layers for it; other backends pack them in the order of the file.
    fn supports(&self, fusion: Fusion) -> bool;

    /// The bytes that an op needs in addition to its output; `None` if it needs no such buffer.
    fn scratch(&self, op: &Op) -> Option<usize>;

    /// Enqueues an op. `scratch` is present if [`Backend::scratch`] returns a size for it.
    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()>;

    /// Copies from the host to the device.
    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()>;

    /// Copies from the device to the host, after everything that was enqueued so far.
    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()>;

    /// Copies `bytes` from byte `from` of `x` to byte `to` of `out`, on this device.
    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()>;

    /// From this call to [`Backend::submit_recorded`], ops may be recorded instead of enqueued, so that a sequence that
    /// repeats with the same weights and addresses costs one launch. Results are the same: every op, copy or read that
    /// depends on recorded ops is enqueued after them.
    fn start_recording(&self) {}

    /// Enqueues the recorded ops.
    fn submit_recorded(&self) -> Result<()> {
        Ok(())
    }

    /// Whether the device holds no values and only counts: `read` and `write` then need no data.
    fn only_counts(&self) -> bool {
        false
    }

    /// Enqueues a copy of all of `x`, on another device, to `out` on this one. False if the two have no link: such a
    /// copy goes through the host.
    fn receive(&self, _x: &Buffer, _out: &mut Buffer) -> Result<bool> {
        Ok(false)
    }
}
