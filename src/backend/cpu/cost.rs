//! The bytes that things occupy on the CPU: pure functions of the path that both the real backend and the dry one call.

use super::simd::Path;
use crate::backend::{Form, Layer, Op, arena::aligned, params::Attention};

/// The number of pixels in one partial sum of a group norm's statistics.
pub const NORM_CHUNK: usize = 64;
/// The number of keys in a block of attention, after which it rescales its sums.
pub const KEY_BLOCK: usize = 128;

/// Elements of a layer's packed weight: panels of two vectors, each `[k, panel]`, the last one padded with zeros.
pub fn packed_elements(path: Path, layer: Layer) -> usize {
    let panels = |out: usize, k: usize| out.div_ceil(path.panel()) * path.panel() * k;
    match layer {
        Layer::Linear { out, k } => panels(out, k),
        // Half a panel has hidden channels, and half has gates.
        Layer::Geglu { out, k } => panels((out / 2).next_multiple_of(path.lanes()) * 2, k),
        Layer::Conv2d { out, channels, kernel } => panels(out, channels * kernel * kernel),
        Layer::Norm { channels } => channels,
        Layer::Embedding { rows, channels } => rows * channels,
    }
}

/// Elements of a layer's packed bias: as many as its panels have columns.
pub fn bias_elements(path: Path, layer: Layer) -> usize {
    match layer {
        Layer::Linear { out, .. } | Layer::Conv2d { out, .. } => out.next_multiple_of(path.panel()),
        Layer::Geglu { out, .. } => (out / 2).next_multiple_of(path.lanes()) * 2,
        Layer::Norm { channels } => channels,
        Layer::Embedding { .. } => 0,
    }
}

/// The bytes of a packed layer.
pub(in crate::backend) fn packed_bytes(path: Path, form: Form) -> usize {
    let bias = if form.has_bias { 4 * bias_elements(path, form.layer) } else { 0 };
    form.stored.bytes(packed_elements(path, form.layer)) + bias
}

/// The elements of one image's and head's packed keys, `[key panels, head_dim, panel]`, and values, `[head_dim panels,
/// keys, panel]`.
pub fn packed_keys_and_values(path: Path, p: &Attention) -> (usize, usize) {
    let keys = (p.keys as usize).next_multiple_of(path.panel());
    (keys * p.head_dim as usize, keys * (p.head_dim as usize).next_multiple_of(path.panel()))
}

/// The bytes that an op needs in addition to its output.
pub(in crate::backend) fn scratch(path: Path, op: &Op) -> Option<usize> {
    match op {
        Op::Attention { p, .. } => {
            let (keys, values) = packed_keys_and_values(path, p);
            Some(aligned(4 * (keys + values) * (p.batch * p.heads) as usize))
        }
        // A mean and a sum of squares for each chunk and group, then a factor and an offset for each channel.
        Op::GroupNorm { p, .. } => {
            let chunks = (p.pixels as usize).div_ceil(NORM_CHUNK);
            Some(4 * p.batch as usize * (2 * chunks * p.groups as usize + 2 * p.channels as usize))
        }
        _ => None,
    }
}
