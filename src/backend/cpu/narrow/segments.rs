//! How the k of a layer is divided, and the sizes that all files of products of words know.

use crate::backend::{Form, Layer, Stored};

/// The most parts of k that are summed separately: the taps of a window, or the groups of a row.
pub const MAX_SEGMENTS: usize = 64;
/// The most rows of a tile, on any unit.
pub const MAX_ROWS: usize = 32;
/// The number of words in which the words of a segment are counted: a row of AMX's tiles.
pub const STEP: usize = 16;

/// Elements in one word.
pub fn per_word(stored: Stored) -> usize {
    4 / stored.bytes(1)
}

/// How the k of a layer is divided: into taps of a window, or groups of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// The number of segments.
    pub count: usize,
    /// Elements of one segment.
    pub elements: usize,
    /// Words of one segment, whose last elements may be padding.
    pub words: usize,
}

impl Segments {
    /// `count` segments of `elements` elements each.
    pub fn new(stored: Stored, count: usize, elements: usize) -> Self {
        Self { count, elements, words: elements.div_ceil(per_word(stored)).next_multiple_of(STEP) }
    }
}

/// The division of a layer's k.
///
/// # Panics
/// If the layer is no product.
pub fn segments(form: Form) -> Segments {
    match form.layer {
        Layer::Linear { k, .. } | Layer::Geglu { k, .. } => Segments::new(form.stored, 1, k),
        Layer::Conv2d { channels, kernel, .. } => Segments::new(form.stored, kernel * kernel, channels),
        Layer::Norm { .. } | Layer::Embedding { .. } => panic!("{:?} is no product", form.layer),
    }
}

/// The groups of a row of the input.
pub fn groups(form: Form) -> Segments {
    let segments = segments(form);
    match form.layer {
        Layer::Conv2d { .. } => Segments { count: 1, ..segments },
        _ => segments,
    }
}
