//! Arrays that the compiler vectorises if it can. Multiplies and adds are rounded separately: a fused multiply-add
//! without hardware is a slow library call.

use half::{bf16, f16};

use super::vector::Simd;

#[derive(Clone, Copy)]
pub struct Portable;

const LANES: usize = 8;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

// SAFETY of every block: the caller's pointers have as many elements as are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = 2;
    type V = [f32; LANES];

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // `to_f32` would ask at each element what the machine has.
        each(|i| unsafe { *from.add(i) }.to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self::V {
        each(|i| unsafe { *from.add(i) }.to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V {
        each(|i| if i < count { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(v: Self::V, to: *mut f32) {
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_first(v: Self::V, to: *mut f32, count: usize) {
        for (i, x) in v.into_iter().enumerate().take(count) {
            unsafe { *to.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // Exact for |a| < 2^22, ties to even; the exponential never needs more. No SSE4.1 `roundps` is assumed.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| (a[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        each(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn copy_sign(magnitude: Self::V, sign: Self::V) -> Self::V {
        each(|i| magnitude[i].copysign(sign[i]))
    }
    #[inline(always)]
    fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn store_bytes(v: Self::V, to: *mut u8) {
        for (i, x) in v.into_iter().enumerate() {
            unsafe { *to.add(i) = x as u8 }
        }
    }
    #[inline(always)]
    unsafe fn store_words(v: [Self::V; 4], to: *mut u32) {
        for i in 0..LANES {
            let bytes = v.map(|v| v[i].round_ties_even() as u8);
            unsafe { to.add(i).write_unaligned(u32::from_le_bytes(bytes)) }
        }
    }
    #[inline(always)]
    unsafe fn from_integers(from: *const i32) -> Self::V {
        let integers = unsafe { from.cast::<[i32; LANES]>().read_unaligned() };
        each(|i| integers[i] as f32)
    }
    #[inline(always)]
    unsafe fn minus_product(a: *const i32, factor: i32, b: *const i32) -> Self::V {
        let (a, b) = unsafe { (a.cast::<[i32; LANES]>().read_unaligned(), b.cast::<[i32; LANES]>().read_unaligned()) };
        each(|i| (a[i] - factor * b[i]) as f32)
    }
}
