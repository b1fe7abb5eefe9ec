//! The vector operations that kernels are written with.

use half::{bf16, f16};

/// A vector of f32 and the operations of kernels. Lanes are independent except in `reduce_add` of
/// [`math`](super::math), which goes through memory in lane order.
///
/// # Safety
/// Methods may only be called where the path's target features are enabled: inside [`Kernel::run`].
#[allow(clippy::missing_safety_doc, reason = "the trait's own section speaks for every method")]
pub trait Simd: Copy {
    /// The number of f32 lanes.
    const LANES: usize;
    /// Rows of the matrix micro-kernel's tile; its width is two vectors.
    const ROWS: usize;
    /// The vector type.
    type V: Copy;

    /// A vector of zeros.
    unsafe fn zero() -> Self::V;
    /// A vector with all lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` elements.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Reads `LANES` elements of f16, as f32.
    unsafe fn load_f16(from: *const f16) -> Self::V;
    /// Reads `LANES` elements of bf16, as f32.
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    /// Reads `count < LANES` elements; the other lanes are zero.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V;
    /// Writes `LANES` elements.
    unsafe fn store(v: Self::V, to: *mut f32);
    /// Writes the first `count < LANES` elements.
    unsafe fn store_first(v: Self::V, to: *mut f32, count: usize);
    /// `a + b`
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the hardware can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of two; `b` if one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of two; `b` if one is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for integral n from -126 to 127.
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V;
    /// `|magnitude|` with the sign of `sign`.
    unsafe fn copy_sign(magnitude: Self::V, sign: Self::V) -> Self::V;
    /// Brings the line of an address into the nearest cache; the address may be invalid.
    fn prefetch(address: *const u8);
    /// Writes integral lanes from 0 to 255 as `LANES` bytes.
    unsafe fn store_bytes(v: Self::V, to: *mut u8);
    /// Writes the lanes of four vectors as words of four bytes each, rounded to integers from 0 to 255.
    unsafe fn store_words(v: [Self::V; 4], to: *mut u32);
    /// Reads `LANES` i32 and converts them.
    unsafe fn from_integers(from: *const i32) -> Self::V;
    /// `a - factor * b` in i32, converted to f32.
    unsafe fn minus_product(a: *const i32, factor: i32, b: *const i32) -> Self::V;
}

/// Work that is compiled once for each path.
pub trait Kernel {
    /// The result.
    type Out;
    /// Does the work. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// It may only be called through `Path::run`, which enables the target features.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}
