//! Weights in the order in which shaders read them, in the type in which they are computed.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;

use super::{
    device::PIECE_BYTES,
    gpu::Wgpu,
    memory::{Memory, STEP, parts},
};
use crate::{
    backend::{DType, Form, Layer, Values, Weight, weight::Stored},
    error::{Error, Result},
};

/// The columns of a panel of weights, as in `product.wgsl`.
pub const PANEL: usize = 32;

/// A layer's packed parameters. Products have panels of [`PANEL`] columns, each `[k, columns]`, or for convolutions
/// `[kernel, kernel, channels, columns]`: neighbouring invocations read adjacent elements, and each invocation reads
/// sequentially. All other layers keep the order of the file.
pub struct WgpuWeight {
    /// A weight that is too large for one binding is in several buffers, each with some of the output's columns.
    pub parts: Vec<Part>,
    /// The whole bias, f32.
    pub bias: Option<Memory>,
}

/// Some columns of a weight. In a GEGLU layer, the gates of these columns follow them.
pub struct Part {
    /// The columns of the output.
    pub columns: Range<usize>,
    /// The weights of these columns.
    pub memory: Memory,
}

/// A layer's packed parameters in host memory, for an offloaded weight.
pub struct HostWeight {
    /// The columns and bytes of each part.
    parts: Vec<(Range<usize>, Vec<u8>)>,
    bias: Option<Vec<f32>>,
}

/// The packed form of a weight on a device.
pub fn packed(w: &Weight) -> &WgpuWeight {
    w.held().expect("tensor/ops.rs compares devices: a weight is in the memory of the device that it reaches")
}

/// The packed form of a weight in host memory.
pub fn host_weight(w: &Weight) -> &HostWeight {
    w.held().expect("a device only fetches weights that it packed for the host")
}

/// A number in a file's or packed form.
trait Element: bytemuck::Pod {
    /// Reads `to.len()` elements from `start` on.
    fn read(values: Values, start: usize, to: &mut [Self]) -> Result<()>;
}

impl Element for f32 {
    fn read(values: Values, start: usize, to: &mut [Self]) -> Result<()> {
        let dtype = values.form()?.0;
        let start = start * dtype.size();
        if dtype == DType::F32 {
            return values.read(start, bytemuck::cast_slice_mut(to));
        }
        let mut bytes = vec![0; to.len() * dtype.size()];
        values.read(start, &mut bytes)?;
        match dtype {
            DType::F16 => {
                let halves: Vec<half::f16> =
                    bytes.chunks_exact(2).map(|x| half::f16::from_le_bytes([x[0], x[1]])).collect();
                halves.convert_to_f32_slice(to);
            }
            DType::BF16 => {
                let values = bytes.chunks_exact(2).map(|x| half::bf16::from_le_bytes([x[0], x[1]]).to_f32());
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
            DType::F32 | DType::U32 => unreachable!("read above, and no form of a weight"),
        }
        Ok(())
    }
}

/// The bits of an f16.
impl Element for u16 {
    fn read(values: Values, start: usize, to: &mut [Self]) -> Result<()> {
        if values.form()?.0 == DType::F16 {
            return values.read(start * size_of::<u16>(), bytemuck::cast_slice_mut(to));
        }
        let mut wide = vec![0f32; to.len()];
        f32::read(values, start, &mut wide)?;
        let mut halves = vec![half::f16::ZERO; to.len()];
        halves.convert_from_f32_slice(&wide);
        to.iter_mut().zip(halves).for_each(|(to, half)| *to = half.to_bits());
        Ok(())
    }
}

/// Calls `write(first byte, bytes)` with the elements of some columns of a layer's weight in the order in which shaders
/// read them, some panels at a time. All calls but the last have a multiple of four bytes.
fn in_order<E: Element>(
    layer: Layer,
    columns: &Range<usize>,
    weight: Values,
    mut write: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = size_of::<E>();
    let (channels, taps) = match layer {
        Layer::Linear { k, .. } | Layer::Geglu { k, .. } => (k, 1),
        Layer::Conv2d { channels, kernel, .. } => (channels, kernel * kernel),
        Layer::Norm { .. } | Layer::Embedding { .. } => {
            let (elements, most) = (layer.elements().0, PIECE_BYTES / size);
            let mut piece = vec![E::zeroed(); most.min(elements)];
            for start in (0..elements).step_by(most) {
                let count = most.min(elements - start);
                E::read(weight, start, &mut piece[..count])?;
                write(start * size, bytemuck::cast_slice(&piece[..count]))?;
            }
            return Ok(());
        }
    };
    let gates = match layer {
        Layer::Geglu { out, .. } => Some(out / 2 + columns.start..out / 2 + columns.end),
        _ => None,
    };
    let depth = channels * taps;
    let (mut row, mut piece, mut written) = (vec![E::zeroed(); depth], Vec::new(), 0);
    for half in [Some(columns.clone()), gates].into_iter().flatten() {
        for (first, pitch) in parts(half.len(), PANEL, PANEL) {
            // Transposes [column, channels, taps], as stored, to [taps, channels, column].
            let panel = piece.len();
            piece.resize(panel + depth * pitch, E::zeroed());
            for place in 0..pitch {
                E::read(weight, (half.start + first + place) * depth, &mut row)?;
                for (i, value) in row.iter().enumerate() {
                    piece[panel + (i % taps * channels + i / taps) * pitch + place] = *value;
                }
            }
            // Only the last panel of a half can end in the middle of a word: it is written together with the next one.
            if piece.len() * size >= PIECE_BYTES && (piece.len() * size).is_multiple_of(4) {
                write(written, bytemuck::cast_slice(&piece))?;
                written += piece.len() * size;
                piece.clear();
            }
        }
    }
    if piece.is_empty() { Ok(()) } else { write(written, bytemuck::cast_slice(&piece)) }
}

fn in_type(
    stored: Stored,
    layer: Layer,
    columns: &Range<usize>,
    weight: Values,
    write: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    match stored {
        Stored::F16 => in_order::<u16>(layer, columns, weight, write),
        // No adapter computes in bf16 or int8.
        Stored::F32 | Stored::BF16 | Stored::Int8 => in_order::<f32>(layer, columns, weight, write),
    }
}

fn bias_values(layer: Layer, bias: Option<Values>) -> Result<Option<Vec<f32>>> {
    let Some(bias) = bias else { return Ok(None) };
    let mut values = vec![0.0; layer.elements().1];
    f32::read(bias, 0, &mut values)?;
    Ok(Some(values))
}

impl Wgpu {
    /// The parts of a layer: the columns of each and its bytes.
    fn split(&self, form: Form) -> Result<Vec<(Range<usize>, usize)>> {
        let Form { layer, stored, computed, .. } = form;
        let elements = layer.elements().0;
        let refused = || {
            Error::input(format!("{layer:?} has {elements} elements in {computed}"))
                .found(format!("{} goes up to {} bytes for one of its columns", self.class, self.most()))
                .hint("another device for this component")
        };
        if elements >= 1 << 31 {
            return Err(refused());
        }
        // The number of columns of the output, and the bytes of each column with its gate.
        let (columns, column_bytes) = match layer {
            Layer::Linear { out, k } => (out, stored.bytes(k)),
            Layer::Geglu { out, k } => (out / 2, stored.bytes(2 * k)),
            Layer::Conv2d { out, channels, kernel, .. } => (out, stored.bytes(channels * kernel * kernel)),
            Layer::Norm { channels } => return Ok(vec![(0..channels, stored.bytes(channels))]),
            // A table is one buffer, which ops bind in parts.
            Layer::Embedding { channels, .. } => return Ok(vec![(0..channels, stored.bytes(elements))]),
        };
        let most = self.most().saturating_sub(STEP) / column_bytes;
        if most == 0 {
            return Err(refused());
        }
        let part = |(first, count)| (first..first + count, count * column_bytes);
        Ok(parts(columns, most, PANEL.min(most)).map(part).collect())
    }

    /// Allocates memory with a label.
    fn memory(&self, bytes: usize, label: &str) -> Result<Memory> {
        Ok(Memory::new(self.context.buffer(bytes, label)?, bytes, self.pipelines.groups()))
    }

    fn upload(&self, label: &str, bytes: &[u8]) -> Result<Memory> {
        let memory = self.memory(bytes.len(), label)?;
        for (i, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            self.write_piece(&memory, i * PIECE_BYTES, piece)?;
        }
        Ok(memory)
    }

    /// Writes a piece. For a large weight, the driver's copy of each piece is freed, so that the whole weight is never
    /// copied at once.
    fn write_piece(&self, to: &Memory, offset: usize, piece: &[u8]) -> Result<()> {
        self.context.write(piece, &to.buffer, offset)?;
        if to.bytes > PIECE_BYTES { self.context.settle() } else { Ok(()) }
    }

    /// Packs a file's values.
    pub(super) fn packed(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<WgpuWeight> {
        let part = |(columns, bytes): (Range<usize>, usize)| -> Result<Part> {
            let memory = self.memory(bytes, "weight")?;
            in_type(form.stored, form.layer, &columns, weight, |start, piece| self.write_piece(&memory, start, piece))?;
            Ok(Part { columns, memory })
        };
        let parts = self.split(form)?.into_iter().map(part).collect::<Result<_>>()?;
        let bias = bias_values(form.layer, bias)?;
        let bias = bias.map(|values| self.upload("bias", bytemuck::cast_slice(&values))).transpose()?;
        Ok(WgpuWeight { parts, bias })
    }

    /// Packs a file's values in host memory.
    pub(super) fn packed_for_host(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<HostWeight> {
        let part = |(columns, bytes): (Range<usize>, usize)| -> Result<_> {
            let mut host_bytes = vec![0; bytes];
            in_type(form.stored, form.layer, &columns, weight, |start, piece| {
                host_bytes[start..][..piece.len()].copy_from_slice(piece);
                Ok(())
            })?;
            Ok((columns, host_bytes))
        };
        let parts = self.split(form)?.into_iter().map(part).collect::<Result<_>>()?;
        Ok(HostWeight { parts, bias: bias_values(form.layer, bias)? })
    }

    /// Copies packed parameters from host memory.
    pub(super) fn fetched(&self, from: &HostWeight) -> Result<WgpuWeight> {
        let part = |(columns, bytes): &(Range<usize>, Vec<u8>)| -> Result<Part> {
            Ok(Part { columns: columns.clone(), memory: self.upload("weight", bytes)? })
        };
        let parts = from.parts.iter().map(part).collect::<Result<_>>()?;
        let bias = from.bias.as_ref().map(|values| self.upload("bias", bytemuck::cast_slice(values))).transpose()?;
        Ok(WgpuWeight { parts, bias })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Extent;

    #[test]
    fn weights_are_in_the_order_of_the_product() {
        let stored: Vec<f32> = (0..70 * 12).map(|i| i as f32).collect();
        let weight = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&stored) };
        let get = |layer, columns: Range<usize>, elements: usize| -> Vec<f32> {
            let mut got = vec![0; elements * 2];
            in_type(Stored::F16, layer, &columns, weight, |start, piece| {
                got[start..][..piece.len()].copy_from_slice(piece);
                Ok(())
            })
            .unwrap();
            got.chunks_exact(2).map(|x| half::f16::from_le_bytes([x[0], x[1]]).to_f32()).collect()
        };
        let (out, channels, kernel) = (70, 3, 2);
        let conv = Layer::Conv2d { out, channels, kernel, stride: 1, extent: Extent::Large };
        for columns in [0..70, 3..38] {
            let got = get(conv, columns.clone(), columns.len() * 12);
            for (place, column) in columns.clone().enumerate() {
                let (panel, within) = (place / PANEL * PANEL, place % PANEL);
                let pitch = PANEL.min(columns.len() - panel);
                for channel in 0..channels {
                    for tap in 0..kernel * kernel {
                        let want = half::f16::from_f32(stored[(column * channels + channel) * kernel * kernel + tap]);
                        let at = panel * 12 + (tap * channels + channel) * pitch + within;
                        assert_eq!(got[at], want.to_f32(), "column {column}");
                    }
                }
            }
        }
        // Hidden columns 1 and 2, then their gates.
        let got = get(Layer::Geglu { out: 6, k: 12 }, 1..3, 4 * 12);
        for k in 0..12 {
            assert_eq!(got[2 * k..][..2], [1, 2].map(|row| stored[row * 12 + k]));
            assert_eq!(got[24 + 2 * k..][..2], [4, 5].map(|row| stored[row * 12 + k]));
        }
    }
}
