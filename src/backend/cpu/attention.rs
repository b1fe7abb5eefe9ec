//! Attention with an online softmax. Milakov and Gimelshein 2018; Dao et al. 2022.
//!
//! Keys and values are packed once per call into the panels of the matrix micro-kernel, which then computes scores and
//! sums. Scores exist for a few rows and [`KEY_BLOCK`] keys at a time. A row's chain depends only on the number of
//! keys: the blocks begin at multiples of `KEY_BLOCK`, and the keys that a mask hides are a suffix of a block, added as
//! exact zeros.

use std::cell::Cell;

use super::{
    cost::{self, KEY_BLOCK},
    gemm::{accumulate, load_up_to, store_up_to},
    memory::Parts,
    simd::{Kernel, Path, Simd, math},
    threads::Pool,
};
use crate::backend::params::Attention;

/// Tiles of rows that one task computes, so that a block of keys is used several times from the near caches.
const TILES: usize = 4;

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
        let (keys, values) = cost::packed_keys_and_values(path, &self.p);
        let units = self.p.batch as usize * heads;
        let parts = Parts::new(&mut scratch[..units * (keys + values)]);
        pool.run(units, |unit| {
            // SAFETY: each image and head is one task's.
            let (k, v) = unsafe { parts.part(unit * (keys + values), keys + values) }.split_at_mut(keys);
            self.pack(path.panel(), unit / heads, unit % heads, k, v);
        });
        let packed = &scratch[..units * (keys + values)];
        let rows = TILES * path.rows();
        let tasks = queries.div_ceil(rows);
        let out = Parts::new(out);
        pool.run(units * tasks, |task| {
            let (unit, first) = (task / tasks, task % tasks * rows);
            let (k, v) = packed[unit * (keys + values)..][..keys + values].split_at(keys);
            path.run(Task {
                call: self,
                out: &out,
                image: unit / heads,
                head: unit % heads,
                first,
                count: rows.min(queries - first),
                k,
                v,
            });
        });
    }

    /// Keys as `[panels, head_dim, panel]`, values as `[panels of head_dim, keys, panel]`, padded with zeros.
    fn pack(&self, panel: usize, image: usize, head: usize, to_k: &mut [f32], to_v: &mut [f32]) {
        let (keys, dim) = (self.p.keys as usize, self.p.head_dim as usize);
        let width = self.p.heads as usize * dim;
        let row = |x: &'_ [f32], key: usize| -> usize {
            debug_assert!(x.len() >= (image * keys + key + 1) * width);
            (image * keys + key) * width + head * dim
        };
        for (i, to) in to_k.chunks_exact_mut(dim * panel).enumerate() {
            for column in 0..panel {
                let key = i * panel + column;
                if key < keys {
                    let from = &self.k[row(self.k, key)..][..dim];
                    to[column..].iter_mut().step_by(panel).zip(from).for_each(|(to, &from)| *to = from);
                } else {
                    to[column..].iter_mut().step_by(panel).for_each(|to| *to = 0.0);
                }
            }
        }
        let padded = keys.next_multiple_of(panel);
        for (i, to) in to_v.chunks_exact_mut(padded * panel).enumerate() {
            let count = panel.min(dim - i * panel);
            for (key, to) in to.chunks_exact_mut(panel).enumerate() {
                to.fill(0.0);
                if key < keys {
                    to[..count].copy_from_slice(&self.v[row(self.v, key) + i * panel..][..count]);
                }
            }
        }
    }
}

/// Some rows of one image and head.
struct Task<'a> {
    call: &'a Call<'a>,
    out: &'a Parts<'a, f32>,
    image: usize,
    head: usize,
    first: usize,
    count: usize,
    k: &'a [f32],
    v: &'a [f32],
}

thread_local!(static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: inside `Kernel::run`.
        unsafe {
            match S::ROWS {
                12 => self.rows::<S, 12>(),
                6 => self.rows::<S, 6>(),
                _ => self.rows::<S, 2>(),
            }
        }
    }
}

impl Task<'_> {
    /// # Safety
    /// As [`Simd`]'s, with `M == S::ROWS`.
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize>(&self) {
        let p = &self.call.p;
        let (keys, dim) = (p.keys as usize, p.head_dim as usize);
        let (width, panel) = (p.heads as usize * dim, 2 * S::LANES);
        let (padded_keys, padded_dim) = (keys.next_multiple_of(panel), dim.next_multiple_of(panel));
        let q = |row: usize| {
            let row = self.first + row.min(self.count - 1);
            self.call.q[(self.image * p.queries as usize + row) * width + self.head * dim..][..dim].as_ptr()
        };
        // The scratch is taken out and put back, because a closure would be compiled without the path's features.
        let mut scratch = SCRATCH.take();
        scratch.resize(TILES * M * (KEY_BLOCK + padded_dim), 0.0);
        let (scores, sums) = scratch.split_at_mut(TILES * M * KEY_BLOCK);
        sums.fill(0.0);
        let mut largest = [[f32::NEG_INFINITY; M]; TILES];
        let mut total = [[0f32; M]; TILES];
        let tiles = self.count.div_ceil(M);
        for block in (0..keys).step_by(KEY_BLOCK) {
            let count = KEY_BLOCK.min(padded_keys - block);
            for tile in 0..tiles {
                let scores = &mut scores[tile * M * KEY_BLOCK..][..M * KEY_BLOCK];
                let sums = &mut sums[tile * M * padded_dim..][..M * padded_dim];
                let rows: [*const f32; M] = std::array::from_fn(|i| q(tile * M + i));
                let mut factors = [0f32; M];
                // SAFETY: inside `Kernel::run`; each pointer has `dim` elements, each row of scores KEY_BLOCK, and
                // the panels lie in the packed keys and values.
                unsafe {
                    for column in (0..count).step_by(panel) {
                        let mut acc = [[S::zero(); 2]; M];
                        accumulate::<S, M, 2>(&rows, 0..dim, self.k[(block + column) * dim..].as_ptr(), &mut acc);
                        for (i, acc) in acc.iter().enumerate() {
                            for (j, &acc) in acc.iter().enumerate() {
                                let to = scores[i * KEY_BLOCK + column + j * S::LANES..].as_mut_ptr();
                                S::store(S::mul(acc, S::splat(p.scale)), to);
                            }
                        }
                    }
                    for i in 0..M {
                        let last = if p.causal == 1 { keys.min(self.first + tile * M + i + 1) } else { keys };
                        let seen = last.saturating_sub(block).min(count);
                        let row = &mut scores[i * KEY_BLOCK..][..count];
                        factors[i] = softmax::<S>(row, seen, &mut largest[tile][i], &mut total[tile][i]);
                    }
                    let rows: [*const f32; M] = std::array::from_fn(|i| scores[i * KEY_BLOCK..].as_ptr());
                    for column in (0..dim).step_by(panel) {
                        let v = self.v[column * padded_keys + block * panel..].as_ptr();
                        let sums = &mut sums[column..];
                        if dim - column <= S::LANES {
                            weighted::<S, M, 1>(&rows, count, v, &factors, sums, padded_dim);
                        } else {
                            weighted::<S, M, 2>(&rows, count, v, &factors, sums, padded_dim);
                        }
                    }
                }
            }
        }
        for row in 0..self.count {
            let total = total[row / M][row % M];
            let from = &sums[row * padded_dim..][..dim];
            let to = (self.image * p.queries as usize + self.first + row) * width + self.head * dim;
            for column in (0..dim).step_by(S::LANES) {
                let count = S::LANES.min(dim - column);
                // SAFETY: inside `Kernel::run`; these rows and this head are this task's alone, and `Call::run` has
                // compared the output with the sizes.
                unsafe {
                    let value = S::div(load_up_to::<S>(&from[column..], count), S::splat(total));
                    store_up_to::<S>(value, self.out.at(to + column), count);
                }
            }
        }
        SCRATCH.set(scratch);
    }
}

/// Turns the first `seen` scores into weights relative to the largest score so far, and the others into zeros. Returns
/// the factor by which earlier sums shrink.
///
/// # Safety
/// As [`Simd`]'s; the row is a whole number of vectors long.
#[inline(always)]
unsafe fn softmax<S: Simd>(row: &mut [f32], seen: usize, largest: &mut f32, total: &mut f32) -> f32 {
    if seen == 0 {
        row.fill(0.0);
        return 1.0;
    }
    let used = seen.next_multiple_of(S::LANES);
    row[seen..used].fill(f32::NEG_INFINITY);
    // SAFETY: the caller's contract.
    unsafe {
        let mut most = S::splat(*largest);
        for scores in row[..used].chunks_exact(S::LANES) {
            most = S::max(most, S::load(scores.as_ptr()));
        }
        let new = math::reduce_max::<S>(most);
        let mut sum = S::zero();
        for scores in row[..used].chunks_exact_mut(S::LANES) {
            let weights = math::exp::<S>(S::sub(S::load(scores.as_ptr()), S::splat(new)));
            S::store(weights, scores.as_mut_ptr());
            sum = S::add(sum, weights);
        }
        row[seen..].fill(0.0);
        let factor = math::reduce_max::<S>(math::exp::<S>(S::splat(*largest - new)));
        *total = *total * factor + math::reduce_add::<S>(sum);
        *largest = new;
        factor
    }
}

/// `sums = factors * sums + weights * values`, one panel wide.
///
/// # Safety
/// As [`Simd`]'s; each row has `count` weights, the panel `count` values, `sums` M rows at distance `stride`.
#[inline(always)]
unsafe fn weighted<S: Simd, const M: usize, const N: usize>(
    rows: &[*const f32; M],
    count: usize,
    values: *const f32,
    factors: &[f32; M],
    sums: &mut [f32],
    stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        for (i, acc) in acc.iter_mut().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = S::mul(S::splat(factors[i]), S::load(sums[i * stride + j * S::LANES..].as_ptr()));
            }
        }
        accumulate::<S, M, N>(rows, 0..count, values, &mut acc);
        for (i, acc) in acc.iter().enumerate() {
            for (j, &acc) in acc.iter().enumerate() {
                S::store(acc, sums[i * stride + j * S::LANES..].as_mut_ptr());
            }
        }
    }
}
