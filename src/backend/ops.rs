//! The ops, and what a kind of device can do.

use super::{
    arena::{Buffer, Slab},
    class::NumericsClass,
    dtype::DType,
    layer::{Activation, Values},
    params::{
        Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
    },
    weight::{Form, Weight},
};
use crate::error::Result;

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

/// One term of [`Op::ScaleAdd`]: the factor, the buffer and the element to begin at.
pub(crate) type Term<'a> = (f32, &'a Buffer, usize);

/// What a device is asked to compute: the sizes and the inputs of one call. Its output goes beside it, see
/// [`Backend::run`].
#[derive(Clone, Copy)]
pub(crate) enum Op<'a> {
    /// Matrix product with an epilogue.
    Linear { p: Linear, x: &'a Buffer, w: &'a Weight, e: &'a Epilogue<'a> },
    /// Convolution with an epilogue.
    Conv2d { p: Conv2d, x: &'a Buffer, w: &'a Weight, e: &'a Epilogue<'a> },
    /// Attention with an online softmax: the score matrix never exists. Milakov and Gimelshein 2018; Dao et al. 2022.
    Attention { p: Attention, q: &'a Buffer, k: &'a Buffer, v: &'a Buffer },
    /// Group norm, SiLU on request.
    GroupNorm { p: GroupNorm, x: &'a Buffer, w: &'a Weight },
    /// Layer norm.
    LayerNorm { p: LayerNorm, x: &'a Buffer, w: &'a Weight },
    /// Token plus position embedding. Ids beyond the table must not come here.
    Embedding { p: Embedding, ids: &'a Buffer, table: &'a Weight, positions: &'a Weight },
    /// Nearest-neighbour upsampling to a given size.
    Upsample2x { p: Upsample, x: &'a Buffer },
    /// Two tensors side by side along the channels.
    ConcatChannels { p: Concat, a: &'a Buffer, b: &'a Buffer },
    /// An activation by itself.
    Activate { p: Activate, activation: Activation, x: &'a Buffer },
    /// Adds a vector to every row of an image.
    AddChannels { p: AddChannels, x: &'a Buffer, per_channel: &'a Buffer },
    /// A weighted sum of up to six terms, all f32.
    ScaleAdd { p: ScaleAdd, terms: &'a [Term<'a>] },
    /// The same values in the output's float type, rounded to the nearest even.
    Cast { x: &'a Buffer },
}

impl Op<'_> {
    /// Its name in kernels, fault injection and messages of devices: that of its method in `tensor/ops.rs`.
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

    /// Multiplies and adds of products and attention, each counted as one; other ops are counted by their bytes alone.
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

    /// Bytes that it reads and writes when its output is `out`: each of its inputs once, unless the arm says otherwise.
    pub fn bytes(&self, scratch: Option<&Buffer>, out: &Buffer) -> usize {
        // Partial sums, or keys and values in another order, are written and read again.
        let scratch = scratch.map_or(0, |scratch| 2 * scratch.bytes());
        let inputs = match self {
            Op::Linear { x, w, e, .. } | Op::Conv2d { x, w, e, .. } => {
                let epilogue = [e.channel_add.map(|(add, _)| add), e.residual];
                x.bytes() + w.bytes() + epilogue.into_iter().flatten().map(Buffer::bytes).sum::<usize>() + scratch
            }
            Op::Attention { q, k, v, .. } => q.bytes() + k.bytes() + v.bytes() + scratch,
            // Statistics first, then the values once more.
            Op::GroupNorm { x, w, .. } => 2 * x.bytes() + w.bytes(),
            Op::LayerNorm { x, w, .. } => x.bytes() + w.bytes(),
            // As many rows of each table as there are rows of the output.
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

/// What a kind of device can do. Sizes are already checked; buffers and weights are this backend's own.
pub(crate) trait Backend: Send + Sync {
    /// Everything that decides the bits of a result, in the type in which it computes unless it is asked for another.
    fn class(&self) -> &NumericsClass;

    /// In which memory and form packed weights are: devices with equal answers share them.
    fn weight_home(&self) -> &str;

    /// Whether ops can have inputs of this type. All backends have f32.
    fn computes_in(&self, dtype: DType) -> bool;

    /// Reserves memory.
    fn slab(&self, bytes: usize) -> Result<Slab>;

    /// Brings a layer's parameters into a form, in the order of this backend's kernels. It computes in the form's type.
    fn pack(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight>;

    /// The same for a weight that is to rest in the host's memory, for [`Backend::fetch`].
    fn pack_to_rest(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.pack(form, weight, bias)
    }

    /// A copy of a weight that another device has packed, in the memory where this one computes: less work than packing it
    /// again. `None` if this one packs otherwise or has nothing from there.
    fn copy_weight(&self, _packed: &Weight) -> Result<Option<Weight>> {
        Ok(None)
    }

    /// What a weight of this form occupies once [`Backend::pack`] has packed it, in bytes.
    fn packed_bytes(&self, form: Form) -> usize;

    /// A copy, in the memory where the device computes, of a weight that [`Backend::pack_to_rest`] made and that rests in the
    /// host's memory.
    fn fetch(&self, resting: &Weight) -> Result<Weight>;

    /// Whether a matrix product can do this by itself; if not, plain ops follow it. Who fuses GEGLU does so beside a
    /// residual too and may pack its layers for it; who does not packs them in the order of the file.
    fn supports(&self, fusion: Fusion) -> bool;

    /// Bytes that an op needs beside its output; `None` if it needs no such buffer.
    fn scratch(&self, op: &Op) -> Option<usize>;

    /// Enqueues an op. `scratch` is there if [`Backend::scratch`] asks for it.
    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()>;

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
