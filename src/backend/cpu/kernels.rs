//! The kernels of a CPU device.

use std::fmt;

use super::simd::Path;
use crate::backend::{Extent, Layer};

/// How 3x3 convolutions of stride 1 are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Convolution {
    /// By Winograd's minimal filtering, two to three times as fast, with four times the memory for their weights.
    #[default]
    Winograd,
    /// As one sum over the window, like every other convolution.
    Direct,
}

impl Convolution {
    /// The values with their names in a device map.
    pub const NAMED: [(&str, Self); 2] = [("winograd", Self::Winograd), ("direct", Self::Direct)];
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
const MAX_WINOGRAD_CHANNELS: usize = 640;

impl Kernels {
    /// Whether a layer is computed by Winograd's minimal filtering. With few pixels, reading the weights, of which
    /// there are four times as many bytes, takes longer than the products that are saved.
    pub fn is_winograd(self, layer: Layer) -> bool {
        let Layer::Conv2d { out, channels, kernel: 3, stride: 1, extent: Extent::Large } = layer else { return false };
        self.convolution == Convolution::Winograd
            && channels >= MIN_WINOGRAD_CHANNELS
            && (MIN_WINOGRAD_CHANNELS..=MAX_WINOGRAD_CHANNELS).contains(&out)
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
