//! The kernels of a CPU device.

use std::fmt;

use super::simd::Path;
use crate::backend::{DType, Extent, Form, Layer, Precision, weight::Stored};

/// How 3x3 convolutions of stride 1 are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Convolution {
    /// By Winograd's minimal filtering, two to three times as fast, with up to four times the memory for their weights.
    #[default]
    Winograd,
    /// As one sum over the window, like every other convolution.
    Direct,
}

impl Convolution {
    /// The values with their names in a device map.
    pub const NAMED: [(&str, Self); 2] = [("winograd", Self::Winograd), ("direct", Self::Direct)];
}

/// A form of Winograd's minimal filtering for 3x3 convolutions of stride 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    /// F(4x4, 3x3): a quarter of the products, and four times the weights.
    F4,
    /// F(2x2, 3x3): four ninths of the products, and 1.8 times the weights.
    F2,
}

impl Filtering {
    /// Rows and columns of the outputs of one tile.
    pub const fn tile(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F2 => 2,
        }
    }

    /// Elements of a transformed tile, which are the planes of a transformed weight.
    pub const fn planes(self) -> usize {
        (self.tile() + 2).pow(2)
    }
}

/// The kernels of a CPU device: all that decides the bits of its results. It prints as in `avx512 winograd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kernels {
    /// The instruction set.
    pub path: Path,
    /// The algorithm of convolutions.
    pub convolution: Convolution,
}

/// The channels from which Winograd's transforms cost less than the products that they save.
const MIN_WINOGRAD_CHANNELS: usize = 32;
/// The most output channels of a layer whose weights are stored fourfold. One of 1280 to 1280 channels would take 236
/// MB instead of 59 MB, and a UNet of SDXL has some twenty of them.
const MAX_FOURFOLD_CHANNELS: usize = 640;

/// The fewest input and output channels of a convolution, and inputs of a linear layer, that are stored as int8: the
/// first and the last layers have fewer.
const MIN_INT8_CHANNELS: usize = 32;
/// The most inputs of a linear layer that is stored as int8.
const MAX_INT8_INPUTS: usize = 1 << 16;

/// The form of a layer on a CPU: its inputs and output are f32 in every precision.
pub(in crate::backend) fn form(layer: Layer, precision: Precision, has_bias: bool) -> Form {
    let has_int8 = match layer {
        Layer::Linear { k, .. } | Layer::Geglu { k, .. } => (MIN_INT8_CHANNELS..=MAX_INT8_INPUTS).contains(&k),
        Layer::Conv2d { out, channels, .. } => out.min(channels) >= MIN_INT8_CHANNELS,
        Layer::Norm { .. } | Layer::Embedding { .. } => false,
    };
    let stored = match (layer, precision) {
        (Layer::Norm { .. }, _) | (_, Precision::F32) => Stored::F32,
        (_, Precision::BF16) => Stored::BF16,
        (_, Precision::Int8) if has_int8 => Stored::Int8,
        (_, Precision::F16 | Precision::Int8) => Stored::F16,
    };
    Form { layer, stored, computed: DType::F32, has_bias }
}

impl Kernels {
    /// The form of Winograd's minimal filtering by which a layer is computed, if it is; never one whose weights are
    /// int8. With few pixels, reading the weights, which have more bytes, takes longer than the products that are saved;
    /// in bf16, which is chosen to save memory, F(2x2) would take 1.8 times the bytes.
    pub(in crate::backend) fn filtering(self, form: Form) -> Option<Filtering> {
        let Layer::Conv2d { out, channels, kernel: 3, stride: 1, extent } = form.layer else {
            return None;
        };
        if self.convolution == Convolution::Direct
            || form.stored == Stored::Int8
            || out.min(channels) < MIN_WINOGRAD_CHANNELS
        {
            return None;
        }
        match extent {
            Extent::Large if out <= MAX_FOURFOLD_CHANNELS => Some(Filtering::F4),
            Extent::Large | Extent::Medium if form.stored != Stored::BF16 => Some(Filtering::F2),
            _ => None,
        }
    }

    /// Whether a layer is computed in words of narrow elements: its inputs are converted too.
    pub(in crate::backend) fn is_narrow(self, form: Form) -> bool {
        let is_product = !matches!(form.layer, Layer::Norm { .. } | Layer::Embedding { .. });
        form.stored == Stored::Int8 || form.stored == Stored::BF16 && is_product && self.filtering(form).is_none()
    }
}

impl From<Path> for Kernels {
    /// The kernels of this path that a device uses unless a device map says otherwise.
    fn from(path: Path) -> Self {
        Self { path, convolution: Convolution::default() }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.convolution {
            Convolution::Winograd => write!(f, "{} winograd", self.path),
            Convolution::Direct => write!(f, "{}", self.path),
        }
    }
}
