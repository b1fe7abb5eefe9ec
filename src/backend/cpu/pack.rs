//! Weights in panels: two vectors of output columns side by side, `[k, panel]`, padded with zeros. Packed once at load,
//! in the order in which the micro-kernel reads them.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{
    cost,
    memory::{Pages, Parts},
    simd::Path,
    threads::Pool,
};
use crate::{
    backend::{DType, Layer, Values},
    error::{Error, Result},
};

/// A layer's parameters, packed.
pub struct Packed {
    /// The weight, or the scale of a norm.
    pub weight: Pages,
    /// The bias, or the shift of a norm.
    pub bias: Option<Pages>,
}

impl Packed {
    /// The same on pages of its own.
    pub fn copy(&self) -> Result<Self> {
        Ok(Self { weight: self.weight.copy()?, bias: self.bias.as_ref().map(Pages::copy).transpose()? })
    }
}

/// Packs a layer's parameters for `path`.
pub fn pack(path: Path, pool: &Pool, layer: Layer, weight: Values, bias: Option<Values>) -> Result<Packed> {
    let mut packed = Pages::zeroed(cost::packed_elements(path, layer))?;
    let weight = Source::new(weight)?;
    match layer {
        Layer::Linear { k, .. } | Layer::Geglu { k, .. } => panels(path, pool, layer, k, 1, &weight, &mut packed),
        Layer::Conv2d { channels, kernel, .. } => {
            panels(path, pool, layer, channels, kernel * kernel, &weight, &mut packed);
        }
        Layer::Norm { .. } | Layer::Embedding { .. } => weight.read(0, &mut packed),
    }
    let bias = match bias {
        None => None,
        Some(values) => {
            let source = Source::new(values)?;
            let mut bias = Pages::zeroed(cost::bias_elements(path, layer))?;
            let len = bias.len();
            for (column, value) in bias.iter_mut().enumerate().take(len) {
                if let Some(row) = row_of(path, layer, column) {
                    source.read(row, std::slice::from_mut(value));
                }
            }
            Some(bias)
        }
    };
    Ok(Packed { weight: packed, bias })
}

/// The output channel whose weights stand in packed column `column`; `None` for padding.
fn row_of(path: Path, layer: Layer, column: usize) -> Option<usize> {
    match layer {
        Layer::Linear { out, .. } | Layer::Conv2d { out, .. } => (column < out).then_some(column),
        Layer::Geglu { out, .. } => {
            let (lanes, half) = (path.lanes(), out / 2);
            let channel = column / (2 * lanes) * lanes + column % lanes;
            let gate = column % (2 * lanes) >= lanes;
            (channel < half).then_some(if gate { half + channel } else { channel })
        }
        Layer::Norm { channels } => (column < channels).then_some(column),
        Layer::Embedding { .. } => None,
    }
}

/// From `[out, channels, taps]` as stored to panels of `[taps, channels, panel]`.
fn panels(path: Path, pool: &Pool, layer: Layer, channels: usize, taps: usize, source: &Source, packed: &mut [f32]) {
    let (width, k) = (path.panel(), channels * taps);
    let count = packed.len() / (width * k);
    let packed = Parts::new(packed);
    pool.run(count, |panel| {
        // SAFETY: each panel is one task's.
        let panel_out = unsafe { packed.part(panel * width * k, width * k) };
        let mut row = vec![0.0; k];
        for column in 0..width {
            let Some(out) = row_of(path, layer, panel * width + column) else { continue };
            source.read(out * k, &mut row);
            for tap in 0..taps {
                let to = panel_out[tap * channels * width..].iter_mut().skip(column).step_by(width);
                for (to, &from) in to.zip(row[tap..].iter().step_by(taps)) {
                    *to = from;
                }
            }
        }
    });
}

/// A weight as its file has it, read as f32.
struct Source<'a> {
    dtype: DType,
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    fn new(values: Values<'a>) -> Result<Self> {
        match values {
            Values::Data { dtype: DType::U32, .. } => Err(Error::input("a weight must be of a float type, not u32")),
            Values::Data { dtype, bytes } => Ok(Self { dtype, bytes }),
            Values::ShapeOnly => Err(Error::input("this model was opened for planning: its weights are not here")),
        }
    }

    /// Elements from `start` on.
    fn read(&self, start: usize, to: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes[start * size..(start + to.len()) * size];
        // The file's bytes may lie at any address: they pass through an aligned piece of the stack.
        const PIECE: usize = 256;
        match self.dtype {
            DType::F32 | DType::U32 => bytemuck::cast_slice_mut(to).copy_from_slice(bytes),
            DType::F16 => {
                let mut piece = [f16::ZERO; PIECE];
                for (to, from) in to.chunks_mut(PIECE).zip(bytes.chunks(2 * PIECE)) {
                    let piece = &mut piece[..to.len()];
                    bytemuck::cast_slice_mut(piece).copy_from_slice(from);
                    piece.convert_to_f32_slice(to);
                }
            }
            DType::BF16 => {
                let mut piece = [bf16::ZERO; PIECE];
                for (to, from) in to.chunks_mut(PIECE).zip(bytes.chunks(2 * PIECE)) {
                    let piece = &mut piece[..to.len()];
                    bytemuck::cast_slice_mut(piece).copy_from_slice(from);
                    piece.convert_to_f32_slice(to);
                }
            }
        }
    }
}
