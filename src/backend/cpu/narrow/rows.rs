//! The converted rows of an op's input.

use super::segments::{Segments, groups};
use crate::backend::{
    Form, Stored,
    cpu::{
        memory::Parts,
        simd::{Kernel, Path, Simd},
        threads::Pool,
    },
};

/// Rows of words in scratch memory. Each row has one or more groups of elements; in int8, each group has a scale and a
/// zero point: an element is `scale * (byte - zero)`.
pub struct Rows<'a> {
    /// The groups of a row.
    pub segments: Segments,
    words: &'a [u32],
    scales: &'a [f32],
    zeros: &'a [i32],
}

/// Words of memory in which a product's input of `rows` rows is converted.
pub fn converted_words(form: Form, rows: usize) -> usize {
    Rows::elements(form.stored, groups(form), rows)
}

/// The rows that one task converts.
const TASK_ROWS: usize = 16;

impl<'a> Rows<'a> {
    /// Elements of scratch memory that `rows` rows need, 4 bytes each.
    pub fn elements(stored: Stored, segments: Segments, rows: usize) -> usize {
        let parts = rows * segments.count;
        parts * segments.words + if stored == Stored::Int8 { 2 * parts } else { 0 }
    }

    /// Converts x, `[rows, elements]`, into `scratch`.
    ///
    /// # Panics
    /// If a slice is shorter than the sizes say.
    pub fn convert(
        stored: Stored,
        segments: Segments,
        x: &[f32],
        path: Path,
        pool: &Pool,
        scratch: &'a mut [f32],
    ) -> Self {
        let width = segments.count * segments.elements;
        let rows = x.len() / width;
        let parts = rows * segments.count;
        let (words, rest) = scratch.split_at_mut(parts * segments.words);
        let words: &mut [u32] = bytemuck::cast_slice_mut(words);
        let (scales, zeros) =
            if stored == Stored::Int8 { rest[..2 * parts].split_at_mut(parts) } else { rest.split_at_mut(0) };
        let zeros: &mut [i32] = bytemuck::cast_slice_mut(zeros);
        {
            let task_parts = TASK_ROWS * segments.count;
            let (words, scales, zeros) = (Parts::new(words), Parts::new(scales), Parts::new(zeros));
            pool.run(rows.div_ceil(TASK_ROWS), |task| {
                let first = task * task_parts;
                let count = task_parts.min(parts - first);
                let x = &x[first * segments.elements..][..count * segments.elements];
                // SAFETY: each part is one task's.
                let words = unsafe { words.part(first * segments.words, count * segments.words) };
                if stored == Stored::Int8 {
                    // SAFETY: as above.
                    let (scales, zeros) = unsafe { (scales.part(first, count), zeros.part(first, count)) };
                    path.run(Quantise { x, segments, words, scales, zeros });
                } else {
                    path.run(Round { x, segments, words });
                }
            });
        }
        Self { segments, words, scales, zeros }
    }

    /// The words of a group, its scale and its zero point.
    #[inline(always)]
    pub fn part(&self, part: usize) -> (*const u32, f32, i32) {
        let words = self.words[part * self.segments.words..][..self.segments.words].as_ptr();
        match self.scales.get(part) {
            Some(&scale) => (words, scale, self.zeros[part]),
            None => (words, 1.0, 0),
        }
    }
}

/// Quantises groups of elements to bytes from 0 to 255, so that zero is exact. A group with an infinite or invalid
/// element gets a scale that is NaN.
struct Quantise<'a> {
    x: &'a [f32],
    segments: Segments,
    words: &'a mut [u32],
    scales: &'a mut [f32],
    zeros: &'a mut [i32],
}

impl Kernel for Quantise<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let elements = self.segments.elements;
        let whole = elements / S::LANES * S::LANES;
        let parts = self.x.chunks_exact(elements).zip(self.words.chunks_exact_mut(self.segments.words));
        for ((x, words), (scale, zero)) in parts.zip(self.scales.iter_mut().zip(self.zeros.iter_mut())) {
            // SAFETY: inside `Kernel::run`; reads and writes are within the slices.
            unsafe {
                let (mut low, mut high, mut invalid) = (S::zero(), S::zero(), S::zero());
                for from in (0..whole).step_by(S::LANES) {
                    let v = S::load(x[from..].as_ptr());
                    (low, high, invalid) = (S::min(v, low), S::max(v, high), S::mul_add(v, S::zero(), invalid));
                }
                if whole < elements {
                    let v = S::load_first(x[whole..].as_ptr(), elements - whole);
                    (low, high, invalid) = (S::min(v, low), S::max(v, high), S::mul_add(v, S::zero(), invalid));
                }
                let (mut lows, mut highs, mut invalids) = ([0f32; 16], [0f32; 16], [0f32; 16]);
                S::store(low, lows.as_mut_ptr());
                S::store(high, highs.as_mut_ptr());
                S::store(invalid, invalids.as_mut_ptr());
                let low = lows.iter().copied().fold(0.0, f32::min);
                let high = highs.iter().copied().fold(0.0, f32::max);
                let range = high - low;
                let inverse = if range > 0.0 { 255.0 / range } else { 0.0 };
                // Without a finite inverse, the largest element is so small that it counts as zero.
                let inverse = if inverse.is_finite() { inverse } else { 0.0 };
                let offset = (-low * inverse).round_ties_even();
                *scale = range / 255.0 + invalids.iter().sum::<f32>();
                *zero = offset as i32;
                let (factor, offset, most) = (S::splat(inverse), S::splat(offset), S::splat(255.0));
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
                let quantised = |v| S::min(most, S::max(S::zero(), S::add(S::round(S::mul(v, factor)), offset)));
                for from in (0..whole).step_by(S::LANES) {
                    S::store_bytes(quantised(S::load(x[from..].as_ptr())), bytes[from..].as_mut_ptr());
                }
                if whole < elements {
                    // Rows of words are whole vectors.
                    let v = S::load_first(x[whole..].as_ptr(), elements - whole);
                    S::store_bytes(quantised(v), bytes[whole..].as_mut_ptr());
                }
                let written = elements.next_multiple_of(S::LANES);
                bytes[written..].fill(0);
            }
        }
    }
}

/// Rounds elements to bf16, to the nearest, ties to even.
struct Round<'a> {
    x: &'a [f32],
    segments: Segments,
    words: &'a mut [u32],
}

impl Kernel for Round<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let elements = self.segments.elements;
        for (x, words) in self.x.chunks_exact(elements).zip(self.words.chunks_exact_mut(self.segments.words)) {
            words.fill(0);
            // In integers, which the compiler vectorises for the path.
            for (word, pair) in words.iter_mut().zip(x.chunks_exact(2)) {
                *word = rounded(pair[0]) >> 16 | rounded(pair[1]) & 0xffff_0000;
            }
            if elements % 2 == 1 {
                words[elements / 2] = rounded(x[elements - 1]) >> 16;
            }
        }
    }
}

/// The bits of an element whose upper half is rounded to bf16. NaN stays NaN.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { bits | 0x0040_0000 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) }
}
