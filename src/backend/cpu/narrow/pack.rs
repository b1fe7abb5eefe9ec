//! Weights in panels of words.

use half::{bf16, slice::HalfFloatSliceExt};

use super::{
    super::simd::{Kernel, Path, Simd},
    segments::{Segments, per_word},
};
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

/// How a layer's weight is packed.
#[derive(Clone, Copy)]
pub struct Packing {
    /// The instruction set.
    pub path: Path,
    /// The type of the elements: int8 or bf16.
    pub stored: Stored,
    /// The division of k.
    pub segments: Segments,
    /// The taps of a window, 1 for linear layers.
    pub taps: usize,
}

impl Packing {
    /// Words of scratch memory for the elements of one output channel.
    pub fn rounded_words(self) -> usize {
        (self.segments.count * self.segments.elements).div_ceil(per_word(self.stored))
    }

    /// Packs the weights of an output channel, `[elements, taps]` as stored or `[groups, elements]` without taps, in
    /// words `[segments, words]` whose padding is zero already. Calls `beside` with the rows and the bits of what
    /// belongs to the column in int8: the scale, and the sum of each segment.
    pub fn row(self, row: &[f32], rounded: &mut [u32], words: &mut [u32], mut beside: impl FnMut(usize, u32)) {
        if self.stored == Stored::Int8 {
            let rounded: &mut [i8] = &mut bytemuck::cast_slice_mut(rounded)[..row.len()];
            beside(0, self.path.run(Quantise { row, to: rounded }).to_bits());
            let placed: &mut [i8] = bytemuck::cast_slice_mut(words);
            self.place(rounded, placed);
            for (segment, elements) in placed.chunks_exact(4 * self.segments.words).enumerate() {
                beside(1 + segment, elements.iter().map(|x| i32::from(*x)).sum::<i32>() as u32);
            }
        } else {
            let rounded: &mut [bf16] = &mut bytemuck::cast_slice_mut(rounded)[..row.len()];
            rounded.convert_from_f32_slice(row);
            self.place(rounded, bytemuck::cast_slice_mut(words));
        }
    }

    /// Puts the elements of an output channel into the order of its words.
    fn place<T: Copy>(self, row: &[T], to: &mut [T]) {
        let Self { segments, taps, .. } = self;
        for (segment, to) in to.chunks_exact_mut(to.len() / segments.count).enumerate() {
            let (first, step) = if taps > 1 { (segment, taps) } else { (segment * segments.elements, 1) };
            for (to, &from) in to.iter_mut().take(segments.elements).zip(row[first..].iter().step_by(step)) {
                *to = from;
            }
        }
    }
}

/// Rounds weights to int8; returns their scale.
struct Quantise<'a> {
    row: &'a [f32],
    to: &'a mut [i8],
}

impl Kernel for Quantise<'_> {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // Magnitudes are in the order of their bits, with NaN above all: a maximum of integers takes one instruction.
        let mut most = 0;
        for x in self.row {
            most = most.max(x.abs().to_bits());
        }
        let (scale, inverse) = scales(f32::from_bits(most));
        for (to, &x) in self.to.iter_mut().zip(self.row) {
            *to = quantised(x, inverse);
        }
        scale
    }
}
