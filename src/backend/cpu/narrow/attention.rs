//! Attention in int8, with an online softmax in f32. The order of work is that of [`attention`](super::super::attention):
//! queries are in the lanes of vectors.
//!
//! A query is quantised with a scale of its own, and so is each key, and each channel of the values. The weights of a
//! block of keys are quantised against the largest weight so far; the divisor sums them before they are rounded.

use std::ops::Range;

use super::{
    dot::{Dot, Words},
    pack::{larger, quantised, scales},
    unit::{NarrowKernel, Unit},
};
use crate::backend::{
    cpu::{
        memory::{Parts, Scratch},
        simd::{
            Simd,
            math::{COARSE, exp2},
        },
        threads::Pool,
    },
    params::Attention,
};

/// The number of keys in a block, after which sums are rescaled.
const KEY_BLOCK: usize = 128;
/// The vectors of queries of a block.
const BLOCK_VECTORS: usize = 3;
/// The most blocks of queries that one task computes, so that a block of keys is used several times from the near
/// caches.
const MAX_BLOCKS: usize = 4;
/// The tasks per thread to aim at.
const TASKS_PER_THREAD: usize = 4;
/// Keys, or channels, whose sums are computed together.
const TOGETHER: usize = 8;
/// The largest quantised weight.
const MOST_WEIGHT: f32 = 255.0;

/// One call: q `[batch, queries, heads * head_dim]`, k and v `[batch, keys, heads * head_dim]`, out as q.
pub struct Call<'a> {
    /// The sizes; there is no mask.
    pub p: Attention,
    /// The queries.
    pub q: &'a [f32],
    /// The keys.
    pub k: &'a [f32],
    /// The values.
    pub v: &'a [f32],
}

/// The places of one head's quantised keys and values in scratch memory, in elements.
struct Places {
    /// Words of a key.
    key_words: usize,
    /// Words of a channel's values.
    value_words: usize,
    keys: usize,
    dim: usize,
}

impl Places {
    fn new(p: &Attention) -> Self {
        let (keys, dim) = (p.keys as usize, p.head_dim as usize);
        Self { key_words: dim.div_ceil(4), value_words: keys.div_ceil(4), keys, dim }
    }

    fn elements(&self) -> usize {
        self.keys * (self.key_words + 2) + self.dim * (self.value_words + 1)
    }

    fn of<'a>(&self, elements: &'a [f32]) -> Head<'a> {
        let (key_words, rest) = elements.split_at(self.keys * self.key_words);
        let (key_scales, rest) = rest.split_at(self.keys);
        let (offsets, rest) = rest.split_at(self.keys);
        let (value_words, value_scales) = rest.split_at(self.dim * self.value_words);
        Head {
            keys: bytemuck::cast_slice(key_words),
            key_scales,
            offsets: bytemuck::cast_slice(offsets),
            values: bytemuck::cast_slice(value_words),
            value_scales: &value_scales[..self.dim],
        }
    }
}

/// One head's quantised keys and values.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// `[keys, words]`
    keys: &'a [u32],
    /// A scale for each key.
    key_scales: &'a [f32],
    /// What the sums with each key begin with, because queries are stored with an offset of 128.
    offsets: &'a [i32],
    /// Words of four keys each, `[words, head_dim]`.
    values: &'a [u32],
    /// A scale for each channel.
    value_scales: &'a [f32],
}

/// Elements of 4 bytes in which a call's keys and values are quantised.
pub fn elements(p: &Attention) -> usize {
    Places::new(p).elements() * (p.batch * p.heads) as usize
}

impl Call<'_> {
    /// Computes the call and writes all of `out`. `scratch` has the [`elements`] of the call.
    ///
    /// # Panics
    /// If a slice is shorter than the sizes say, because the unsafe code depends on them.
    pub fn run(&self, unit: Unit, pool: &Pool, scratch: &mut [f32], out: &mut [f32]) {
        let (heads, queries, lanes) = (self.p.heads as usize, self.p.queries as usize, unit.path().lanes());
        let row = self.p.batch as usize * heads * self.p.head_dim as usize;
        assert!(self.q.len().min(out.len()) >= row * queries, "queries and a result of the sizes of the call");
        assert!(self.k.len().min(self.v.len()) >= row * self.p.keys as usize, "keys and values of these sizes");
        assert!(unit.is_int8() && self.p.causal == 0, "int8 without a mask");
        let (units, places) = (self.p.batch as usize * heads, Places::new(&self.p));
        let head_elements = places.elements();
        let parts = Parts::new(&mut scratch[..units * head_elements]);
        pool.run(units, |head| {
            // SAFETY: each image and head is one task's.
            let to = unsafe { parts.part(head * head_elements, head_elements) };
            self.quantise(&places, head / heads, head % heads, to);
        });
        let scratch = &scratch[..units * head_elements];
        let block_queries = BLOCK_VECTORS * lanes;
        let wanted = units * queries.div_ceil(block_queries) / (TASKS_PER_THREAD * pool.threads());
        let task_queries = wanted.clamp(1, MAX_BLOCKS) * block_queries;
        let tasks = queries.div_ceil(task_queries);
        let out = Parts::new(out);
        pool.run(units * tasks, |task| {
            let (head, first) = (task / tasks, task % tasks * task_queries);
            unit.run(Task {
                call: self,
                out: &out,
                image: head / heads,
                head: head % heads,
                queries: first..queries.min(first + task_queries),
                key_words: places.key_words,
                of: places.of(&scratch[head * head_elements..][..head_elements]),
            });
        });
    }

    /// Quantises one head's keys and values of an image.
    fn quantise(&self, places: &Places, image: usize, head: usize, to: &mut [f32]) {
        let &Places { key_words, value_words, keys, dim } = places;
        let width = self.p.heads as usize * dim;
        let at = |key: usize| (image * keys + key) * width + head * dim;
        let (words, rest) = to.split_at_mut(keys * key_words);
        let (key_scales, rest) = rest.split_at_mut(keys);
        let (offsets, rest) = rest.split_at_mut(keys);
        let (values, value_scales) = rest.split_at_mut(dim * value_words);
        let words: &mut [u32] = bytemuck::cast_slice_mut(words);
        let offsets: &mut [i32] = bytemuck::cast_slice_mut(offsets);
        for (key, words) in words.chunks_exact_mut(key_words).enumerate() {
            let row = &self.k[at(key)..][..dim];
            let (scale, inverse) = scales(row.iter().copied().fold(0.0, larger));
            key_scales[key] = scale;
            let bytes: &mut [i8] = bytemuck::cast_slice_mut(words);
            let mut sum = 0;
            for (byte, &x) in bytes.iter_mut().zip(row) {
                *byte = quantised(x, inverse);
                sum += i32::from(*byte);
            }
            bytes[dim..].fill(0);
            offsets[key] = -128 * sum;
        }
        let values: &mut [i8] = bytemuck::cast_slice_mut(values);
        values.fill(0);
        value_scales.fill(0.0);
        for key in 0..keys {
            for (most, &x) in value_scales.iter_mut().zip(&self.v[at(key)..][..dim]) {
                *most = larger(*most, x);
            }
        }
        let mut inverses = vec![0.0; dim];
        for (scale, inverse) in value_scales.iter_mut().zip(&mut inverses) {
            (*scale, *inverse) = scales(*scale);
        }
        for key in 0..keys {
            let words = values[key / 4 * dim * 4..][..4 * dim].chunks_exact_mut(4);
            for ((word, &x), &inverse) in words.zip(&self.v[at(key)..][..dim]).zip(&inverses) {
                word[key % 4] = quantised(x, inverse);
            }
        }
    }
}

/// Some queries of one image and head.
struct Task<'a> {
    call: &'a Call<'a>,
    out: &'a Parts<'a, f32>,
    image: usize,
    head: usize,
    queries: Range<usize>,
    key_words: usize,
    of: Head<'a>,
}

impl NarrowKernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, D: Dot>(self) {
        let (dim, lanes) = (self.call.p.head_dim as usize, BLOCK_VECTORS * S::LANES);
        let block_elements = (self.key_words + dim + 3) * lanes;
        let blocks = self.queries.len().div_ceil(lanes);
        let mut scratch = Scratch::take(blocks * block_elements + (KEY_BLOCK + KEY_BLOCK / 4 + TOGETHER) * lanes);
        let (states, shared) = scratch.split_at_mut(blocks * block_elements);
        for (block, state) in states.chunks_exact_mut(block_elements).enumerate() {
            let first = self.queries.start + block * lanes;
            self.pack_queries(first..self.queries.end.min(first + lanes), lanes, state);
        }
        let keys = self.call.p.keys as usize;
        for start in (0..keys).step_by(KEY_BLOCK) {
            for state in states.chunks_exact_mut(block_elements) {
                // SAFETY: inside `NarrowKernel::run`; the parts have the sizes that the method asks for.
                unsafe { self.add_keys::<S, D::Words>(start..keys.min(start + KEY_BLOCK), state, shared) }
            }
        }
        for (block, state) in states.chunks_exact_mut(block_elements).enumerate() {
            let first = self.queries.start + block * lanes;
            self.write(first..self.queries.end.min(first + lanes), lanes, state);
        }
    }
}

impl Task<'_> {
    /// The parts of a block's state: words of the queries, sums, and for each query its scale, the largest score and the
    /// sum of the weights.
    #[inline(always)]
    fn parts<'s>(&self, state: &'s mut [f32], lanes: usize) -> [&'s mut [f32]; 5] {
        let (words, rest) = state.split_at_mut(self.key_words * lanes);
        let (sums, rest) = rest.split_at_mut(self.call.p.head_dim as usize * lanes);
        let (factors, rest) = rest.split_at_mut(lanes);
        let (largest, totals) = rest.split_at_mut(lanes);
        [words, sums, factors, largest, totals]
    }

    /// The position of a query in q and in the output.
    fn row(&self, query: usize) -> usize {
        let p = &self.call.p;
        let dim = p.head_dim as usize;
        (self.image * p.queries as usize + query) * p.heads as usize * dim + self.head * dim
    }

    /// Quantises queries to bytes with an offset of 128, as words `[words, lanes]`, and clears the sums. Lanes without a
    /// query are zero.
    fn pack_queries(&self, queries: Range<usize>, lanes: usize, state: &mut [f32]) {
        let dim = self.call.p.head_dim as usize;
        let [words, sums, factors, largest, totals] = self.parts(state, lanes);
        let words: &mut [u32] = bytemuck::cast_slice_mut(words);
        words.fill(0x8080_8080);
        sums.fill(0.0);
        factors.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        for (lane, query) in queries.enumerate() {
            let row = &self.call.q[self.row(query)..][..dim];
            let (scale, inverse) = scales(row.iter().copied().fold(0.0, larger));
            // Scores are exponents of two.
            factors[lane] = scale * self.call.p.scale * std::f32::consts::LOG2_E;
            for (i, elements) in row.chunks(4).enumerate() {
                let mut bytes = [128u8; 4];
                for (byte, &x) in bytes.iter_mut().zip(elements) {
                    *byte = (i16::from(quantised(x, inverse)) + 128) as u8;
                }
                words[i * lanes + lane] = u32::from_le_bytes(bytes);
            }
        }
    }

    /// Adds at most [`KEY_BLOCK`] keys to the sums of one block.
    ///
    /// # Safety
    /// As [`Words`]'s; `shared` has as many rows of a block's vectors as keys, words of four of them, and
    /// [`TOGETHER`].
    #[inline(always)]
    unsafe fn add_keys<S: Simd, W: Words>(&self, keys: Range<usize>, state: &mut [f32], shared: &mut [f32]) {
        let (dim, lanes) = (self.call.p.head_dim as usize, BLOCK_VECTORS * S::LANES);
        let [queries, sums, factors, largest, totals] = self.parts(state, lanes);
        let (scores, rest) = shared.split_at_mut(KEY_BLOCK * lanes);
        let (weights, integers) = rest.split_at_mut(KEY_BLOCK / 4 * lanes);
        let value_words = keys.len().div_ceil(4);
        // SAFETY: the caller's contract: every pointer stays in its part.
        unsafe {
            let mut new = [S::zero(); BLOCK_VECTORS];
            let mut scale = [S::zero(); BLOCK_VECTORS];
            for j in 0..BLOCK_VECTORS {
                new[j] = S::load(largest[j * S::LANES..].as_ptr());
                scale[j] = S::load(factors[j * S::LANES..].as_ptr());
            }
            for first in (0..keys.len()).step_by(TOGETHER) {
                let count = TOGETHER.min(keys.len() - first);
                let words = self.of.keys[(keys.start + first) * self.key_words..].as_ptr();
                let offsets = &self.of.offsets[keys.start + first..][..count];
                let to = integers.as_mut_ptr();
                let rows = Rows { words, count, between: self.key_words, step: 1, steps: self.key_words };
                multiply::<W>(rows, Some(offsets), queries.as_ptr().cast(), to);
                for i in 0..count {
                    let key_scale = S::splat(self.of.key_scales[keys.start + first + i]);
                    for j in 0..BLOCK_VECTORS {
                        let at = j * S::LANES;
                        let integer = S::from_integers(to.add(i * lanes + at).cast());
                        let score = S::mul(S::mul(integer, key_scale), scale[j]);
                        new[j] = S::max(new[j], score);
                        S::store(score, scores[(first + i) * lanes + at..].as_mut_ptr());
                    }
                }
            }
            // Keys that complete the last word have no weight.
            scores[keys.len() * lanes..value_words * 4 * lanes].fill(f32::NEG_INFINITY);
            let mut factor = [S::zero(); BLOCK_VECTORS];
            for j in 0..BLOCK_VECTORS {
                let at = j * S::LANES;
                let mut total = S::zero();
                for word in 0..value_words {
                    let mut four = [S::zero(); 4];
                    for (i, weight) in four.iter_mut().enumerate() {
                        let score = S::load(scores[(4 * word + i) * lanes + at..].as_ptr());
                        *weight = exp2::<S, _>(S::sub(score, new[j]), COARSE);
                        total = S::add(total, *weight);
                    }
                    let bytes = four.map(|weight| S::mul(weight, S::splat(MOST_WEIGHT)));
                    S::store_words(bytes, weights[word * lanes + at..].as_mut_ptr().cast());
                }
                factor[j] = exp2::<S, _>(S::sub(S::load(largest[at..].as_ptr()), new[j]), COARSE);
                let old = S::mul(S::load(totals[at..].as_ptr()), factor[j]);
                S::store(S::add(old, total), totals[at..].as_mut_ptr());
                S::store(new[j], largest[at..].as_mut_ptr());
            }
            for first in (0..dim).step_by(TOGETHER) {
                let count = TOGETHER.min(dim - first);
                let words = self.of.values[keys.start / 4 * dim + first..].as_ptr();
                let to = integers.as_mut_ptr();
                let rows = Rows { words, count, between: 1, step: dim, steps: value_words };
                multiply::<W>(rows, None, weights.as_ptr().cast(), to);
                for i in 0..count {
                    for (j, factor) in factor.iter().enumerate() {
                        let at = (first + i) * lanes + j * S::LANES;
                        let integer = S::from_integers(to.add(i * lanes + j * S::LANES).cast());
                        let old = S::mul(S::load(sums[at..].as_ptr()), *factor);
                        S::store(S::add(old, integer), sums[at..].as_mut_ptr());
                    }
                }
            }
        }
    }

    /// Writes the results of some queries to their rows of the output.
    fn write(&self, queries: Range<usize>, lanes: usize, state: &mut [f32]) {
        let dim = self.call.p.head_dim as usize;
        let [_, sums, _, _, totals] = self.parts(state, lanes);
        for (lane, query) in queries.enumerate() {
            // SAFETY: this head of these rows is this task's alone.
            let to = unsafe { self.out.part(self.row(query), dim) };
            let inverse = 1.0 / (MOST_WEIGHT * totals[lane]);
            for ((to, sum), scale) in to.iter_mut().zip(sums[lane..].iter().step_by(lanes)).zip(self.of.value_scales) {
                *to = sum * scale * inverse;
            }
        }
    }
}

/// Rows of words that are multiplied with vectors: word `i` of row `r` is at `words + r * between + i * step`.
struct Rows {
    words: *const u32,
    count: usize,
    between: usize,
    step: usize,
    steps: usize,
}

/// The sums of rows of int8 with the vectors of bytes of a block, beginning with an offset for each row.
///
/// # Safety
/// As [`Words`]'s; rows, vectors and `to` are as long as these sizes say.
#[inline(always)]
unsafe fn multiply<W: Words>(rows: Rows, offsets: Option<&[i32]>, vectors: *const u32, to: *mut f32) {
    let offset = |row: usize| offsets.map_or(0, |offsets| offsets[row]);
    // SAFETY: the caller's contract.
    unsafe {
        if rows.count == TOGETHER {
            return multiply_rows::<W, TOGETHER>(rows, std::array::from_fn(offset), vectors, to);
        }
        for row in 0..rows.count {
            let one = Rows { words: rows.words.add(row * rows.between), ..rows };
            multiply_rows::<W, 1>(one, [offset(row)], vectors, to.add(row * BLOCK_VECTORS * W::LANES));
        }
    }
}

/// [`multiply`] for exactly M rows.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_rows<W: Words, const M: usize>(
    rows: Rows,
    offsets: [i32; M],
    mut vectors: *const u32,
    to: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[W::zero(); BLOCK_VECTORS]; M];
        for (sums, offset) in sums.iter_mut().zip(offsets) {
            *sums = [W::splat(offset); BLOCK_VECTORS];
        }
        let mut words = rows.words;
        for _ in 0..rows.steps {
            let mut vector = [W::row(0); BLOCK_VECTORS];
            for (j, vector) in vector.iter_mut().enumerate() {
                *vector = W::rows(vectors.add(j * W::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let column = W::column_of(*words.wrapping_add(i * rows.between));
                for (sum, &vector) in sums.iter_mut().zip(&vector) {
                    *sum = W::dot(*sum, vector, column);
                }
            }
            words = words.wrapping_add(rows.step);
            vectors = vectors.wrapping_add(BLOCK_VECTORS * W::LANES);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                W::store_sum(sum, to.add((i * BLOCK_VECTORS + j) * W::LANES));
            }
        }
    }
}
