//! The instructions that multiply words, and which of them this machine has.

use super::{dot::Dot, vectors::Vectors};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::simd::{Avx2, Avx512};
use crate::backend::{
    Stored,
    cpu::simd::{Path, Portable, Simd},
};

/// The instructions that multiply the words of one stored type on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// int8 by tiles of AMX.
    AmxInt8,
    /// int8 by AVX-512 VNNI.
    Vnni512,
    /// int8 by multiply-adds of 16-bit integers in AVX-512.
    Madd512,
    /// int8 by AVX-VNNI.
    Vnni256,
    /// int8 by multiply-adds of 16-bit integers in AVX2.
    Madd256,
    /// int8 in arrays.
    PortableInt8,
    /// bf16 by AVX-512 BF16.
    Bf16x512,
    /// bf16 by f32 multiply-adds in AVX-512, with the same bits.
    Widened512,
    /// bf16 by f32 multiply-adds in AVX2.
    Widened256,
    /// bf16 in arrays.
    PortableBf16,
}

/// Work that is compiled once for each unit.
pub trait NarrowKernel {
    /// Does the work. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// It may only be called through [`Unit::run`], which enables the target features.
    unsafe fn run<S: Simd, D: Dot>(self);
}

impl Unit {
    /// All units, for each path the best first.
    pub const ALL: [Self; 10] = [
        Self::AmxInt8,
        Self::Vnni512,
        Self::Madd512,
        Self::Vnni256,
        Self::Madd256,
        Self::PortableInt8,
        Self::Bf16x512,
        Self::Widened512,
        Self::Widened256,
        Self::PortableBf16,
    ];

    /// The best unit of this machine for a path and a type.
    ///
    /// # Panics
    /// If the type is neither int8 nor bf16.
    pub fn best(path: Path, stored: Stored) -> Self {
        assert!(matches!(stored, Stored::Int8 | Stored::BF16), "a narrow type");
        let fits = |unit: &Self| unit.path() == path && unit.is_int8() == (stored == Stored::Int8) && unit.is_here();
        Self::ALL.into_iter().find(fits).expect("each path has a unit without further features")
    }

    /// The path whose panels it reads.
    pub const fn path(self) -> Path {
        match self {
            Self::AmxInt8 | Self::Vnni512 | Self::Madd512 | Self::Bf16x512 | Self::Widened512 => Path::Avx512,
            Self::Vnni256 | Self::Madd256 | Self::Widened256 => Path::Avx2,
            Self::PortableInt8 | Self::PortableBf16 => Path::Portable,
        }
    }

    /// Whether words are four int8, or two bf16.
    pub const fn is_int8(self) -> bool {
        !matches!(self, Self::Bf16x512 | Self::Widened512 | Self::Widened256 | Self::PortableBf16)
    }

    /// Whether this machine has the instructions.
    pub fn is_here(self) -> bool {
        self.path().is_here()
            && match self {
                #[cfg(target_arch = "x86_64")]
                Self::AmxInt8 => is_x86_feature_detected!("avx512vnni") && super::amx::is_here(),
                #[cfg(target_arch = "x86_64")]
                Self::Vnni512 => is_x86_feature_detected!("avx512vnni"),
                #[cfg(target_arch = "x86_64")]
                Self::Vnni256 => is_x86_feature_detected!("avxvnni"),
                #[cfg(target_arch = "x86_64")]
                Self::Bf16x512 => is_x86_feature_detected!("avx512bf16"),
                _ => true,
            }
    }

    /// Rows of a tile.
    pub const fn rows(self) -> usize {
        match self {
            Self::AmxInt8 => 32,
            Self::Vnni512 | Self::Madd512 | Self::Bf16x512 | Self::Widened512 => 12,
            Self::Vnni256 | Self::Madd256 | Self::Widened256 => 6,
            Self::PortableInt8 | Self::PortableBf16 => 2,
        }
    }

    /// Runs a kernel compiled for this unit. The machine must have it.
    pub fn run<K: NarrowKernel>(self, kernel: K) {
        debug_assert!(self.is_here());
        match self {
            // SAFETY: the machine has the features: `Unit::best` asked.
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 => unsafe { x86::amx_int8(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Vnni512 => unsafe { x86::vnni512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Madd512 => unsafe { x86::madd512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Vnni256 => unsafe { x86::vnni256(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Madd256 => unsafe { x86::madd256(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Bf16x512 => unsafe { x86::bf16x512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Widened512 => unsafe { x86::widened512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Widened256 => unsafe { x86::widened256(kernel) },
            // SAFETY: needs no feature.
            Self::PortableBf16 => unsafe { kernel.run::<Portable, Vectors<super::vectors::Bf16Array>>() },
            // SAFETY: needs no feature.
            _ => unsafe { kernel.run::<Portable, Vectors<super::vectors::Int8Array>>() },
        }
    }
}

/// One function with the target features of each unit, into which the kernel is inlined.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::backend::cpu::narrow::{amx::Amx, vectors::x86::*};

    macro_rules! compiled_for {
        ($($name:ident, $features:literal, $simd:ty, $dot:ty;)*) => {$(
            /// # Safety
            /// The machine must have the features.
            #[target_feature(enable = $features)]
            pub unsafe fn $name<K: NarrowKernel>(kernel: K) {
                // SAFETY: the features are on here, and everything below is inlined into this function.
                unsafe { kernel.run::<$simd, $dot>() }
            }
        )*};
    }
    compiled_for! {
        amx_int8, "avx512f,avx512dq,avx512bw,avx512vnni,avx2,fma", Avx512, Amx;
        vnni512, "avx512f,avx512dq,avx512bw,avx512vnni,avx2,fma", Avx512, Vectors<Vnni512>;
        madd512, "avx512f,avx512dq,avx512bw,avx2,fma", Avx512, Vectors<Madd512>;
        vnni256, "avx2,fma,avxvnni", Avx2, Vectors<Vnni256>;
        madd256, "avx2,fma", Avx2, Vectors<Madd256>;
        bf16x512, "avx512f,avx512dq,avx512bw,avx512bf16,avx2,fma", Avx512, Vectors<Bf16x512>;
        widened512, "avx512f,avx512dq,avx512bw,avx2,fma", Avx512, Vectors<Widened512>;
        widened256, "avx2,fma", Avx2, Vectors<Widened256>;
    }
}
