//! Weights in panels of words.

use half::bf16;

use super::segments::{MAX_SEGMENTS, Segments, per_word};
use crate::backend::Stored;

/// The scale of some elements as integers from -127 to 127, and its inverse, from the [`larger`] of all.
pub fn scales(most: f32) -> (f32, f32) {
    if most > 0.0 { (most / 127.0, 127.0 / most) } else { (most, 0.0) }
}

/// An element as an integer, rounded to the nearest, ties to even.
#[inline(always)]
pub fn quantised(x: f32, inverse: f32) -> i8 {
    // The sum's last bits are the integer: without SSE 4.1, rounding is a call of a function.
    const MAGIC: f32 = 12_582_912.0;
    (x * inverse + MAGIC).to_bits() as i8
}

/// The largest magnitude so far; NaN if an element is invalid.
#[inline(always)]
pub fn larger(most: f32, x: f32) -> f32 {
    if most.is_nan() || x.abs() <= most { most } else { x.abs() }
}

/// A packed weight of narrow elements.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// The division of k.
    pub segments: Segments,
    /// Panels of words, `[panels, segments, words, panel]`.
    pub words: &'a [u32],
    /// The scale of each column; empty for bf16.
    pub scales: &'a [f32],
    /// The sum of each column's elements in each segment, `[segments, columns]`; empty for bf16.
    pub sums: &'a [i32],
}

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
    /// Packs the weights of an output channel as int8, `[elements, taps]` as stored, or `[groups, elements]` without
    /// taps. Returns its scale, and calls `sum` with each segment and the sum of its elements.
    pub fn quantise(&mut self, segments: Segments, taps: usize, row: &[f32], mut sum: impl FnMut(usize, i32)) -> f32 {
        let (scale, inverse) = scales(row.iter().copied().fold(0.0, larger));
        let mut sums = [0; MAX_SEGMENTS];
        self.put(Stored::Int8, segments, taps, row, |segment, x| {
            let value = quantised(x, inverse);
            sums[segment] += i32::from(value);
            u32::from(value as u8)
        });
        (0..segments.count).for_each(|segment| sum(segment, sums[segment]));
        scale
    }

    /// As [`Column::quantise`], rounded to bf16.
    pub fn round(&mut self, segments: Segments, taps: usize, row: &[f32]) {
        self.put(Stored::BF16, segments, taps, row, |_, x| u32::from(bf16::from_f32(x).to_bits()));
    }

    /// Writes the bits that `f` returns for each segment and element.
    fn put(
        &mut self,
        stored: Stored,
        segments: Segments,
        taps: usize,
        row: &[f32],
        mut f: impl FnMut(usize, f32) -> u32,
    ) {
        let in_word = per_word(stored);
        for segment in 0..segments.count {
            let (first, step) = if taps > 1 { (segment, taps) } else { (segment * segments.elements, 1) };
            let words = &mut self.panel[segment * segments.words * self.width..];
            for (i, &x) in row[first..].iter().step_by(step).take(segments.elements).enumerate() {
                words[i / in_word * self.width + self.at] |= f(segment, x) << (i % in_word * 32 / in_word);
            }
        }
    }
}
