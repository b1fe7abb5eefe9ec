//! Weights in panels of words.

use half::bf16;

use super::{Segments, Weight, per_word};
use crate::backend::Stored;

/// Words of a packed weight with `columns` columns, scales and sums included.
pub fn packed_words(stored: Stored, segments: Segments, columns: usize) -> usize {
    let beside = if stored == Stored::Int8 { 1 + segments.count } else { 0 };
    columns * (segments.count * segments.words + beside)
}

/// The parts of a packed weight with `columns` columns.
pub fn parts(stored: Stored, segments: Segments, columns: usize, packed: &[u32]) -> Weight<'_> {
    let (words, rest) = packed.split_at(columns * segments.count * segments.words);
    let (scales, sums) = if stored == Stored::Int8 { rest.split_at(columns) } else { rest.split_at(0) };
    Weight { segments, words, scales: bytemuck::cast_slice(scales), sums: bytemuck::cast_slice(sums) }
}

/// One column of a panel, `[segments, words, width]`.
pub struct Column<'a> {
    /// The words of the panel.
    pub panel: &'a mut [u32],
    /// Columns of the panel.
    pub width: usize,
    /// The column's place in the panel.
    pub at: usize,
}

impl Column<'_> {
    /// Packs the weights of an output channel, `[elements, taps]` as stored, or `[groups, elements]` without taps.
    /// Returns its scale, and calls `sum` with each segment and the sum of its elements, in int8.
    pub fn pack(
        &mut self,
        stored: Stored,
        segments: Segments,
        taps: usize,
        row: &[f32],
        mut sum: impl FnMut(usize, i32),
    ) -> f32 {
        // A NaN becomes a scale that is NaN.
        let most = row.iter().fold(0.0f32, |most, x| if x.abs() <= most { most } else { x.abs() });
        let (scale, inverse) = if most > 0.0 { (most / 127.0, 127.0 / most) } else { (most, 0.0) };
        for segment in 0..segments.count {
            let (first, step) = if taps > 1 { (segment, taps) } else { (segment * segments.elements, 1) };
            let elements = row[first..].iter().step_by(step).take(segments.elements);
            let mut total = 0;
            for (i, &x) in elements.enumerate() {
                let bits = match stored {
                    Stored::Int8 => {
                        let value = (x * inverse).round_ties_even() as i8;
                        total += i32::from(value);
                        u32::from(value as u8)
                    }
                    _ => u32::from(bf16::from_f32(x).to_bits()),
                };
                let (word, part) = (i / per_word(stored), i % per_word(stored));
                self.panel[(segment * segments.words + word) * self.width + self.at] |= bits << (part * 32 / per_word(stored));
            }
            sum(segment, total);
        }
        scale
    }
}
