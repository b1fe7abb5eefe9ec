//! Weights in the order in which shaders read them, in the type that they are computed with.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;

use super::{Wgpu, bind::Memory, device::PIECE_BYTES};
use crate::{
    backend::{DType, Layer, Values, Weight, WeightData},
    error::{Error, Result},
};

/// A layer's parameters. Products have `[k, out]`, convolutions `[kernel, kernel, channels, out]`, all others the order
/// of the file.
pub struct Packed {
    /// What cannot be bound at once lies in several buffers, each with some of the output's columns.
    pub parts: Vec<Part>,
    /// All of the bias, f32.
    pub bias: Option<Memory>,
}

/// Some columns of a weight. Those of a GEGLU layer have their gates behind them.
pub struct Part {
    /// Which columns of the output.
    pub columns: Range<usize>,
    /// Their weights.
    pub memory: Memory,
}

/// The same in the host's memory, for a weight that visits the device.
pub struct Resting {
    /// The bytes of each part.
    parts: Vec<(Range<usize>, Vec<u8>)>,
    bias: Option<Vec<f32>>,
}

/// What a device packed.
pub fn packed(w: &Weight) -> &Packed {
    match w.data() {
        WeightData::Gpu(data) => data.downcast_ref(),
        _ => None,
    }
    .expect("tensor/ops.rs compares devices: a weight is in the memory of the device that it reaches")
}

/// What a device packed to rest.
pub fn resting(w: &Weight) -> &Resting {
    match w.data() {
        WeightData::Gpu(data) => data.downcast_ref(),
        _ => None,
    }
    .expect("what a device fetches is what it packed to rest")
}

/// A number as it is stored.
trait Element: bytemuck::Pod {
    /// `to.len()` elements from `start` on.
    fn read(values: Values, start: usize, to: &mut [Self]) -> Result<()>;
}

impl Element for f32 {
    fn read(values: Values, start: usize, to: &mut [Self]) -> Result<()> {
        let (dtype, bytes) = some(values, start, to.len())?;
        match dtype {
            DType::F32 => bytemuck::cast_slice_mut(to).copy_from_slice(bytes),
            DType::F16 => {
                let halves: Vec<half::f16> =
                    bytes.chunks_exact(2).map(|x| half::f16::from_le_bytes([x[0], x[1]])).collect();
                halves.convert_to_f32_slice(to);
            }
            DType::BF16 => {
                let values = bytes.chunks_exact(2).map(|x| half::bf16::from_le_bytes([x[0], x[1]]).to_f32());
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
            DType::U32 => return Err(Error::input("weights of type u32 are none")),
        }
        Ok(())
    }
}

/// The bits of an f16.
impl Element for u16 {
    fn read(values: Values, start: usize, to: &mut [Self]) -> Result<()> {
        let (dtype, bytes) = some(values, start, to.len())?;
        if dtype == DType::F16 {
            bytemuck::cast_slice_mut(to).copy_from_slice(bytes);
            return Ok(());
        }
        let mut wide = vec![0f32; to.len()];
        f32::read(values, start, &mut wide)?;
        let mut halves = vec![half::f16::ZERO; to.len()];
        halves.convert_from_f32_slice(&wide);
        to.iter_mut().zip(halves).for_each(|(to, half)| *to = half.to_bits());
        Ok(())
    }
}

fn some(values: Values<'_>, start: usize, count: usize) -> Result<(DType, &[u8])> {
    match values {
        Values::Data { dtype, bytes } => Ok((dtype, &bytes[start * dtype.size()..][..count * dtype.size()])),
        Values::ShapeOnly => Err(Error::process("a weight without values cannot be packed for a GPU")),
    }
}

/// Calls `write(first byte, bytes)` with the elements of some columns of a layer's weight in the order in which shaders
/// read them, a piece at a time, each but the last of whole words.
fn in_order<E: Element>(
    layer: Layer,
    columns: &Range<usize>,
    weight: Values,
    mut write: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = size_of::<E>();
    let piece_elements = PIECE_BYTES / size;
    let (out, channels, taps) = match layer {
        Layer::Linear { out, k } | Layer::Geglu { out, k } => (out, k, 1),
        Layer::Conv2d { out, channels, kernel } => (out, channels, kernel * kernel),
        Layer::Norm { .. } | Layer::Embedding { .. } => {
            let elements = layer.elements().0;
            let mut piece = vec![E::zeroed(); piece_elements.min(elements)];
            for start in (0..elements).step_by(piece_elements) {
                let count = piece_elements.min(elements - start);
                E::read(weight, start, &mut piece[..count])?;
                write(start * size, bytemuck::cast_slice(&piece[..count]))?;
            }
            return Ok(());
        }
    };
    let half = out / 2;
    let gates = if matches!(layer, Layer::Geglu { .. }) { half + columns.start..half + columns.end } else { 0..0 };
    let columns: Vec<usize> = columns.clone().chain(gates).collect();
    // From [out, channels, taps] as stored to [taps, channels, columns]. Where a piece of 16-bit numbers would end in the
    // middle of a word, all is one piece.
    let wide = columns.len();
    let ends_whole = (wide * size).is_multiple_of(4);
    let step = if ends_whole { (piece_elements / (wide * taps)).clamp(1, channels) } else { channels };
    let mut row = vec![E::zeroed(); step * taps];
    let mut piece = vec![E::zeroed(); step * taps * wide];
    for first in (0..channels).step_by(step) {
        let count = step.min(channels - first);
        for (place, column) in columns.iter().enumerate() {
            E::read(weight, (column * channels + first) * taps, &mut row[..count * taps])?;
            for (i, value) in row[..count * taps].iter().enumerate() {
                piece[((i % taps) * count + i / taps) * wide + place] = *value;
            }
        }
        let piece: &[u8] = bytemuck::cast_slice(&piece[..taps * count * wide]);
        if count == channels {
            write(0, piece)?;
        } else {
            let bytes = count * wide * size;
            for (tap, slice) in piece.chunks(bytes).enumerate() {
                write((tap * channels + first) * wide * size, slice)?;
            }
        }
    }
    Ok(())
}

fn in_type(
    dtype: DType,
    layer: Layer,
    columns: &Range<usize>,
    weight: Values,
    write: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    match (dtype, layer) {
        (DType::F16, Layer::Linear { .. } | Layer::Geglu { .. } | Layer::Conv2d { .. } | Layer::Embedding { .. }) => {
            in_order::<u16>(layer, columns, weight, write)
        }
        // The scales of norms are f32.
        _ => in_order::<f32>(layer, columns, weight, write),
    }
}

fn bias_values(layer: Layer, bias: Option<Values>) -> Result<Option<Vec<f32>>> {
    let Some(bias) = bias else { return Ok(None) };
    let mut values = vec![0.0; layer.elements().1];
    f32::read(bias, 0, &mut values)?;
    Ok(Some(values))
}

impl Wgpu {
    /// The parts of a layer in `dtype`: the columns of each and its bytes.
    fn split(&self, layer: Layer, dtype: DType) -> Result<Vec<(Range<usize>, usize)>> {
        let elements = layer.elements().0;
        let refused = || {
            Error::input(format!("{layer:?} has {elements} elements in {dtype}"))
                .found(format!("{} goes up to {} bytes for one of its columns", self.class, self.most()))
                .hint("another device for this component")
        };
        if elements >= 1 << 31 {
            return Err(refused());
        }
        // Columns of the output, and the bytes of each with its gate.
        let (columns, column_bytes) = match layer {
            Layer::Linear { out, k } => (out, k * dtype.size()),
            Layer::Geglu { out, k } => (out / 2, 2 * k * dtype.size()),
            Layer::Conv2d { out, channels, kernel } => (out, channels * kernel * kernel * dtype.size()),
            Layer::Norm { channels } => return Ok(vec![(0..channels, channels * DType::F32.size())]),
            // A table is bound in parts of one buffer.
            Layer::Embedding { channels, .. } => return Ok(vec![(0..channels, elements * dtype.size())]),
        };
        let most = self.most().saturating_sub(super::bind::STEP) / column_bytes;
        if most == 0 {
            return Err(refused());
        }
        // Fours of columns are read at once, which begin where eight do in every part.
        let part = |(first, count)| (first..first + count, count * column_bytes);
        Ok(super::bind::parts(columns, most, 8.min(most)).map(part).collect())
    }

    /// Memory with a name.
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

    /// Writes a piece. Of a large weight the driver's copy of each is freed, so that no copy of all of it is made on the
    /// way.
    fn write_piece(&self, to: &Memory, offset: usize, piece: &[u8]) -> Result<()> {
        self.context.write(piece, &to.buffer, offset)?;
        if to.bytes > PIECE_BYTES { self.context.settle() } else { Ok(()) }
    }

    /// From a file's values.
    pub(super) fn packed(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Packed> {
        let part = |(columns, bytes): (Range<usize>, usize)| -> Result<Part> {
            let memory = self.memory(bytes, "weight")?;
            in_type(dtype, layer, &columns, weight, |start, piece| self.write_piece(&memory, start, piece))?;
            Ok(Part { columns, memory })
        };
        let parts = self.split(layer, dtype)?.into_iter().map(part).collect::<Result<_>>()?;
        let bias = bias_values(layer, bias)?;
        let bias = bias.map(|values| self.upload("bias", bytemuck::cast_slice(&values))).transpose()?;
        Ok(Packed { parts, bias })
    }

    /// From a file's values, to the host's memory.
    pub(super) fn rested(&self, layer: Layer, dtype: DType, weight: Values, bias: Option<Values>) -> Result<Resting> {
        let part = |(columns, bytes): (Range<usize>, usize)| -> Result<_> {
            let mut resting = vec![0; bytes];
            in_type(dtype, layer, &columns, weight, |start, piece| {
                resting[start..][..piece.len()].copy_from_slice(piece);
                Ok(())
            })?;
            Ok((columns, resting))
        };
        let parts = self.split(layer, dtype)?.into_iter().map(part).collect::<Result<_>>()?;
        Ok(Resting { parts, bias: bias_values(layer, bias)? })
    }

    /// From the host's memory.
    pub(super) fn fetched(&self, from: &Resting) -> Result<Packed> {
        let part = |(columns, bytes): &(Range<usize>, Vec<u8>)| -> Result<Part> {
            Ok(Part { columns: columns.clone(), memory: self.upload("weight", bytes)? })
        };
        let parts = from.parts.iter().map(part).collect::<Result<_>>()?;
        let bias = from.bias.as_ref().map(|values| self.upload("bias", bytemuck::cast_slice(values))).transpose()?;
        Ok(Packed { parts, bias })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_in_the_order_of_the_product() {
        let (out, channels, kernel) = (6, 3, 2);
        let conv = Layer::Conv2d { out, channels, kernel };
        let geglu = Layer::Geglu { out: 6, k: 12 };
        let stored: Vec<f32> = (0..72).map(|i| i as f32).collect();
        let weight = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&stored) };
        let get = |layer, columns: Range<usize>, wide: usize, k: usize| -> Vec<f32> {
            let mut got = vec![0; wide * k * 2];
            in_type(DType::F16, layer, &columns, weight, |start, piece| {
                got[start..][..piece.len()].copy_from_slice(piece);
                Ok(())
            })
            .unwrap();
            got.chunks_exact(2).map(|x| half::f16::from_le_bytes([x[0], x[1]]).to_f32()).collect()
        };
        for columns in [0..6, 2..5] {
            let got = get(conv, columns.clone(), columns.len(), 12);
            for (place, column) in columns.clone().enumerate() {
                for channel in 0..channels {
                    for tap in 0..kernel * kernel {
                        let want = stored[(column * channels + channel) * kernel * kernel + tap];
                        assert_eq!(got[(tap * channels + channel) * columns.len() + place], want);
                    }
                }
            }
        }
        // Hidden column 1 and 2, then their gates.
        let got = get(geglu, 1..3, 4, 12);
        for k in 0..12 {
            assert_eq!(got[4 * k..][..4], [1, 2, 4, 5].map(|row| stored[row * 12 + k]));
        }
    }
}
