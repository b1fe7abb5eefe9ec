use std::num::NonZero;

use super::*;
use crate::backend::cpu::narrow::{
    attention,
    pack::{Packing, packed_words},
    segments::Segments,
};
use crate::backend::{
    Activation, Stored,
    cpu::{
        memory::Pages,
        pack::{CpuWeight, Elements},
    },
    params::{Attention, Conv2d, Linear},
};

/// Pseudorandom values around zero, from -1.5 to 1.5.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next() + next() + next()).collect()
}

fn pool() -> Pool {
    Pool::new(NonZero::new(2).unwrap(), Vec::new()).unwrap()
}

fn conv(batch: u32, size: u32, channels: u32, out: u32, stride: u32) -> Conv2d {
    let out_size = size.div_ceil(stride);
    Conv2d {
        batch,
        height: size,
        width: size,
        channels,
        out,
        kernel: 3,
        stride,
        padding: 1,
        out_height: out_size,
        out_width: out_size,
    }
}

/// The units of a type that this machine has.
fn units(stored: Stored) -> impl Iterator<Item = Unit> {
    let is_int8 = stored == Stored::Int8;
    Unit::ALL.into_iter().filter(move |unit| unit.is_here() && unit.is_int8() == is_int8)
}

/// A product on one unit, `[rows, out]`. `weights` is `[out, channels, taps]`; a row without taps has `groups` groups.
fn product(lhs: Lhs, stored: Stored, unit: Unit, groups: usize, weights: &[f32]) -> Vec<f32> {
    let (path, taps) = (unit.path(), lhs.taps());
    let out = weights.len() / (taps * lhs.channels());
    let segments = Segments::new(stored, taps * groups, lhs.channels() / groups);
    let columns = out.next_multiple_of(path.panel());
    let mut packed = vec![0u32; packed_words(stored, segments, columns)];
    let panel_words = segments.count * segments.words * path.panel();
    let (words, beside) = packed.split_at_mut(columns * segments.count * segments.words);
    let packing = Packing { path, stored, segments, taps };
    for (column, row) in weights.chunks_exact(taps * lhs.channels()).enumerate() {
        let (mut rounded, mut row_words) = (vec![0; packing.rounded_words()], vec![0; segments.count * segments.words]);
        let put = |row, bits| beside[columns * row + column] = bits;
        packing.row(row, &mut rounded, &mut row_words, put);
        let panel = words[column / path.panel() * panel_words..][..panel_words].iter_mut();
        for (to, word) in panel.skip(column % path.panel()).step_by(path.panel()).zip(row_words) {
            *to = word;
        }
    }
    let x = &lhs.x()[..lhs.elements()];
    let groups = Segments { count: groups, ..segments };
    let mut scratch = vec![0.0; Rows::elements(stored, groups, x.len() / (groups.count * groups.elements))];
    let converted = Rows::convert(stored, groups, x, path, &pool(), &mut scratch);
    let rows = lhs.rows();
    let unused = CpuWeight { weight: Elements::Words(Pages::zeroed(0).unwrap()), bias: None };
    let product = Product {
        lhs,
        packed: &unused,
        columns: out,
        rows_per_image: rows,
        channel_add: None,
        activation: Activation::None,
        residual: None,
    };
    let mut result = vec![0.0; rows * out];
    multiply(&product, parts(stored, segments, columns, &packed), &converted, unit, &pool(), &mut result);
    result
}

/// The product in f64.
fn reference(lhs: &Lhs, weights: &[f32]) -> Vec<f64> {
    let (taps, channels, x) = (lhs.taps(), lhs.channels(), lhs.x());
    let out = weights.len() / (taps * channels);
    let mut result = vec![0.0; lhs.rows() * out];
    for (row, result) in result.chunks_exact_mut(out).enumerate() {
        lhs.each_source(row, 1, |tap, _, source| {
            let Some(source) = source else { return };
            for (result, weights) in result.iter_mut().zip(weights.chunks_exact(taps * channels)) {
                for (x, weight) in x[source * channels..][..channels].iter().zip(weights[tap..].iter().step_by(taps)) {
                    *result += f64::from(*x) * f64::from(*weight);
                }
            }
        });
    }
    result
}

/// The root mean square of the error, divided by that of the result.
fn error(got: &[f32], want: &[f64]) -> f64 {
    let errors: f64 = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).powi(2)).sum();
    (errors / want.iter().map(|want| want * want).sum::<f64>()).sqrt()
}

#[test]
fn every_unit_gives_the_same_bits() {
    for (stored, bound) in [(Stored::Int8, 1.5e-2), (Stored::BF16, 4e-3)] {
        for (i, p) in [conv(2, 9, 40, 37, 1), conv(1, 17, 64, 33, 2), conv(1, 16, 130, 70, 1)].into_iter().enumerate() {
            let x = values((p.batch * p.height * p.width * p.channels) as usize, i as u32);
            let weights = values((p.out * p.channels * 9) as usize, 100 + i as u32);
            let first = product(Lhs::Conv2d(p, &x), stored, units(stored).next().unwrap(), 1, &weights);
            let error = error(&first, &reference(&Lhs::Conv2d(p, &x), &weights));
            assert!(error < bound, "{stored:?}: {error:e}");
            for unit in units(stored) {
                let got = product(Lhs::Conv2d(p, &x), stored, unit, 1, &weights);
                assert_eq!(
                    bytemuck::cast_slice::<f32, u32>(&got),
                    bytemuck::cast_slice::<f32, u32>(&first),
                    "{unit:?}"
                );
            }
        }
        for (rows, out, k, groups) in [(1, 33, 50, 1), (35, 64, 128, 2), (50, 16, 320, 5)] {
            let p = Linear { rows, out, k };
            let (x, weights) = (values((rows * k) as usize, rows), values((out * k) as usize, k));
            let first = product(Lhs::Linear(p, &x), stored, units(stored).next().unwrap(), groups, &weights);
            let error = error(&first, &reference(&Lhs::Linear(p, &x), &weights));
            assert!(error < bound, "{stored:?}: {error:e}");
            for unit in units(stored) {
                let got = product(Lhs::Linear(p, &x), stored, unit, groups, &weights);
                assert_eq!(
                    bytemuck::cast_slice::<f32, u32>(&got),
                    bytemuck::cast_slice::<f32, u32>(&first),
                    "{unit:?}"
                );
            }
        }
    }
}

#[test]
fn integers_in_the_range_of_bytes_are_multiplied_exactly() {
    let p = Linear { rows: 40, out: 45, k: 100 };
    // Each row and each column has the ends of its range, so that both scales are 1.
    let x: Vec<f32> = (0..4000).map(|i| if i % 100 == 0 { 255.0 } else { (i * 7 % 256) as f32 }).collect();
    let weights: Vec<f32> =
        (0..4500).map(|i| if i % 100 == 9 { -127.0 } else { (i * 11 % 255) as f32 - 127.0 }).collect();
    let want = reference(&Lhs::Linear(p, &x), &weights);
    for unit in units(Stored::Int8) {
        let got = product(Lhs::Linear(p, &x), Stored::Int8, unit, 1, &weights);
        assert!(got.iter().zip(&want).all(|(got, want)| f64::from(*got) == *want), "{unit:?}");
    }
}

#[test]
fn an_invalid_element_makes_its_own_rows_invalid_and_no_other() {
    let p = Linear { rows: 37, out: 40, k: 70 };
    for stored in [Stored::Int8, Stored::BF16] {
        let weights = values(40 * 70, 1);
        for invalid in [f32::NAN, f32::INFINITY] {
            let mut x = values(37 * 70, 2);
            x[20 * 70 + 69] = invalid;
            for unit in units(stored) {
                let got = product(Lhs::Linear(p, &x), stored, unit, 1, &weights);
                for (row, got) in got.chunks_exact(40).enumerate() {
                    assert!(got.iter().all(|x| x.is_finite() == (row != 20)), "{unit:?}, row {row}");
                }
            }
        }
    }
}

#[test]
fn an_invalid_weight_makes_its_own_column_invalid_and_no_other() {
    let p = Linear { rows: 3, out: 40, k: 70 };
    let x = values(3 * 70, 2);
    for stored in [Stored::Int8, Stored::BF16] {
        for (invalid, at) in [(f32::NAN, 0), (f32::NAN, 69), (f32::INFINITY, 30)] {
            let mut weights = values(40 * 70, 1);
            weights[20 * 70 + at] = invalid;
            for unit in units(stored) {
                let got = product(Lhs::Linear(p, &x), stored, unit, 1, &weights);
                for (column, got) in got.iter().enumerate().map(|(i, got)| (i % 40, got)) {
                    assert_eq!(got.is_finite(), column != 20, "{unit:?}, column {column}");
                }
            }
        }
    }
}

#[test]
fn rows_of_zeros_and_rows_of_tiny_elements_give_zeros() {
    let p = Linear { rows: 2, out: 8, k: 64 };
    let mut x = vec![0.0; 128];
    x[64..].fill(f32::MIN_POSITIVE / 4.0);
    for unit in units(Stored::Int8) {
        let got = product(Lhs::Linear(p, &x), Stored::Int8, unit, 1, &values(8 * 64, 3));
        assert!(got.iter().all(|x| x.abs() < 1e-36), "{unit:?}: {got:?}");
    }
}

/// Attention in f64, of inputs as [`attention::Call`] has them.
fn attention_reference(p: &Attention, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let (queries, keys, heads, dim) = (p.queries as usize, p.keys as usize, p.heads as usize, p.head_dim as usize);
    let mut result = Vec::with_capacity(q.len());
    for image in 0..p.batch as usize {
        for query in 0..queries {
            for head in 0..heads {
                let row = |x: &[f32], rows: usize, row: usize| -> Vec<f64> {
                    let from = ((image * rows + row) * heads + head) * dim;
                    x[from..from + dim].iter().map(|x| f64::from(*x)).collect()
                };
                let q = row(q, queries, query);
                let score = |key: &Vec<f64>| f64::from(p.scale) * q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
                let weights: Vec<f64> = (0..keys).map(|key| score(&row(k, keys, key)).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; dim];
                for (key, weight) in weights.iter().enumerate() {
                    sums.iter_mut().zip(row(v, keys, key)).for_each(|(sum, v)| *sum += weight * v);
                }
                result.extend(sums.into_iter().map(|sum| sum / total));
            }
        }
    }
    result
}

fn attention_on(unit: Unit, p: Attention, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let (mut scratch, mut out) = (vec![0.0; attention::elements(&p)], vec![0.0; q.len()]);
    attention::Call { p, q, k, v }.run(unit, &pool(), &mut scratch, &mut out);
    out
}

#[test]
fn attention_in_int8_is_close_to_the_reference_on_every_unit() {
    for (queries, keys, heads, dim) in [(70, 300, 2, 40), (5, 77, 1, 64), (130, 131, 1, 50), (1, 1, 3, 8)] {
        let p =
            Attention { batch: 2, queries, keys, heads, head_dim: dim, causal: 0, scale: 1.0 / (dim as f32).sqrt() };
        let of = |rows: u32, seed| values((2 * rows * heads * dim) as usize, seed);
        let (q, k, v) = (of(queries, 1).iter().map(|x| 3.0 * x).collect::<Vec<_>>(), of(keys, 2), of(keys, 3));
        let want = attention_reference(&p, &q, &k, &v);
        for path in [Path::Avx512, Path::Avx2, Path::Portable] {
            let all: Vec<_> = units(Stored::Int8).filter(|unit| unit.path() == path).collect();
            let got: Vec<_> = all.iter().map(|unit| attention_on(*unit, p, &q, &k, &v)).collect();
            for (unit, got) in all.iter().zip(&got) {
                let error = error(got, &want);
                assert!(error < 3e-2, "{unit:?} {queries}x{keys} {dim}: {error:e}");
            }
            assert!(got.windows(2).all(|two| two[0] == two[1]), "the units of {path} differ");
        }
    }
}

#[test]
fn a_query_does_not_depend_on_the_others_in_int8() {
    let p = Attention { batch: 1, queries: 61, keys: 150, heads: 1, head_dim: 40, causal: 0, scale: 0.2 };
    let (q, k, v) = (values(61 * 40, 1), values(150 * 40, 2), values(150 * 40, 3));
    for unit in units(Stored::Int8) {
        let all = attention_on(unit, p, &q, &k, &v);
        for query in [0, 17, 60] {
            let alone = attention_on(unit, Attention { queries: 1, ..p }, &q[query * 40..][..40], &k, &v);
            assert_eq!(alone, all[query * 40..][..40], "{unit:?}, query {query}");
        }
    }
}
