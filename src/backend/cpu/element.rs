//! The types in which packed weights are stored. Kernels compute in f32 and widen other types as they load them.

use bytemuck::Pod;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::simd::Simd;

/// The type of a stored element.
pub trait Element: Pod + Send + Sync {
    /// Reads `LANES` elements as f32.
    ///
    /// # Safety
    /// As [`Simd`]'s; `from` has `LANES` elements.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// Converts f32 elements, rounded to the nearest, ties to even.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// Converts elements to f32, which is exact.
    fn widen(from: &[Self], to: &mut [f32]);
}

// SAFETY of every block: the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load(from) }
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

// SAFETY of every block: the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load_f16(from) }
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

// SAFETY of every block: the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        unsafe { S::load_bf16(from) }
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}
