//! 256-bit vectors with fused multiply-add.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::vector::{Kernel, Simd};

#[derive(Clone, Copy)]
pub struct Avx2;

/// # Safety
/// The machine must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are on here, and everything below is inlined into this function.
    unsafe { kernel.run::<Avx2>() }
}

/// A mask whose lanes below `count` are all ones.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(count <= 8);
    // SAFETY: eight elements from index 8 - count lie within the sixteen.
    unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - count).cast()) }
}

// SAFETY of every block: the trait's contract, the features are on; pointers are the caller's.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    type V = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m256 {
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(from, first(count)) }
    }
    #[inline(always)]
    unsafe fn store(v: __m256, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_first(v: __m256, to: *mut f32, count: usize) {
        unsafe { _mm256_maskstore_ps(to, first(count), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale(a: __m256, n: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn copy_sign(magnitude: __m256, sign: __m256) -> __m256 {
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign))
        }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch does not access memory, so the address may be invalid.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(v: __m256, to: *mut u8) {
        unsafe {
            let v = _mm256_cvtps_epi32(v);
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(halves, halves));
        }
    }
    #[inline(always)]
    unsafe fn store_words(v: [__m256; 4], to: *mut u32) {
        unsafe {
            let [a, b, c, d] = v.map(|v| _mm256_cvtps_epi32(v));
            let low = _mm256_or_si256(a, _mm256_slli_epi32::<8>(b));
            let high = _mm256_or_si256(_mm256_slli_epi32::<16>(c), _mm256_slli_epi32::<24>(d));
            _mm256_storeu_si256(to.cast(), _mm256_or_si256(low, high));
        }
    }
    #[inline(always)]
    unsafe fn from_integers(from: *const i32) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn minus_product(a: *const i32, factor: i32, b: *const i32) -> __m256 {
        unsafe {
            let product = _mm256_mullo_epi32(_mm256_set1_epi32(factor), _mm256_loadu_si256(b.cast()));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(a.cast()), product))
        }
    }
}
