//! The transforms of Winograd's minimal filtering. Lavin and Gray 2016.
//!
//! Filters are transformed once at load, in f64.

use super::simd::Simd;

/// The number of filters that are transformed together, side by side.
pub const FILTERS: usize = 8;

/// The transforms of F(m x m, 3x3) along one axis, for tiles of M outputs from windows of N = M + 2 inputs.
pub trait Transform<const M: usize, const N: usize> {
    /// `G g`, where `g` is one row or column of some filters.
    fn filters(g: [&[f64; FILTERS]; 3]) -> [[f64; FILTERS]; N];

    /// `B^T d` of one row or column of a tile's inputs.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    unsafe fn inputs<S: Simd>(d: [S::V; N]) -> [S::V; N];

    /// `A^T m` of one row or column of a tile's sums.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    unsafe fn outputs<S: Simd>(m: [S::V; N]) -> [S::V; M];
}

/// F(4x4, 3x3) with the interpolation points 0, ±5/8, ±3/2 and infinity. They halve the rounding error of the usual 0,
/// ±1, ±2, and their squares are exact in f32.
pub struct F4;

/// The interpolation points ±A and ±B of [`F4`].
const A: f32 = 5.0 / 8.0;
const B: f32 = 3.0 / 2.0;

impl Transform<4, 6> for F4 {
    #[inline(always)]
    fn filters(g: [&[f64; FILTERS]; 3]) -> [[f64; FILTERS]; 6] {
        const A2: f64 = (A * A) as f64;
        const B2: f64 = (B * B) as f64;
        let mut planes = [[0.0; FILTERS]; 6];
        for i in 0..FILTERS {
            let [g0, g1, g2] = g.map(|values| values[i]);
            let at = |square: f64, point: f64, factor: f64| {
                let (even, odd) = (g0 + square * g2, point * g1);
                [(even + odd) * factor, (even - odd) * factor]
            };
            let [at_a, at_minus_a] = at(A2, f64::from(A), 1.0 / (2.0 * A2 * (A2 - B2)));
            let [at_b, at_minus_b] = at(B2, f64::from(B), 1.0 / (2.0 * B2 * (B2 - A2)));
            let values = [g0 * (1.0 / (A2 * B2)), at_a, at_minus_a, at_b, at_minus_b, g2];
            for (plane, value) in planes.iter_mut().zip(values) {
                plane[i] = value;
            }
        }
        planes
    }

    #[inline(always)]
    unsafe fn inputs<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
        const A2: f32 = A * A;
        const B2: f32 = B * B;
        // SAFETY: the caller's contract.
        unsafe {
            let (a, minus_a, b, minus_b) = (S::splat(A), S::splat(-A), S::splat(B), S::splat(-B));
            let (minus_a2, minus_b2) = (S::splat(-A2), S::splat(-B2));
            let (minus_sum, product) = (S::splat(-(A2 + B2)), S::splat(A2 * B2));
            let (even_a, odd_a) = (S::mul_add(minus_b2, d[2], d[4]), S::mul_add(minus_b2, d[1], d[3]));
            let (even_b, odd_b) = (S::mul_add(minus_a2, d[2], d[4]), S::mul_add(minus_a2, d[1], d[3]));
            [
                S::mul_add(product, d[0], S::mul_add(minus_sum, d[2], d[4])),
                S::mul_add(a, odd_a, even_a),
                S::mul_add(minus_a, odd_a, even_a),
                S::mul_add(b, odd_b, even_b),
                S::mul_add(minus_b, odd_b, even_b),
                S::mul_add(product, d[1], S::mul_add(minus_sum, d[3], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            let (a, a2, a3) = (S::splat(A), S::splat(A * A), S::splat(A * A * A));
            let (b, b2, b3) = (S::splat(B), S::splat(B * B), S::splat(B * B * B));
            let (sum_a, difference_a) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (sum_b, difference_b) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(m[0], S::add(sum_a, sum_b)),
                S::mul_add(a, difference_a, S::mul(b, difference_b)),
                S::mul_add(a2, sum_a, S::mul(b2, sum_b)),
                S::add(m[5], S::mul_add(a3, difference_a, S::mul(b3, difference_b))),
            ]
        }
    }
}

/// F(2x2, 3x3) with the interpolation points 0, ±1 and infinity.
pub struct F2;

impl Transform<2, 4> for F2 {
    #[inline(always)]
    fn filters(g: [&[f64; FILTERS]; 3]) -> [[f64; FILTERS]; 4] {
        let mut planes = [[0.0; FILTERS]; 4];
        for i in 0..FILTERS {
            let [g0, g1, g2] = g.map(|values| values[i]);
            let values = [g0, (g0 + g1 + g2) * 0.5, (g0 - g1 + g2) * 0.5, g2];
            for (plane, value) in planes.iter_mut().zip(values) {
                plane[i] = value;
            }
        }
        planes
    }

    #[inline(always)]
    unsafe fn inputs<S: Simd>(d: [S::V; 4]) -> [S::V; 4] {
        // SAFETY: the caller's contract.
        unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3])] }
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd>(m: [S::V; 4]) -> [S::V; 2] {
        // SAFETY: the caller's contract.
        unsafe { [S::add(m[0], S::add(m[1], m[2])), S::sub(S::sub(m[1], m[2]), m[3])] }
    }
}

/// `G filter G^T` of some 3x3 filters: their values in the N x N planes, rounded once.
#[inline(always)]
pub fn transform_filters<T: Transform<M, N>, const M: usize, const N: usize>(
    filters: &[[f64; FILTERS]; 9],
) -> [[[f32; FILTERS]; N]; N] {
    // Loops, because closures would be compiled without the path's features.
    let mut columns = [[[0.0; FILTERS]; N]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = T::filters([&filters[x], &filters[3 + x], &filters[6 + x]]);
    }
    let mut planes = [[[0.0; FILTERS]; N]; N];
    for (y, planes) in planes.iter_mut().enumerate() {
        let row = T::filters([&columns[0][y], &columns[1][y], &columns[2][y]]);
        for (to, values) in planes.iter_mut().zip(row) {
            *to = values.map(|value| value as f32);
        }
    }
    planes
}

/// Rows as columns. Vectors are only moved: see [`Kernel`](super::simd::Kernel) about closures.
#[inline(always)]
pub fn transposed<V: Copy, const M: usize, const N: usize>(rows: &[[V; N]; M], mut to: [[V; M]; N]) -> [[V; M]; N] {
    for (i, row) in rows.iter().enumerate() {
        for (to, &v) in to.iter_mut().zip(row) {
            to[i] = v;
        }
    }
    to
}
