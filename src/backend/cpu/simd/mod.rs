//! One source for every instruction set: kernels are written once over [`Simd`] and compiled for each [`Path`].
//!
//! A [`Kernel`]'s `run` is `#[inline(always)]` down to the intrinsics, so that all of it is compiled inside one function
//! that has the path's target features switched on.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
mod portable;

use std::fmt;

/// A vector of f32 and what kernels do with it. One lane never looks at another but in the three `reduce`s of
/// [`math`], which go through memory in lane order.
///
/// # Safety
/// Methods may only be called where the path's target features are switched on: inside [`Kernel::run`].
#[allow(clippy::missing_safety_doc, reason = "the trait's own section speaks for every method")]
pub trait Simd: Copy {
    /// Lanes of f32.
    const LANES: usize;
    /// Rows of the matrix micro-kernel's tile; its width is two vectors.
    const ROWS: usize;
    /// A vector.
    type V: Copy;

    /// All lanes zero.
    unsafe fn zero() -> Self::V;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` elements.
    unsafe fn load(from: *const f32) -> Self::V;
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
    /// `2^a` for integral a from -126 to 127.
    unsafe fn exp2_integral(a: Self::V) -> Self::V;
    /// `|magnitude|` with the sign of `sign`.
    unsafe fn copy_sign(magnitude: Self::V, sign: Self::V) -> Self::V;
}

/// Work that is compiled once for each path.
pub trait Kernel {
    /// What it gives back.
    type Out;
    /// Does it. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// Only to be called through `Path::run`, which has the target features on.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// An instruction set that the kernels are compiled for. Part of the numerics class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// What every machine has.
    Portable,
}

impl Path {
    /// All of them, best first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this machine has every feature that the functions of this path are compiled with.
    pub fn is_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") && Self::Avx2.is_here()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// Its word in numerics classes and in `SDSHARD_CPU_PATH`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Output columns in one packed panel: two vectors.
    pub const fn panel(self) -> usize {
        2 * self.lanes()
    }

    /// Lanes of one vector.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Avx2 | Self::Portable => 8,
        }
    }

    /// Rows of the matrix micro-kernel's tile.
    pub const fn rows(self) -> usize {
        match self {
            Self::Avx512 => 12,
            Self::Avx2 => 6,
            Self::Portable => 2,
        }
    }

    /// Runs a kernel compiled for this path, which must be here: [`Cpu::new`](super::Cpu::new) has asked.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        debug_assert!(self.is_here());
        match self {
            // SAFETY: only a `Cpu` runs kernels, and it is made after `is_here` said that the machine has the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::run(kernel) },
            // SAFETY: needs no feature.
            _ => unsafe { kernel.run::<portable::Portable>() },
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
