//! Functions over vectors, the same source on every path.

use std::f32::consts::LN_2;

use super::vector::Simd;
use crate::backend::Activation;

/// `e^x`, relative error below 3e-7; 0 below -87.3, and e^88 above 88.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's contract is the trait's.
    unsafe {
        // The limits are the first operands, because a NaN in the second one is kept.
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.3), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 is split into two parts, the first with so few bits that n times it is exact.
        let r = S::mul_add(n, S::splat(-0.693_359_4), x);
        let r = S::mul_add(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::mul_add(p, r, S::splat(c));
        }
        S::scale(p, n)
    }
}

/// Coefficients of [`exp2`] for a relative error below 3e-7, of the Taylor series.
pub const EXACT: [f32; 7] = [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, LN_2, 1.0];
/// Coefficients of [`exp2`] for a relative error below 5e-5, which is less than a step of 8-bit integers.
pub const COARSE: [f32; 5] = [0.009_618_1, 0.055_504_1, 0.240_226_5, LN_2, 1.0];

/// `2^x` for `x <= 0`, as exact as the coefficients; 2^-126 below -126.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn exp2<S: Simd, const N: usize>(x: S::V, coefficients: [f32; N]) -> S::V {
    // SAFETY: the caller's contract is the trait's.
    unsafe {
        // The limit is the first operand, because a NaN in the second one is kept.
        let x = S::max(S::splat(-126.0), x);
        let n = S::round(x);
        let r = S::sub(x, n);
        let mut p = S::splat(coefficients[0]);
        for &c in &coefficients[1..] {
            p = S::mul_add(p, r, S::splat(c));
        }
        S::scale(p, n)
    }
}

/// `1 / (1 + e^-x)`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's contract is the trait's.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::zero(), x))))
    }
}

/// The error function, absolute error below 5e-7. Abramowitz and Stegun 7.1.26.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's contract is the trait's.
    unsafe {
        let one = S::splat(1.0);
        let magnitude = S::max(x, S::sub(S::zero(), x));
        let t = S::div(one, S::mul_add(magnitude, S::splat(0.327_591_1), one));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
            p = S::mul_add(p, t, S::splat(c));
        }
        let tail = S::mul(S::mul(p, t), exp::<S>(S::mul(S::sub(S::zero(), x), x)));
        S::copy_sign(S::sub(one, tail), x)
    }
}

/// `x * Phi(x)`.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's contract is the trait's.
    unsafe {
        let phi = S::add(S::splat(1.0), erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2))));
        S::mul(S::mul(S::splat(0.5), x), phi)
    }
}

/// Any activation except GEGLU, which has two inputs.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn activate<S: Simd>(activation: Activation, x: S::V) -> S::V {
    // SAFETY: the caller's contract is the trait's.
    unsafe {
        match activation {
            Activation::None | Activation::Geglu => x,
            Activation::Silu => S::mul(x, sigmoid::<S>(x)),
            Activation::QuickGelu => S::mul(x, sigmoid::<S>(S::mul(S::splat(1.702), x))),
            Activation::Gelu => gelu::<S>(x),
            Activation::Relu => S::max(S::zero(), x),
        }
    }
}

/// Sum of the lanes, in pairs: lane i and lane i + half.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
pub unsafe fn reduce_add<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0.0; 16];
    // SAFETY: no path has more than 16 lanes.
    unsafe { S::store(v, lanes.as_mut_ptr()) };
    let mut half = S::LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::{Kernel, Path};

    struct Map<'a>(&'a [f32], fn(f64) -> f64, Which);
    #[derive(Clone, Copy)]
    enum Which {
        Exp,
        Exp2,
        Erf,
        Gelu,
        Silu,
    }

    impl Kernel for Map<'_> {
        /// The largest error, relative to the larger of the result and 1.
        type Out = f64;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> f64 {
            let mut worst = 0f64;
            for &x in self.0 {
                // SAFETY: inside `Kernel::run`.
                let y = unsafe {
                    let v = S::splat(x);
                    reduce_add::<S>(match self.2 {
                        Which::Exp => exp::<S>(v),
                        Which::Exp2 => exp2::<S, _>(v, EXACT),
                        Which::Erf => erf::<S>(v),
                        Which::Gelu => gelu::<S>(v),
                        Which::Silu => activate::<S>(Activation::Silu, v),
                    }) / S::LANES as f32
                };
                let want = (self.1)(x as f64);
                worst = worst.max((y as f64 - want).abs() / want.abs().max(1.0));
            }
            worst
        }
    }

    /// erf in f64, by its Taylor series and its continued fraction.
    fn erf_exact(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            2.0 / std::f64::consts::PI.sqrt() * sum
        } else {
            let mut f = 0.0;
            for n in (1..200).rev() {
                f = n as f64 / 2.0 / (x.abs() + f);
            }
            (1.0 - (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + f)).copysign(x)
        }
    }

    #[test]
    fn functions_are_as_exact_as_they_say_on_every_path() {
        let xs: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 0.004).collect();
        for path in Path::ALL.into_iter().filter(|path| path.is_here()) {
            assert!(path.run(Map(&xs, f64::exp, Which::Exp)) < 3e-7, "{path} exp");
            let powers: Vec<f32> = (0..30_000).map(|i| i as f32 * -0.0042).collect();
            assert!(path.run(Map(&powers, f64::exp2, Which::Exp2)) < 3e-7, "{path} exp2");
            assert!(path.run(Map(&xs, erf_exact, Which::Erf)) < 5e-7, "{path} erf");
            let gelu = |x: f64| 0.5 * x * (1.0 + erf_exact(x / 2f64.sqrt()));
            assert!(path.run(Map(&xs, gelu, Which::Gelu)) < 5e-7, "{path} gelu");
            assert!(path.run(Map(&xs, |x| x / (1.0 + (-x).exp()), Which::Silu)) < 5e-7, "{path} silu");
        }
    }

    #[test]
    fn the_exponential_has_no_surprise_at_its_ends() {
        for path in Path::ALL.into_iter().filter(|path| path.is_here()) {
            assert!(path.run(Map(&[-1e30, -100.0, f32::NEG_INFINITY], |_| 0.0, Which::Exp)) < 1e-37, "{path}");
        }
    }
}
