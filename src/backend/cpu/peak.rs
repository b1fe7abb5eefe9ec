//! What this machine can do at most: independent multiply-adds in registers, on all cores of a device.

use std::time::Instant;

use super::{
    Cpu,
    simd::{Kernel, Simd, math},
};

/// Enough independent sums to keep two multiply-add units busy through their latency.
const SUMS: usize = 16;
/// Multiply-adds of each sum in one task: some milliseconds.
const ROUNDS: usize = 1 << 20;

struct MultiplyAdds;

impl Kernel for MultiplyAdds {
    /// A number that depends on all of them, so that none can be left out.
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: inside `Kernel::run`.
        unsafe {
            let (factor, term) = (S::splat(std::hint::black_box(0.999)), S::splat(std::hint::black_box(0.001)));
            let mut sums = [S::splat(1.0); SUMS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::mul_add(*sum, factor, term);
                }
            }
            let mut total = 0.0;
            for sum in sums {
                total += math::reduce_add::<S>(sum);
            }
            total
        }
    }
}

impl Cpu {
    /// The most floating-point operations per second that this device's cores were seen to do in f32, a multiply-add
    /// counted as two: the best of a few tries.
    pub fn measure_peak(&self) -> f64 {
        let tasks = self.pool.threads();
        let flops = (2 * SUMS * ROUNDS * self.path.lanes() * tasks) as f64;
        let once = || {
            let started = Instant::now();
            self.pool.run(tasks, |_| {
                std::hint::black_box(self.path.run(MultiplyAdds));
            });
            flops / started.elapsed().as_secs_f64()
        };
        (0..8).map(|_| once()).fold(0.0, f64::max)
    }
}
