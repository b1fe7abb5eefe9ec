//! Attention with an online softmax. Milakov and Gimelshein 2018; Dao et al. 2022.
//!
//! Queries are in the lanes of vectors: a block of queries is packed once per task, and each key and value is read as a
//! scalar for all of them. So scores, maxima, weights and sums are vectors without a reduction across lanes. Scores
//! exist for one block of queries and [`KEY_BLOCK`] keys at a time. A query's chain depends only on the number of keys
//! and, with a mask, on its position: the blocks begin at multiples of `KEY_BLOCK`, and keys that a mask hides are
//! added as exact zeros.

use std::ops::Range;

use super::{
    cost::{self, KEY_BLOCK},
    memory::{Parts, Scratch},
    simd::{
        Kernel, Path, Simd,
        math::{EXACT, exp2},
    },
    threads::Pool,
};
use crate::backend::params::Attention;

/// The most blocks of queries that one task computes, so that a block of keys is used several times from the near
/// caches.
const MAX_BLOCKS: usize = 4;
/// The bytes of the blocks of one task, unless a single block has more.
const BLOCK_BYTES: usize = 1 << 20;
/// The tasks per thread to aim at.
const TASKS_PER_THREAD: usize = 4;

/// The vectors of queries of a block, at most.
const BLOCK_VECTORS: usize = 3;

/// The elements of a block's queries, sums, largest scores and totals.
fn block_elements(dim: usize, lanes: usize) -> usize {
    (2 * dim + 2) * lanes
}

/// One call: q `[batch, queries, heads * head_dim]`, k and v `[batch, keys, heads * head_dim]`, out as q.
pub struct Call<'a> {
    /// The sizes.
    pub p: Attention,
    /// The queries.
    pub q: &'a [f32],
    /// The keys.
    pub k: &'a [f32],
    /// The values.
    pub v: &'a [f32],
}

impl Call<'_> {
    /// Computes the call and writes all of `out`.
    ///
    /// # Panics
    /// If a slice is shorter than the sizes say, because the unsafe code depends on them.
    pub fn run(&self, path: Path, pool: &Pool, scratch: &mut [f32], out: &mut [f32]) {
        let (heads, queries) = (self.p.heads as usize, self.p.queries as usize);
        let row = self.p.batch as usize * heads * self.p.head_dim as usize;
        assert!(self.q.len().min(out.len()) >= row * queries, "queries and a result of the sizes of the call");
        assert!(self.k.len().min(self.v.len()) >= row * self.p.keys as usize, "keys and values of these sizes");
        let (units, elements) = (self.p.batch as usize * heads, cost::head_elements(&self.p));
        let parts = Parts::new(&mut scratch[..2 * units * elements]);
        pool.run(units, |unit| {
            // SAFETY: each image and head is one task's.
            let (k, v) = unsafe { parts.part(2 * unit * elements, 2 * elements) }.split_at_mut(elements);
            self.gather(self.k, unit / heads, unit % heads, k);
            self.gather(self.v, unit / heads, unit % heads, v);
        });
        let gathered = &scratch[..2 * units * elements];
        let block_queries = BLOCK_VECTORS * path.lanes();
        let block_bytes = 4 * block_elements(self.p.head_dim as usize, block_queries);
        let wanted = units * queries.div_ceil(block_queries) / (TASKS_PER_THREAD * pool.threads());
        let blocks = wanted.min(BLOCK_BYTES / block_bytes).clamp(1, MAX_BLOCKS);
        let task_queries = blocks * block_queries;
        let tasks = queries.div_ceil(task_queries);
        let out = Parts::new(out);
        pool.run(units * tasks, |task| {
            let (unit, first) = (task / tasks, task % tasks * task_queries);
            let (k, v) = gathered[2 * unit * elements..][..2 * elements].split_at(elements);
            path.run(Task {
                call: self,
                out: &out,
                image: unit / heads,
                head: unit % heads,
                first,
                count: task_queries.min(queries - first),
                k,
                v,
            });
        });
    }

    /// Copies one head's rows of an image, `[keys, head_dim]`.
    fn gather(&self, from: &[f32], image: usize, head: usize, to: &mut [f32]) {
        let (keys, dim) = (self.p.keys as usize, self.p.head_dim as usize);
        let width = self.p.heads as usize * dim;
        let rows = from[image * keys * width..].chunks_exact(width);
        for (to, from) in to.chunks_exact_mut(dim).zip(rows) {
            to.copy_from_slice(&from[head * dim..][..dim]);
        }
    }
}

/// Some queries of one image and head.
struct Task<'a> {
    call: &'a Call<'a>,
    out: &'a Parts<'a, f32>,
    image: usize,
    head: usize,
    first: usize,
    count: usize,
    /// Keys and values, `[keys, head_dim]`.
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: inside `Kernel::run`. M is such that three vectors for each of M rows fit into the registers.
        unsafe {
            match S::ROWS {
                12 => self.blocks::<S, 8>(),
                6 => self.blocks::<S, 4>(),
                _ => self.blocks::<S, 2>(),
            }
        }
    }
}

impl Task<'_> {
    /// Computes all blocks, for M keys or M channels at a time.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    unsafe fn blocks<S: Simd, const M: usize>(&self) {
        let p = &self.call.p;
        let (dim, lanes) = (p.head_dim as usize, BLOCK_VECTORS * S::LANES);
        let block_elements = block_elements(dim, lanes);
        let elements = self.count.div_ceil(lanes) * block_elements;
        let mut scratch = Scratch::take(elements + KEY_BLOCK * lanes);
        let (states, scores) = scratch.split_at_mut(elements);
        for (block, state) in states.chunks_exact_mut(block_elements).enumerate() {
            let first = block * lanes;
            self.pack_queries(first, lanes.min(self.count - first), lanes, &mut state[..dim * lanes]);
            state[dim * lanes..].fill(0.0);
            state[2 * dim * lanes..][..lanes].fill(f32::NEG_INFINITY);
        }
        // No query sees keys after the last query's own.
        let keys = if p.causal == 1 { (p.keys as usize).min(self.first + self.count) } else { p.keys as usize };
        for start in (0..keys).step_by(KEY_BLOCK) {
            let keys = start..keys.min(start + KEY_BLOCK);
            for (block, state) in states.chunks_exact_mut(block_elements).enumerate() {
                let first = block * lanes;
                let (queries, rest) = state.split_at_mut(dim * lanes);
                let (sums, rest) = rest.split_at_mut(dim * lanes);
                let (largest, totals) = rest.split_at_mut(lanes);
                let block = Block { first, queries, sums, largest, totals };
                // SAFETY: inside `Kernel::run`; the parts of the state have rows of `BLOCK_VECTORS` vectors, of which
                // the last block may use fewer.
                unsafe {
                    match (self.count - first).div_ceil(S::LANES) {
                        1 => self.add_keys::<S, M, 1>(keys.clone(), block, scores),
                        2 => self.add_keys::<S, M, 2>(keys.clone(), block, scores),
                        _ => self.add_keys::<S, M, BLOCK_VECTORS>(keys.clone(), block, scores),
                    }
                }
            }
        }
        for (block, state) in states.chunks_exact_mut(block_elements).enumerate() {
            let (sums, totals) = state[dim * lanes..].split_at_mut((dim + 1) * lanes);
            for sums in sums.chunks_exact_mut(lanes) {
                for (sum, total) in sums.chunks_exact_mut(S::LANES).zip(totals.chunks_exact(S::LANES)) {
                    // SAFETY: inside `Kernel::run`.
                    unsafe { S::store(S::div(S::load(sum.as_ptr()), S::load(total.as_ptr())), sum.as_mut_ptr()) }
                }
            }
            self.write(block * lanes, lanes.min(self.count - block * lanes), lanes, sums);
        }
    }

    /// Adds some keys to the sums of one block, which has N vectors of queries.
    ///
    /// # Safety
    /// As [`Simd`]'s; `scores` has N vectors for each key.
    #[inline(always)]
    unsafe fn add_keys<S: Simd, const M: usize, const N: usize>(
        &self,
        keys: Range<usize>,
        block: Block,
        scores: &mut [f32],
    ) {
        let Block { first, queries, sums, largest, totals } = block;
        let (dim, lanes) = (self.call.p.head_dim as usize, N * S::LANES);
        let scores = &mut scores[..keys.len() * lanes];
        let hidden = |key: usize| match self.call.p.causal {
            1 => (keys.start + key).saturating_sub(self.first + first).min(lanes),
            _ => 0,
        };
        let gathered = keys.start * dim..keys.end * dim;
        let (k, v) = (self.k[gathered.clone()].as_ptr(), self.v[gathered].as_ptr());
        // SAFETY: the caller's contract; queries and sums have `dim` rows.
        unsafe {
            for key in (0..keys.len()).step_by(M) {
                let to = scores[key * lanes..].as_mut_ptr();
                let rows = Rows { first: k.add(key * dim), between: dim, step: 1 };
                let vectors = Vectors { first: queries.as_ptr(), between: BLOCK_VECTORS * S::LANES };
                multiply::<S, M, N>(rows, M.min(keys.len() - key), dim, vectors, None, to, lanes);
            }
            let mut new = [S::zero(); N];
            for (j, new) in new.iter_mut().enumerate() {
                *new = S::load(largest[j * S::LANES..].as_ptr());
            }
            for (key, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                scores[..hidden(key)].fill(f32::NEG_INFINITY);
                for (j, new) in new.iter_mut().enumerate() {
                    *new = S::max(*new, S::load(scores[j * S::LANES..].as_ptr()));
                }
            }
            let mut total = [S::zero(); N];
            for (key, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                for (j, new) in new.iter().enumerate() {
                    let score = scores[j * S::LANES..].as_mut_ptr();
                    S::store(exp2::<S, _>(S::sub(S::load(score), *new), EXACT), score);
                }
                scores[..hidden(key)].fill(0.0);
                for (j, total) in total.iter_mut().enumerate() {
                    *total = S::add(*total, S::load(scores[j * S::LANES..].as_ptr()));
                }
            }
            let mut factors = [S::zero(); N];
            for (j, factor) in factors.iter_mut().enumerate() {
                let (old, sum) = (largest[j * S::LANES..].as_mut_ptr(), totals[j * S::LANES..].as_mut_ptr());
                *factor = exp2::<S, _>(S::sub(S::load(old), new[j]), EXACT);
                S::store(S::add(S::mul(S::load(sum), *factor), total[j]), sum);
                S::store(new[j], old);
            }
            for channel in (0..dim).step_by(M) {
                let to = sums[channel * BLOCK_VECTORS * S::LANES..].as_mut_ptr();
                let rows = Rows { first: v.add(channel), between: 1, step: dim };
                let vectors = Vectors { first: scores.as_ptr(), between: lanes };
                let (channels, between) = (M.min(dim - channel), BLOCK_VECTORS * S::LANES);
                multiply::<S, M, N>(rows, channels, keys.len(), vectors, Some(&factors), to, between);
            }
        }
    }

    /// The position of query `i` of this task in q and in the output.
    fn row(&self, i: usize) -> usize {
        let p = &self.call.p;
        let dim = p.head_dim as usize;
        (self.image * p.queries as usize + self.first + i) * p.heads as usize * dim + self.head * dim
    }

    /// Packs `count` queries from `first` on, as `[head_dim, lanes]`, multiplied by the scale and by log2 e, because
    /// weights are powers of two. Lanes without a query are zero.
    fn pack_queries(&self, first: usize, count: usize, lanes: usize, to: &mut [f32]) {
        let dim = self.call.p.head_dim as usize;
        let scale = self.call.p.scale * std::f32::consts::LOG2_E;
        to.fill(0.0);
        for i in 0..count {
            let to = to[i..].iter_mut().step_by(lanes);
            for (to, &from) in to.zip(&self.call.q[self.row(first + i)..][..dim]) {
                *to = scale * from;
            }
        }
    }

    /// Writes the results of `count` queries from `first` on, `[head_dim, lanes]`, to their rows of the output.
    fn write(&self, first: usize, count: usize, lanes: usize, results: &[f32]) {
        let dim = self.call.p.head_dim as usize;
        for i in 0..count {
            // SAFETY: this head of these rows is this task's alone.
            let to = unsafe { self.out.part(self.row(first + i), dim) };
            to.iter_mut().zip(results[i..].iter().step_by(lanes)).for_each(|(to, &from)| *to = from);
        }
    }
}

/// A block of queries in the lanes of vectors: `queries` and `sums` are `[head_dim, lanes]`, the others `[lanes]`.
struct Block<'a> {
    /// The first query, counted from that of the task.
    first: usize,
    queries: &'a [f32],
    sums: &'a mut [f32],
    /// The largest score so far.
    largest: &'a mut [f32],
    /// The sum of the weights so far.
    totals: &'a mut [f32],
}

/// Vectors with `between` elements from one row of them to the next.
#[derive(Clone, Copy)]
struct Vectors {
    first: *const f32,
    between: usize,
}

/// Rows of scalars: element `i` of row `r` is at `first + r * between + i * step`.
#[derive(Clone, Copy)]
struct Rows {
    first: *const f32,
    between: usize,
    step: usize,
}

/// `to = factors * to + rows * vectors`, or `rows * vectors` without factors, for `count <= M` rows of `steps`
/// elements. Each row of `vectors` has N vectors, and so has each row of `to`, with `between` elements from one to the
/// next.
///
/// # Safety
/// As [`Simd`]'s; rows, vectors and `to` are as long as these sizes say.
#[inline(always)]
unsafe fn multiply<S: Simd, const M: usize, const N: usize>(
    rows: Rows,
    count: usize,
    steps: usize,
    vectors: Vectors,
    factors: Option<&[S::V; N]>,
    to: *mut f32,
    between: usize,
) {
    // SAFETY: the caller's contract; tails are fewer rows of the same chains.
    unsafe {
        if count == M {
            return multiply_all::<S, M, N>(rows, steps, vectors, factors, to, between);
        }
        for row in 0..count {
            let rows = Rows { first: rows.first.add(row * rows.between), ..rows };
            multiply_all::<S, 1, N>(rows, steps, vectors, factors, to.add(row * between), between);
        }
    }
}

/// [`multiply`] for exactly M rows.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_all<S: Simd, const M: usize, const N: usize>(
    rows: Rows,
    steps: usize,
    vectors: Vectors,
    factors: Option<&[S::V; N]>,
    to: *mut f32,
    between: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[S::zero(); N]; M];
        if let Some(factors) = factors {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = S::mul(factors[j], S::load(to.add(i * between + j * S::LANES)));
                }
            }
        }
        let (mut scalars, mut row) = (rows.first, vectors.first);
        for _ in 0..steps {
            let mut vector = [S::zero(); N];
            for (j, vector) in vector.iter_mut().enumerate() {
                *vector = S::load(row.add(j * S::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let scalar = S::splat(*scalars.add(i * rows.between));
                for (sum, &vector) in sums.iter_mut().zip(&vector) {
                    *sum = S::mul_add(scalar, vector, *sum);
                }
            }
            scalars = scalars.wrapping_add(rows.step);
            row = row.wrapping_add(vectors.between);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                S::store(sum, to.add(i * between + j * S::LANES));
            }
        }
    }
}
