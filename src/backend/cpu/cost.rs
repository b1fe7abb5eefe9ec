//! The bytes that things occupy on the CPU: pure functions of the kernels that both the real backend and the dry one
//! call.

use super::{
    kernels::{Filtering, Kernels},
    narrow::{attention, pack, rows, segments},
    simd::Path,
};
use crate::backend::{
    Form, Layer, Op, Precision, Stored,
    arena::aligned,
    params::{Attention, Conv2d},
};

/// The number of pixels in one partial sum of a group norm's statistics.
pub const NORM_CHUNK: usize = 64;
/// The number of keys in a block of attention, after which it rescales its sums.
pub const KEY_BLOCK: usize = 128;

/// The time of a convolution by F(4x4, 3x3), as a share of the time as one sum over the window: the median of SD 1.5's
/// layers on an AMD EPYC (Zen 5).
const F4_TIME: f64 = 0.36;
/// As [`F4_TIME`], by F(2x2, 3x3), on an Intel Xeon (Sapphire Rapids).
const F2_TIME: f64 = 0.55;
/// The time of a product in int8, as a share of the time in f32: ratio measured on an Intel Xeon with AMX, and used for
/// all CPUs. A product in bf16 takes as long as one in f32 there.
const INT8_TIME: f64 = 0.3;

/// Elements of a layer's packed weight: panels of two vectors, each `[k, panel]`, the last one padded with zeros.
pub(in crate::backend) fn packed_elements(kernels: Kernels, form: Form) -> usize {
    let path = kernels.path;
    let panels = |out: usize, k: usize| out.div_ceil(path.panel()) * path.panel() * k;
    match form.layer {
        Layer::Linear { out, k } => panels(out, k),
        // Half a panel has hidden channels, and half has gates.
        Layer::Geglu { out, k } => panels((out / 2).next_multiple_of(path.lanes()) * 2, k),
        Layer::Conv2d { out, channels, kernel, .. } => {
            panels(out, channels * kernels.filtering(form).map_or(kernel * kernel, Filtering::planes))
        }
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
pub(in crate::backend) fn packed_bytes(kernels: Kernels, form: Form) -> usize {
    let bias = if form.has_bias { 4 * bias_elements(kernels.path, form.layer) } else { 0 };
    if kernels.is_narrow(form) {
        let columns = bias_elements(kernels.path, form.layer);
        return 4 * pack::packed_words(form.stored, segments::segments(form), columns) + bias;
    }
    form.stored.bytes(packed_elements(kernels, form)) + bias
}

/// The elements of one image's and head's keys, or values: `[keys, head_dim]`.
pub fn head_elements(p: &Attention) -> usize {
    p.keys as usize * p.head_dim as usize
}

/// The operations of a dense product that takes as long as this op.
pub(in crate::backend) fn timed_flops(kernels: Kernels, op: &Op) -> f64 {
    match op {
        Op::Conv2d { w, .. } | Op::Linear { w, .. } => {
            let share = match kernels.filtering(w.form) {
                Some(Filtering::F4) => F4_TIME,
                Some(Filtering::F2) => F2_TIME,
                None if w.form.stored == Stored::Int8 => INT8_TIME,
                None => 1.0,
            };
            share * op.flops()
        }
        _ => op.flops(),
    }
}

/// The tiles of a convolution by Winograd's algorithm, and how their transformed inputs are stored: `[planes, tiles,
/// channels]`, for some tiles at a time.
pub struct Tiles {
    /// The form of the algorithm.
    pub filtering: Filtering,
    rows: usize,
    columns: usize,
    /// All tiles.
    pub count: usize,
    /// The most tiles that are stored at one time.
    pub together: usize,
    /// Elements between two tiles.
    pub row: usize,
    /// Elements between two planes.
    pub plane: usize,
}

impl Tiles {
    /// The bytes of the inputs that are stored at one time, unless so few tiles have more.
    const BYTES: usize = 4 << 20;

    pub fn new(path: Path, filtering: Filtering, p: &Conv2d) -> Self {
        let (tile, planes) = (filtering.tile(), filtering.planes());
        let (rows, columns) = ((p.out_height as usize).div_ceil(tile), (p.out_width as usize).div_ceil(tile));
        // The tiles that are always stored together, so that each weight is used often.
        let fewest = match filtering {
            Filtering::F4 => 96,
            Filtering::F2 => 256,
        };
        let count = p.batch as usize * rows * columns;
        // A line more than the channels, and three more than the tiles, so that rows and planes do not share the sets
        // of a cache.
        let row = (p.channels as usize).next_multiple_of(path.lanes()) + 16;
        let together = (Self::BYTES / (4 * planes * row) / fewest * fewest).max(fewest).min(count);
        Self { filtering, rows, columns, count, together, row, plane: together * row + 48 }
    }

    /// Elements of the stored inputs.
    pub fn elements(&self) -> usize {
        self.filtering.planes() * self.plane
    }

    /// The image of a tile, and its row and column there.
    pub fn place(&self, tile: usize) -> (usize, usize, usize) {
        (tile / (self.rows * self.columns), tile / self.columns % self.rows, tile % self.columns)
    }
}

/// The bytes that an op needs in addition to its output.
pub(in crate::backend) fn scratch(kernels: Kernels, op: &Op) -> Option<usize> {
    match op {
        Op::Conv2d { p, w, .. } => match kernels.filtering(w.form) {
            Some(filtering) => Some(aligned(4 * Tiles::new(kernels.path, filtering, p).elements())),
            None if kernels.is_narrow(w.form) => {
                Some(aligned(4 * rows::converted_words(w.form, (p.batch * p.height * p.width) as usize)))
            }
            None => None,
        },
        Op::Linear { p, w, .. } if kernels.is_narrow(w.form) => {
            Some(aligned(4 * rows::converted_words(w.form, p.rows as usize)))
        }
        Op::Attention { p, precision: Precision::Int8, .. } if p.causal == 0 => {
            Some(aligned(4 * attention::elements(p)))
        }
        Op::Attention { p, .. } => Some(aligned(4 * 2 * head_elements(p) * (p.batch * p.heads) as usize)),
        // A mean and a sum of squares for each chunk and group, then a factor and an offset for each channel.
        Op::GroupNorm { p, .. } => {
            let chunks = (p.pixels as usize).div_ceil(NORM_CHUNK);
            Some(4 * p.batch as usize * (2 * chunks * p.groups as usize + 2 * p.channels as usize))
        }
        _ => None,
    }
}
