//! One source for every instruction set: kernels are written once over [`Simd`] and compiled for each [`Path`].
//!
//! A [`Kernel`]'s `run` is `#[inline(always)]` down to the intrinsics, so that all of it is compiled inside one
//! function that has the path's target features enabled.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
mod portable;
mod vector;

use std::fmt;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;
pub use vector::{Kernel, Simd};

/// An instruction set that the kernels are compiled for. Part of the numerics class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors with fused multiply-add and loads of f16.
    Avx2,
    /// The instruction set that every machine has.
    Portable,
}

impl Path {
    /// All paths, best first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// Whether this machine has every feature that the functions of this path are compiled with.
    pub fn is_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && Self::Avx2.is_here()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// The path's name in numerics classes and in `SDSHARD_CPU_PATH`.
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

    /// The number of f32 lanes of one vector.
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

    /// Runs a kernel compiled for this path. The machine must support the path: [`Cpu::new`](super::Cpu::new) has
    /// checked it.
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
