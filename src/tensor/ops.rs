//! The ops on tensors: each checks its arguments, allocates its output, and calls the backend.
//!
//! Shapes, types and devices are compared here and nowhere else. Epilogues that a backend cannot fuse become plain ops
//! here, so that all backends compute the same operations.

use std::fmt::Display;

use super::{Shape, Tensor};
use crate::{
    backend::{
        Activation, DType, Device, Epilogue, Fusion, Layer, Op, Precision, Weight,
        params::{
            Activate, AddChannels, Attention, Concat, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, ScaleAdd,
            Upsample,
        },
    },
    error::{Error, Result},
};

/// The operations that follow a matrix product: `activation(x w + bias + channel_add) + residual`.
#[derive(Clone, Copy, Default)]
pub struct Fuse<'a> {
    /// A tensor `[batch or 1, out]`, which is added to every row of an image.
    pub channel_add: Option<&'a Tensor>,
    /// The activation of the sum.
    pub activation: Activation,
    /// A tensor with the shape of the output, which is added last.
    pub residual: Option<&'a Tensor>,
}

impl<'a> Fuse<'a> {
    /// Only an activation.
    pub fn activation(activation: Activation) -> Self {
        Self { activation, ..Self::default() }
    }

    /// Only a residual.
    pub fn residual(residual: &'a Tensor) -> Self {
        Self { residual: Some(residual), ..Self::default() }
    }

    /// Only a per-channel sum.
    pub fn channel_add(channel_add: &'a Tensor) -> Self {
        Self { channel_add: Some(channel_add), ..Self::default() }
    }
}

/// The padding of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Zeros on all sides, so that stride 1 keeps the size: `kernel / 2`.
    Same,
    /// One row below and one column to the right: for the VAE encoder's downsampling.
    BottomRight,
}

/// The largest number of terms of a weighted sum: a fourth-order solver needs them.
pub const MAX_TERMS: usize = 6;

fn invalid_argument(op: &str, what: impl Display) -> Error {
    Error::request(format!("{op}: {what}"))
}

fn ensure(condition: bool, op: &str, what: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(invalid_argument(op, what())) }
}

/// The check of every tensor has made sure that sizes are below 2^31.
fn to_u32(n: usize) -> u32 {
    n as u32
}

impl Tensor {
    fn check_device(&self, op: &str, other: &Tensor) -> Result<()> {
        ensure(self.device == other.device, op, || format!("tensors on {} and {}", self.device.id(), other.device.id()))
    }

    /// Checks that the weight is on this device; an offloaded weight must have been fetched. Returns it for the
    /// backend.
    fn check_weight_device(&self, op: &str, w: &Weight) -> Result<Weight> {
        ensure(w.is_on(&self.device), op, || format!("the weight is not in the memory of {}", self.device.id()))?;
        w.packed()
    }

    fn check_dtype(&self, op: &str, dtype: DType) -> Result<()> {
        ensure(self.dtype == dtype, op, || format!("{} in place of {dtype}", self.dtype))
    }

    /// Checks that the device computes in this tensor's type, which is also the type of the output.
    fn check_computable(&self, op: &str) -> Result<()> {
        if self.device.computes_in(self.dtype) { Ok(()) } else { self.check_dtype(op, DType::F32) }
    }

    /// Checks that another tensor is on the same device and has the same type.
    fn check_matches(&self, op: &str, other: &Tensor) -> Result<()> {
        self.check_device(op, other)?;
        other.check_dtype(op, self.dtype)
    }

    /// Checks the weight of an op on this tensor.
    fn weight(&self, op: &str, w: &Weight) -> Result<Weight> {
        self.check_computable(op)?;
        self.check_dtype(op, w.dtype())?;
        self.check_weight_device(op, w)
    }

    fn fused<'a>(&self, op: &str, out: Shape, fuse: &'a Fuse<'a>) -> Result<(Epilogue<'a>, Fuse<'a>)> {
        if let Some(residual) = fuse.residual {
            self.check_matches(op, residual)?;
            ensure(residual.shape == out, op, || format!("residual {} beside {out}", residual.shape))?;
        }
        if let Some(add) = fuse.channel_add {
            self.check_matches(op, add)?;
            let sizes = add.shape.dims();
            let rows_fit = sizes.len() == 2 && (sizes[0] == 1 || sizes[0] == out.batch());
            ensure(rows_fit && sizes[1] == out.channels(), op, || format!("channel sum {} beside {out}", add.shape))?;
        }
        let fusion = Fusion {
            channel_add: fuse.channel_add.is_some(),
            activation: fuse.activation,
            residual: fuse.residual.is_some(),
        };
        if !self.device.backend().supports(fusion) {
            return Ok((Epilogue::default(), *fuse));
        }
        let epilogue = Epilogue {
            channel_add: fuse.channel_add.map(|add| (&*add.buffer, to_u32(add.dim(0)))),
            activation: fuse.activation,
            residual: fuse.residual.map(|residual| &*residual.buffer),
        };
        Ok((epilogue, Fuse::default()))
    }

    /// Allocates the result of an op and its scratch buffer, and runs the op.
    fn computed(device: &Device, shape: Shape, dtype: DType, op: &Op) -> Result<Tensor> {
        let mut out = Self::room(device, shape, dtype)?;
        let scratch = device.backend().scratch(op).map(|bytes| device.alloc(bytes, DType::F32));
        device.run(op, scratch.transpose()?.as_mut(), &mut out)?;
        Ok(Self::from_buffer(device, shape, dtype, out))
    }

    /// Runs an op with its result on the device and in the type of this tensor.
    fn compute(&self, shape: Shape, op: &Op) -> Result<Tensor> {
        Self::computed(&self.device, shape, self.dtype, op)
    }

    /// Runs the operations that the backend did not fuse, in the same order.
    fn finish(self, rest: &Fuse) -> Result<Tensor> {
        let mut x = self;
        if let Some(add) = rest.channel_add {
            x = x.add_channels(add)?;
        }
        x = x.activate(rest.activation)?;
        if let Some(residual) = rest.residual {
            x = x.add(residual)?;
        }
        Ok(x)
    }

    /// Maps `[.., k]` to `[.., out]`, or to half of `out` with GEGLU, which cannot be combined with a per-channel sum.
    ///
    /// # Errors
    /// As for all ops: if a shape, a type or a device does not match, if the arena is full, or if the device fails.
    pub fn linear(&self, w: &Weight, fuse: &Fuse) -> Result<Tensor> {
        const OP: &str = "linear";
        let w = &self.weight(OP, w)?;
        let geglu = fuse.activation == Activation::Geglu;
        let (out, k) = match w.layer() {
            Layer::Linear { out, k } if !geglu => (out, k),
            Layer::Geglu { out, k } if geglu => (out, k),
            layer => return Err(invalid_argument(OP, format!("a weight {layer:?} with {:?}", fuse.activation))),
        };
        ensure(self.shape.channels() == k, OP, || format!("{} into a layer of {k} channels", self.shape))?;
        ensure(!geglu || fuse.channel_add.is_none(), OP, || "no per-channel sum in front of GEGLU".into())?;
        let final_shape = self.shape.with_channels(if geglu { out / 2 } else { out });
        let (epilogue, rest) = self.fused(OP, final_shape, fuse)?;
        let shape = self.shape.with_channels(if epilogue.activation == Activation::Geglu { out / 2 } else { out });
        let p = Linear { rows: to_u32(self.shape.rows()), out: to_u32(out), k: to_u32(k) };
        self.compute(shape, &Op::Linear { p, x: &self.buffer, w, e: &epilogue })?.finish(&rest)
    }

    /// Maps `[batch, height, width, channels]` to `[batch, height', width', out]`.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn conv2d(&self, w: &Weight, padding: Padding, fuse: &Fuse) -> Result<Tensor> {
        const OP: &str = "conv2d";
        let w = &self.weight(OP, w)?;
        let Layer::Conv2d { out, channels, kernel, stride, .. } = w.layer() else {
            return Err(invalid_argument(OP, format!("a weight {:?}", w.layer())));
        };
        let &[batch, height, width, c] = self.shape.dims() else {
            return Err(invalid_argument(OP, format!("{} is not [batch, height, width, channels]", self.shape)));
        };
        ensure(c == channels, OP, || format!("{} into a layer of {channels} channels", self.shape))?;
        ensure(fuse.activation != Activation::Geglu, OP, || "GEGLU belongs to linear layers".into())?;
        ensure(stride > 0, OP, || "a window that does not move: stride 0".into())?;
        ensure(u32::try_from(stride).is_ok(), OP, || format!("stride {stride}"))?;
        ensure(kernel % 2 == 1 || padding == Padding::BottomRight, OP, || {
            format!("a {kernel}x{kernel} window has no middle to keep the size with")
        })?;
        let (before, both) = match padding {
            Padding::Same => (kernel / 2, kernel / 2 * 2),
            Padding::BottomRight => (0, 1),
        };
        ensure(height + both >= kernel && width + both >= kernel, OP, || {
            format!("{} is smaller than a {kernel}x{kernel} window", self.shape)
        })?;
        let size = |n: usize| (n + both - kernel) / stride + 1;
        let shape = Shape::from([batch, size(height), size(width), out]);
        let (epilogue, rest) = self.fused(OP, shape, fuse)?;
        let p = Conv2d {
            batch: to_u32(batch),
            height: to_u32(height),
            width: to_u32(width),
            channels: to_u32(channels),
            out: to_u32(out),
            kernel: to_u32(kernel),
            stride: to_u32(stride),
            padding: to_u32(before),
            out_height: to_u32(size(height)),
            out_width: to_u32(size(width)),
        };
        self.compute(shape, &Op::Conv2d { p, x: &self.buffer, w, e: &epilogue })?.finish(&rest)
    }

    /// `softmax(q k^T / sqrt(head_dim)) v` with `heads` heads side by side in the channels. self is q, `[batch,
    /// queries, channels]`; k and v are `[batch, keys, channels]`.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn attention(&self, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
        self.attention_in(Precision::F32, k, v, heads, causal)
    }

    /// As [`Tensor::attention`], where a CPU may quantise queries, keys, values and weights if the precision is int8.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn attention_in(
        &self,
        precision: Precision,
        k: &Tensor,
        v: &Tensor,
        heads: usize,
        causal: bool,
    ) -> Result<Tensor> {
        const OP: &str = "attention";
        self.check_computable(OP)?;
        self.check_matches(OP, k)?;
        self.check_matches(OP, v)?;
        let (&[batch, queries, channels], &[k_batch, keys, k_channels]) = (self.shape.dims(), k.shape.dims()) else {
            return Err(invalid_argument(
                OP,
                format!("{} and {} are not [batch, tokens, channels]", self.shape, k.shape),
            ));
        };
        ensure(k.shape == v.shape && k_batch == batch && k_channels == channels, OP, || {
            format!("q {}, k {}, v {}", self.shape, k.shape, v.shape)
        })?;
        ensure(heads > 0 && channels % heads == 0 && keys > 0, OP, || format!("{channels} channels, {heads} heads"))?;
        ensure(!causal || queries == keys, OP, || format!("causal over {queries} queries and {keys} keys"))?;
        let head_dim = channels / heads;
        let p = Attention {
            batch: to_u32(batch),
            queries: to_u32(queries),
            keys: to_u32(keys),
            heads: to_u32(heads),
            head_dim: to_u32(head_dim),
            causal: u32::from(causal),
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
        };
        self.compute(self.shape, &Op::Attention { p, precision, q: &self.buffer, k: &k.buffer, v: &v.buffer })
    }

    /// Group norm of `[batch, .., channels]`, followed by SiLU if `activation` says so.
    ///
    /// # Errors
    /// As [`Tensor::linear`]; no other activation is fused with a norm.
    pub fn group_norm(&self, w: &Weight, groups: usize, eps: f32, activation: Activation) -> Result<Tensor> {
        const OP: &str = "group_norm";
        let w = &self.weight(OP, w)?;
        let channels = self.shape.channels();
        ensure(w.layer() == Layer::Norm { channels }, OP, || format!("{} with {:?}", self.shape, w.layer()))?;
        ensure(groups > 0 && channels.is_multiple_of(groups), OP, || {
            format!("{channels} channels in {groups} groups")
        })?;
        ensure(matches!(activation, Activation::None | Activation::Silu), OP, || format!("with {activation:?}"))?;
        let batch = self.shape.batch();
        let p = GroupNorm {
            batch: to_u32(batch),
            pixels: to_u32(self.shape.rows() / batch),
            channels: to_u32(channels),
            groups: to_u32(groups),
            eps,
            silu: u32::from(activation == Activation::Silu),
        };
        self.compute(self.shape, &Op::GroupNorm { p, x: &self.buffer, w })
    }

    /// Layer norm of each row of `[.., channels]`.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn layer_norm(&self, w: &Weight, eps: f32) -> Result<Tensor> {
        const OP: &str = "layer_norm";
        let w = &self.weight(OP, w)?;
        let channels = self.shape.channels();
        ensure(w.layer() == Layer::Norm { channels }, OP, || format!("{} with {:?}", self.shape, w.layer()))?;
        let p = LayerNorm { rows: to_u32(self.shape.rows()), channels: to_u32(channels), eps };
        self.compute(self.shape, &Op::LayerNorm { p, x: &self.buffer, w })
    }

    /// Maps token ids `[batch, tokens]` to `[batch, tokens, channels]`: a row of `table` plus a row of `positions`.
    ///
    /// # Errors
    /// As [`Tensor::linear`], and if there are more tokens than positions or an id is beyond the table.
    pub fn embedding(device: &Device, ids: &[Vec<u32>], table: &Weight, positions: &Weight) -> Result<Tensor> {
        const OP: &str = "embedding";
        let (Layer::Embedding { rows, channels }, Layer::Embedding { rows: most, channels: same }) =
            (table.layer(), positions.layer())
        else {
            return Err(invalid_argument(OP, format!("weights {:?} and {:?}", table.layer(), positions.layer())));
        };
        let tokens = ids.first().map_or(0, Vec::len);
        ensure(channels == same && tokens <= most, OP, || format!("{tokens} tokens, {most} positions"))?;
        ensure(ids.iter().all(|text| text.len() == tokens), OP, || "texts of different lengths".into())?;
        let ids_flat: Vec<u32> = ids.iter().flatten().copied().collect();
        if let Some(id) = ids_flat.iter().find(|&&id| id as usize >= rows) {
            return Err(invalid_argument(OP, format!("token {id} of a table of {rows} rows")));
        }
        let p = Embedding {
            batch: to_u32(ids.len()),
            tokens: to_u32(tokens),
            channels: to_u32(channels),
            vocab: to_u32(rows),
        };
        let ids = Tensor::ids(device, [ids.len(), tokens], &ids_flat)?;
        let (table, positions) = (&ids.check_weight_device(OP, table)?, &ids.check_weight_device(OP, positions)?);
        let (shape, dtype) = (Shape::from([ids.dim(0), tokens, channels]), table.dtype());
        ensure(positions.dtype() == dtype, OP, || format!("{} beside {dtype}", positions.dtype()))?;
        Self::computed(device, shape, dtype, &Op::Embedding { p, ids: &ids.buffer, table, positions })
    }

    /// Nearest-neighbour upsampling to `[batch, height, width, channels]`, about twice the size.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn upsample2x(&self, height: usize, width: usize) -> Result<Tensor> {
        const OP: &str = "upsample2x";
        self.check_computable(OP)?;
        let &[batch, h, w, channels] = self.shape.dims() else {
            return Err(invalid_argument(OP, format!("{} is not [batch, height, width, channels]", self.shape)));
        };
        ensure(height.abs_diff(2 * h) <= 1 && width.abs_diff(2 * w) <= 1, OP, || {
            format!("{} to {height}x{width} is not about twice the size", self.shape)
        })?;
        let p = Upsample {
            batch: to_u32(batch),
            height: to_u32(h),
            width: to_u32(w),
            channels: to_u32(channels),
            out_height: to_u32(height),
            out_width: to_u32(width),
        };
        let shape = Shape::from([batch, height, width, channels]);
        self.compute(shape, &Op::Upsample2x { p, x: &self.buffer })
    }

    /// Concatenates `[.., a]` and `[.., b]` to `[.., a + b]`.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn concat_channels(&self, other: &Tensor) -> Result<Tensor> {
        const OP: &str = "concat_channels";
        self.check_computable(OP)?;
        self.check_matches(OP, other)?;
        let (left, right) = (self.shape.channels(), other.shape.channels());
        ensure(other.shape.with_channels(left) == self.shape, OP, || format!("{} and {}", self.shape, other.shape))?;
        let p = Concat { rows: to_u32(self.shape.rows()), left: to_u32(left), right: to_u32(right) };
        let shape = self.shape.with_channels(left + right);
        self.compute(shape, &Op::ConcatChannels { p, a: &self.buffer, b: &other.buffer })
    }

    /// An activation as an op of its own; GEGLU halves the channels, and `None` returns the tensor itself.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn activate(&self, activation: Activation) -> Result<Tensor> {
        const OP: &str = "activate";
        if activation == Activation::None {
            return Ok(self.clone());
        }
        self.check_computable(OP)?;
        let channels = match activation {
            Activation::Geglu => {
                ensure(self.shape.channels().is_multiple_of(2), OP, || format!("GEGLU of {}", self.shape))?;
                self.shape.channels() / 2
            }
            _ => self.shape.channels(),
        };
        let shape = self.shape.with_channels(channels);
        let p = Activate { rows: to_u32(shape.rows()), channels: to_u32(channels) };
        self.compute(shape, &Op::Activate { p, activation, x: &self.buffer })
    }

    /// Adds a row of `[batch or 1, channels]` to every pixel of `[batch, .., channels]`.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn add_channels(&self, add: &Tensor) -> Result<Tensor> {
        const OP: &str = "add_channels";
        self.check_computable(OP)?;
        self.check_matches(OP, add)?;
        let (batch, channels) = (self.shape.batch(), self.shape.channels());
        let rows = add.shape.rows();
        ensure(add.shape.channels() == channels && (rows == 1 || rows == batch), OP, || {
            format!("{} and {}", self.shape, add.shape)
        })?;
        let p = AddChannels {
            batch: to_u32(batch),
            pixels: to_u32(self.shape.rows() / batch),
            channels: to_u32(channels),
            per_channel_rows: to_u32(rows),
        };
        self.compute(self.shape, &Op::AddChannels { p, x: &self.buffer, per_channel: &add.buffer })
    }

    /// The sum of two tensors of one shape.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        ensure(self.shape == other.shape, "add", || format!("{} and {}", self.shape, other.shape))?;
        self.check_matches("add", other)?;
        let (a, b) = (self.cast(DType::F32)?, other.cast(DType::F32)?);
        Tensor::scale_add(self.shape, &[(1.0, &a, 0), (1.0, &b, 0)])?.cast(self.dtype)
    }

    /// `sum of scale * term`, all f32, as one fused chain in this order. Each term is the part of a tensor that begins
    /// at the given row of its outermost size and has `shape`.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn scale_add(shape: Shape, terms: &[(f32, &Tensor, usize)]) -> Result<Tensor> {
        const OP: &str = "scale_add";
        let Some((_, first, _)) = terms.first() else { return Err(invalid_argument(OP, "no terms")) };
        ensure(terms.len() <= MAX_TERMS, OP, || format!("{} terms, up to {MAX_TERMS} are possible", terms.len()))?;
        let mut parts = Vec::with_capacity(terms.len());
        for (scale, x, row) in terms {
            x.check_dtype(OP, DType::F32)?;
            first.check_device(OP, x)?;
            let start = row.checked_mul(x.shape.elements() / x.dim(0));
            let ends_inside =
                |start: &usize| start.checked_add(shape.elements()).is_some_and(|end| end <= x.shape.elements());
            let Some(start) = start.filter(ends_inside) else {
                return Err(invalid_argument(OP, format!("{shape} from row {row} of {}", x.shape)));
            };
            parts.push((*scale, &*x.buffer, start));
        }
        let p = ScaleAdd { elements: to_u32(shape.elements()) };
        first.compute(shape, &Op::ScaleAdd { p, terms: &parts })
    }

    /// Concatenates tensors of one shape along the outermost size.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn stack(parts: &[&Tensor]) -> Result<Tensor> {
        const OP: &str = "stack";
        let Some(first) = parts.first() else { return Err(invalid_argument(OP, "nothing to stack")) };
        let bytes = first.shape.elements() * first.dtype.size();
        let shape = first.shape.with_batch(first.dim(0) * parts.len());
        let mut buffer = Self::room(&first.device, shape, first.dtype)?;
        for (i, part) in parts.iter().enumerate() {
            first.check_device(OP, part)?;
            ensure((part.shape, part.dtype) == (first.shape, first.dtype), OP, || {
                format!("{} {} beside {} {}", part.dtype, part.shape, first.dtype, first.shape)
            })?;
            first.device.backend().copy(&part.buffer, 0, &mut buffer, i * bytes, bytes)?;
        }
        Ok(Self::from_buffer(&first.device, shape, first.dtype, buffer))
    }

    /// Converts the values to another float type.
    ///
    /// # Errors
    /// As [`Tensor::linear`].
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        const OP: &str = "cast";
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        ensure(self.dtype != DType::U32 && dtype != DType::U32, OP, || format!("{} to {dtype}", self.dtype))?;
        Self::computed(&self.device, self.shape, dtype, &Op::Cast { x: &self.buffer })
    }
}
