//! Dots of words in vectors: one accumulator for each row and vector of columns stays in a register.

use super::{
    dot::{Dot, Words},
    segments::MAX_ROWS,
};

/// A [`Dot`] by vectors.
#[derive(Clone, Copy)]
pub struct Vectors<W>(std::marker::PhantomData<W>);

impl<W: Words> Dot for Vectors<W> {
    const ROWS: usize = W::ROWS;
    const IS_INT8: bool = W::IS_INT8;
    type Words = W;

    #[inline(always)]
    unsafe fn tile(
        rows: &[*const u32; MAX_ROWS],
        count: usize,
        words: usize,
        weights: *const u32,
        is_first: bool,
        to: *mut f32,
    ) {
        // SAFETY: the caller's contract; a tile has no more rows than the unit.
        unsafe {
            match (W::ROWS, count) {
                (12, 7..) => multiply::<W, 12>(rows, words, weights, is_first, to),
                (6.., 4..) => multiply::<W, 6>(rows, words, weights, is_first, to),
                (_, 3..) => multiply::<W, 4>(rows, words, weights, is_first, to),
                (_, 2..) => multiply::<W, 2>(rows, words, weights, is_first, to),
                _ => multiply::<W, 1>(rows, words, weights, is_first, to),
            }
        }
    }
}

/// # Safety
/// As [`Dot::tile`].
#[inline(always)]
unsafe fn multiply<W: Words, const M: usize>(
    rows: &[*const u32; MAX_ROWS],
    words: usize,
    weights: *const u32,
    is_first: bool,
    to: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[W::zero(); 2]; M];
        if !is_first {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = W::load_sum(to.add((2 * i + j) * W::LANES));
                }
            }
        }
        let mut pointers = [rows[0]; M];
        pointers.copy_from_slice(&rows[..M]);
        let mut weights = weights;
        for word in 0..words {
            let columns = [W::column(weights), W::column(weights.add(W::LANES))];
            for i in 0..M {
                let row = W::row(*pointers[i].add(word));
                for j in 0..2 {
                    sums[i][j] = W::dot(sums[i][j], row, columns[j]);
                }
            }
            weights = weights.add(2 * W::LANES);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                W::store_sum(sum, to.add((2 * i + j) * W::LANES));
            }
        }
    }
}

/// int8 in arrays.
#[derive(Clone, Copy)]
pub struct Int8Array;

/// bf16 in arrays.
#[derive(Clone, Copy)]
pub struct Bf16Array;

// SAFETY of every block: the caller's pointers have as many elements as are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Words for Int8Array {
    const LANES: usize = 8;
    const ROWS: usize = 2;
    const IS_INT8: bool = true;
    type Sum = [i32; 8];
    type Row = [u32; 8];
    type Column = [u32; 8];

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load_sum(from: *const f32) -> Self::Sum {
        unsafe { from.cast::<Self::Sum>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_sum(v: Self::Sum, to: *mut f32) {
        unsafe { to.cast::<Self::Sum>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn column(from: *const u32) -> Self::Column {
        unsafe { from.cast::<Self::Column>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn row(word: u32) -> Self::Row {
        [word; 8]
    }
    #[inline(always)]
    unsafe fn rows(from: *const u32) -> Self::Row {
        unsafe { Self::column(from) }
    }
    #[inline(always)]
    unsafe fn column_of(word: u32) -> Self::Column {
        [word; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: i32) -> Self::Sum {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn dot(mut sum: Self::Sum, row: Self::Row, column: Self::Column) -> Self::Sum {
        for (sum, (row, column)) in sum.iter_mut().zip(row.into_iter().zip(column)) {
            let bytes = row.to_le_bytes().into_iter().zip(column.to_le_bytes());
            *sum += bytes.map(|(row, column)| i32::from(row) * i32::from(column as i8)).sum::<i32>();
        }
        sum
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Words for Bf16Array {
    const LANES: usize = 8;
    const ROWS: usize = 2;
    const IS_INT8: bool = false;
    type Sum = [f32; 8];
    type Row = [u32; 8];
    type Column = [u32; 8];

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load_sum(from: *const f32) -> Self::Sum {
        unsafe { from.cast::<Self::Sum>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_sum(v: Self::Sum, to: *mut f32) {
        unsafe { to.cast::<Self::Sum>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn column(from: *const u32) -> Self::Column {
        unsafe { from.cast::<Self::Column>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn row(word: u32) -> Self::Row {
        [word; 8]
    }
    #[inline(always)]
    unsafe fn rows(from: *const u32) -> Self::Row {
        unsafe { Self::column(from) }
    }
    #[inline(always)]
    unsafe fn column_of(word: u32) -> Self::Column {
        [word; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: i32) -> Self::Sum {
        [x as f32; 8]
    }
    #[inline(always)]
    unsafe fn dot(mut sum: Self::Sum, row: Self::Row, column: Self::Column) -> Self::Sum {
        // A product of two bf16 is exact in f32, so a multiply-add has the same bits with one rounding or two.
        for (sum, (row, column)) in sum.iter_mut().zip(row.into_iter().zip(column)) {
            *sum += f32::from_bits(row & 0xffff_0000) * f32::from_bits(column & 0xffff_0000);
            *sum += f32::from_bits(row << 16) * f32::from_bits(column << 16);
        }
        sum
    }
}

/// The instruction sets of x86.
#[cfg(target_arch = "x86_64")]
pub mod x86 {
    use std::arch::x86_64::*;

    use crate::backend::cpu::narrow::dot::Words;

    /// The methods that do not depend on how words are multiplied.
    macro_rules! integers {
        ($lanes:literal, $rows:literal, $sum:ty, $zero:ident, $splat:ident, $load:ident, $store:ident) => {
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            const IS_INT8: bool = true;
            type Sum = $sum;

            #[inline(always)]
            unsafe fn zero() -> $sum {
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn splat(x: i32) -> $sum {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load_sum(from: *const f32) -> $sum {
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store_sum(v: $sum, to: *mut f32) {
                unsafe { $store(to.cast(), v) }
            }
        };
    }
    macro_rules! floats {
        ($lanes:literal, $rows:literal, $sum:ty, $zero:ident, $splat:ident, $load:ident, $store:ident) => {
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            const IS_INT8: bool = false;
            type Sum = $sum;

            #[inline(always)]
            unsafe fn zero() -> $sum {
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn splat(x: i32) -> $sum {
                unsafe { $splat(x as f32) }
            }
            #[inline(always)]
            unsafe fn load_sum(from: *const f32) -> $sum {
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store_sum(v: $sum, to: *mut f32) {
                unsafe { $store(to, v) }
            }
        };
    }

    /// int8 by AVX-512 VNNI.
    #[derive(Clone, Copy)]
    pub struct Vnni512;

    // SAFETY of every block: the trait's contract, the features are on; pointers are the caller's.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Vnni512 {
        integers!(16, 12, __m512i, _mm512_setzero_si512, _mm512_set1_epi32, _mm512_loadu_si512, _mm512_storeu_si512);
        type Row = __m512i;
        type Column = __m512i;
        #[inline(always)]
        unsafe fn column(from: *const u32) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> __m512i {
            unsafe { _mm512_set1_epi32(word as i32) }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> __m512i {
            unsafe { Self::column(from) }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> __m512i {
            unsafe { Self::row(word) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512i, row: __m512i, column: __m512i) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sum, row, column) }
        }
    }

    /// int8 by AVX-VNNI.
    #[derive(Clone, Copy)]
    pub struct Vnni256;

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Vnni256 {
        integers!(8, 6, __m256i, _mm256_setzero_si256, _mm256_set1_epi32, _mm256_loadu_si256, _mm256_storeu_si256);
        type Row = __m256i;
        type Column = __m256i;
        #[inline(always)]
        unsafe fn column(from: *const u32) -> __m256i {
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> __m256i {
            unsafe { _mm256_set1_epi32(word as i32) }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> __m256i {
            unsafe { Self::column(from) }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> __m256i {
            unsafe { Self::row(word) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m256i, row: __m256i, column: __m256i) -> __m256i {
            unsafe { _mm256_dpbusd_avx_epi32(sum, row, column) }
        }
    }

    /// int8 by multiply-adds of 16-bit integers: bytes 0 and 2 of a word, and bytes 1 and 3. `maddubs` would saturate.
    #[derive(Clone, Copy)]
    pub struct Madd512;

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Madd512 {
        integers!(16, 12, __m512i, _mm512_setzero_si512, _mm512_set1_epi32, _mm512_loadu_si512, _mm512_storeu_si512);
        type Row = [__m512i; 2];
        type Column = [__m512i; 2];
        #[inline(always)]
        unsafe fn column(from: *const u32) -> [__m512i; 2] {
            unsafe {
                let words = _mm512_loadu_si512(from.cast());
                [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(words)), _mm512_srai_epi16::<8>(words)]
            }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> [__m512i; 2] {
            unsafe {
                [_mm512_set1_epi32((word & 0x00ff_00ff) as i32), _mm512_set1_epi32((word >> 8 & 0x00ff_00ff) as i32)]
            }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> [__m512i; 2] {
            unsafe {
                let (words, even) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi16(0x00ff));
                [_mm512_and_si512(words, even), _mm512_srli_epi16::<8>(words)]
            }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> [__m512i; 2] {
            unsafe {
                let words = _mm512_set1_epi32(word as i32);
                [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(words)), _mm512_srai_epi16::<8>(words)]
            }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512i, row: [__m512i; 2], column: [__m512i; 2]) -> __m512i {
            unsafe {
                let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(row[0], column[0]));
                _mm512_add_epi32(sum, _mm512_madd_epi16(row[1], column[1]))
            }
        }
    }

    /// As [`Madd512`], in AVX2.
    #[derive(Clone, Copy)]
    pub struct Madd256;

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Madd256 {
        integers!(8, 6, __m256i, _mm256_setzero_si256, _mm256_set1_epi32, _mm256_loadu_si256, _mm256_storeu_si256);
        type Row = [__m256i; 2];
        type Column = [__m256i; 2];
        #[inline(always)]
        unsafe fn column(from: *const u32) -> [__m256i; 2] {
            unsafe {
                let words = _mm256_loadu_si256(from.cast());
                [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(words)), _mm256_srai_epi16::<8>(words)]
            }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> [__m256i; 2] {
            unsafe {
                [_mm256_set1_epi32((word & 0x00ff_00ff) as i32), _mm256_set1_epi32((word >> 8 & 0x00ff_00ff) as i32)]
            }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> [__m256i; 2] {
            unsafe {
                let (words, even) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi16(0x00ff));
                [_mm256_and_si256(words, even), _mm256_srli_epi16::<8>(words)]
            }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> [__m256i; 2] {
            unsafe {
                let words = _mm256_set1_epi32(word as i32);
                [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(words)), _mm256_srai_epi16::<8>(words)]
            }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m256i, row: [__m256i; 2], column: [__m256i; 2]) -> __m256i {
            unsafe {
                let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(row[0], column[0]));
                _mm256_add_epi32(sum, _mm256_madd_epi16(row[1], column[1]))
            }
        }
    }

    /// bf16 by AVX-512 BF16.
    #[derive(Clone, Copy)]
    pub struct Bf16x512;

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Bf16x512 {
        floats!(16, 12, __m512, _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps);
        type Row = __m512i;
        type Column = __m512i;
        #[inline(always)]
        unsafe fn column(from: *const u32) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> __m512i {
            unsafe { _mm512_set1_epi32(word as i32) }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> __m512i {
            unsafe { Self::column(from) }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> __m512i {
            unsafe { Self::row(word) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, row: __m512i, column: __m512i) -> __m512 {
            unsafe {
                // The types differ in name only.
                let bf16 = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
                _mm512_dpbf16_ps(sum, bf16(row), bf16(column))
            }
        }
    }

    /// bf16 by f32 multiply-adds. A product of two bf16 is exact in f32, so the bits are those of AVX-512 BF16.
    #[derive(Clone, Copy)]
    pub struct Widened512;

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Widened512 {
        floats!(16, 12, __m512, _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps);
        type Row = [__m512; 2];
        type Column = [__m512; 2];
        #[inline(always)]
        unsafe fn column(from: *const u32) -> [__m512; 2] {
            unsafe {
                let words = _mm512_loadu_si512(from.cast());
                let odd = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
            }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> [__m512; 2] {
            unsafe { [_mm512_set1_ps(f32::from_bits(word << 16)), _mm512_set1_ps(f32::from_bits(word & 0xffff_0000))] }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> [__m512; 2] {
            unsafe { Self::column(from) }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> [__m512; 2] {
            unsafe { Self::row(word) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, row: [__m512; 2], column: [__m512; 2]) -> __m512 {
            unsafe { _mm512_fmadd_ps(row[0], column[0], _mm512_fmadd_ps(row[1], column[1], sum)) }
        }
    }

    /// As [`Widened512`], in AVX2.
    #[derive(Clone, Copy)]
    pub struct Widened256;

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Words for Widened256 {
        floats!(8, 6, __m256, _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps);
        type Row = [__m256; 2];
        type Column = [__m256; 2];
        #[inline(always)]
        unsafe fn column(from: *const u32) -> [__m256; 2] {
            unsafe {
                let words = _mm256_loadu_si256(from.cast());
                let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(odd)]
            }
        }
        #[inline(always)]
        unsafe fn row(word: u32) -> [__m256; 2] {
            unsafe { [_mm256_set1_ps(f32::from_bits(word << 16)), _mm256_set1_ps(f32::from_bits(word & 0xffff_0000))] }
        }
        #[inline(always)]
        unsafe fn rows(from: *const u32) -> [__m256; 2] {
            unsafe { Self::column(from) }
        }
        #[inline(always)]
        unsafe fn column_of(word: u32) -> [__m256; 2] {
            unsafe { Self::row(word) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m256, row: [__m256; 2], column: [__m256; 2]) -> __m256 {
            unsafe { _mm256_fmadd_ps(row[0], column[0], _mm256_fmadd_ps(row[1], column[1], sum)) }
        }
    }
}
