//! What a kind of device can do.

use super::{
    arena::{Buffer, Slab},
    dtype::DType,
    layer::{Activation, Layer, Values},
    params::{
        Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd, Upsample,
    },
    weight::Weight,
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
