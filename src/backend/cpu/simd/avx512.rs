//! 512-bit vectors.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::vector::{Kernel, Simd};

#[derive(Clone, Copy)]
pub struct Avx512;

/// # Safety
/// The machine must have AVX-512 F, DQ and BW.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx2,fma")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are on here, and everything below is inlined into this function.
    unsafe { kernel.run::<Avx512>() }
}

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

// SAFETY of every block: the trait's contract, the features are on; pointers are the caller's.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 12;
    type V = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }
    #[inline(always)]
    unsafe fn store(v: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_first(v: __m512, to: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, first(count), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale(a: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    unsafe fn copy_sign(magnitude: __m512, sign: __m512) -> __m512 {
        unsafe {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign))
        }
    }
    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch does not access memory, so the address may be invalid.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(v: __m512, to: *mut u8) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn store_words(v: [__m512; 4], to: *mut u32) {
        unsafe {
            let [a, b, c, d] = v.map(|v| _mm512_cvtps_epi32(v));
            let low = _mm512_or_si512(a, _mm512_slli_epi32::<8>(b));
            let high = _mm512_or_si512(_mm512_slli_epi32::<16>(c), _mm512_slli_epi32::<24>(d));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(low, high));
        }
    }
    #[inline(always)]
    unsafe fn from_integers(from: *const i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn minus_product(a: *const i32, factor: i32, b: *const i32) -> __m512 {
        unsafe {
            let product = _mm512_mullo_epi32(_mm512_set1_epi32(factor), _mm512_loadu_si512(b.cast()));
            _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(a.cast()), product))
        }
    }
}
