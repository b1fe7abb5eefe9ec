//! Weights in the order and type of the kernels: products `[out, k]` as stored, convolutions `[out, kernel, kernel,
//! channels]`, norms and biases in f32.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{
    backend::{DType, Layer, Values, cpu::all_cores::LOADING, weight::Stored},
    error::{Error, Result},
};

/// Makes packed elements from a tensor, a piece at a time.
pub struct Packing<'a> {
    from: DType,
    bytes: usize,
    values: Values<'a>,
    to: DType,
    /// The channels and taps of each output of a convolution, if they are transposed.
    window: Option<(usize, usize)>,
}

impl<'a> Packing<'a> {
    /// The packing of a layer's weight.
    pub fn weight(layer: Layer, stored: Stored, values: Values<'a>) -> Result<Self> {
        let window = match layer {
            Layer::Conv2d { channels, kernel, .. } if kernel > 1 => Some((channels, kernel * kernel)),
            _ => None,
        };
        let dtype = stored.precision().dtype().ok_or_else(|| Error::input("a GPU stores no int8 weights"))?;
        Self::new(values, dtype, window)
    }

    /// The packing of a layer's bias.
    pub fn bias(values: Values<'a>) -> Result<Self> {
        Self::new(values, DType::F32, None)
    }

    fn new(values: Values<'a>, to: DType, window: Option<(usize, usize)>) -> Result<Self> {
        let (from, bytes) = values.form()?;
        Ok(Self { from, bytes, values, to, window })
    }

    /// The size of the result, in bytes.
    pub fn packed_bytes(&self) -> usize {
        self.bytes / self.from.size() * self.to.size()
    }

    /// Writes the bytes of the result from byte `start` on, on all cores; both ends are at whole elements.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn piece(&self, start: usize, to: &mut [u8]) -> Result<()> {
        const PART: usize = 1 << 18;
        if to.len() <= PART {
            return self.part(start, to);
        }
        let parts = to.par_chunks_mut(PART).enumerate();
        LOADING.run(|| parts.try_for_each(|(i, to)| self.part(start + i * PART, to)))
    }

    fn part(&self, start: usize, to: &mut [u8]) -> Result<()> {
        let (first, count) = (start / self.to.size(), to.len() / self.to.size());
        let size = self.from.size();
        match self.window {
            None if self.from == self.to => self.values.read(first * size, to)?,
            None => {
                let mut stored = vec![0; count * size];
                self.values.read(first * size, &mut stored)?;
                convert(self.from, &stored, self.to, to);
            }
            Some((channels, taps)) => {
                // Whole outputs, whose taps are adjacent.
                let depth = channels * taps;
                let outputs = first / depth..(first + count).div_ceil(depth);
                let mut stored = vec![0; outputs.len() * depth * size];
                self.values.read(outputs.start * depth * size, &mut stored)?;
                let mut moved = Vec::with_capacity(count * size);
                let mut at = first;
                while at < first + count {
                    // A part of one tap: its channels are `taps` apart in the file.
                    let (out, tap, channel) = (at / (taps * channels), at / channels % taps, at % channels);
                    let run = (channels - channel).min(first + count - at);
                    let source = &stored[(((out - outputs.start) * channels + channel) * taps + tap) * size..];
                    for element in source.chunks(taps * size).take(run) {
                        moved.extend_from_slice(&element[..size]);
                    }
                    at += run;
                }
                convert(self.from, &moved, self.to, to);
            }
        }
        Ok(())
    }
}

/// Converts elements from one type to another, rounded to the nearest.
fn convert(from: DType, bytes: &[u8], to: DType, out: &mut [u8]) {
    if from == to {
        out.copy_from_slice(bytes);
        return;
    }
    // Elements are converted through f32, in blocks that fit into the cache.
    const AT_ONCE: usize = 4096;
    let (mut wide, mut halves, mut brains) = ([0.0; AT_ONCE], [f16::ZERO; AT_ONCE], [bf16::ZERO; AT_ONCE]);
    for (bytes, out) in bytes.chunks(AT_ONCE * from.size()).zip(out.chunks_mut(AT_ONCE * to.size())) {
        let wide = &mut wide[..bytes.len() / from.size()];
        let (halves, brains) = (&mut halves[..wide.len()], &mut brains[..wide.len()]);
        match from {
            DType::F16 => {
                bytemuck::cast_slice_mut::<f16, u8>(halves).copy_from_slice(bytes);
                halves.convert_to_f32_slice(wide);
            }
            DType::BF16 => {
                bytemuck::cast_slice_mut::<bf16, u8>(brains).copy_from_slice(bytes);
                brains.convert_to_f32_slice(wide);
            }
            DType::F32 | DType::U32 => bytemuck::cast_slice_mut::<f32, u8>(wide).copy_from_slice(bytes),
        }
        match to {
            DType::F16 => {
                halves.convert_from_f32_slice(wide);
                out.copy_from_slice(bytemuck::cast_slice(halves));
            }
            DType::BF16 => {
                brains.convert_from_f32_slice(wide);
                out.copy_from_slice(bytemuck::cast_slice(brains));
            }
            DType::F32 | DType::U32 => out.copy_from_slice(bytemuck::cast_slice(wide)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Extent, Form};

    fn data(dtype: DType, bytes: &[u8]) -> Values<'_> {
        Values::Data { dtype, bytes }
    }

    #[test]
    fn a_convolutions_channels_come_last_in_pieces_of_any_size() {
        let (out, channels, kernel) = (5, 7, 3);
        let layer = Layer::Conv2d { out, channels, kernel, stride: 1, extent: Extent::Large };
        let taps = kernel * kernel;
        let stored: Vec<f32> = (0..layer.elements().0).map(|i| i as f32).collect();
        let packing = Packing::weight(layer, Stored::F32, data(DType::F32, bytemuck::cast_slice(&stored))).unwrap();
        for at_once in [1, 3, 7, 63, 100, 1000] {
            let mut got = vec![f32::NAN; stored.len()];
            for start in (0..got.len()).step_by(at_once) {
                let end = (start + at_once).min(got.len());
                packing.piece(4 * start, bytemuck::cast_slice_mut(&mut got[start..end])).unwrap();
            }
            for (i, got) in got.iter().enumerate() {
                let (column, tap, channel) = (i / (taps * channels), i / channels % taps, i % channels);
                assert_eq!(*got, stored[(column * channels + channel) * taps + tap], "{at_once}: element {i}");
            }
        }
    }

    #[test]
    fn types_are_rounded_to_the_nearest_and_norms_stay_wide() {
        let values = [1.0, 1.0 + 1.5 / 1024.0, -70000.0, 0.3];
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let linear = Layer::Linear { out: 2, k: 2 };
        let mut got = [0; 8];
        Packing::weight(linear, Stored::F16, data(DType::F32, bytes)).unwrap().piece(0, &mut got).unwrap();
        assert_eq!(bytemuck::cast_slice::<u8, u16>(&got), values.map(|x| f16::from_f32(x).to_bits()));
        Packing::weight(linear, Stored::BF16, data(DType::F32, bytes)).unwrap().piece(0, &mut got).unwrap();
        assert_eq!(bytemuck::cast_slice::<u8, u16>(&got), values.map(|x| bf16::from_f32(x).to_bits()));
        let Form { layer, stored, .. } = Form::new(Layer::Norm { channels: 4 }, DType::F16, true);
        let norm = Packing::weight(layer, stored, data(DType::BF16, &got)).unwrap();
        assert_eq!(norm.packed_bytes(), 16);
        let mut wide = [0f32; 4];
        norm.piece(0, bytemuck::cast_slice_mut(&mut wide)).unwrap();
        assert_eq!(wide, values.map(|x| bf16::from_f32(x).to_f32()));
    }
}
