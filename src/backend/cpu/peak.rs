//! Measures the speed of this machine: its peak, in independent multiply-adds in registers, and the rates of the long
//! ops that plans count.

use std::time::{Duration, Instant};

use super::{
    Cpu,
    simd::{Kernel, Simd, math},
};
use crate::{
    backend::{
        Backend, DType, Device, DeviceId, Epilogue, Extent, Layer, Op, Precision, Rates, Values, arena::aligned, params,
    },
    error::Result,
};

/// The multiply-adds of one task, which take some milliseconds.
const MULTIPLY_ADDS: usize = 1 << 24;

/// Multiply-adds in `SUMS` independent sums: enough to hide their latency, and no more than there are registers, of
/// which a vector of the portable path takes several.
struct MultiplyAdds<const SUMS: usize>;

impl<const SUMS: usize> Kernel for MultiplyAdds<SUMS> {
    /// A number that depends on all sums, so that the compiler cannot remove any.
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: inside `Kernel::run`.
        unsafe {
            let (factor, term) = (S::splat(std::hint::black_box(0.999)), S::splat(std::hint::black_box(0.001)));
            let mut sums = [S::splat(1.0); SUMS];
            for _ in 0..MULTIPLY_ADDS / SUMS {
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
    /// The highest rate that this device's cores reached in f32, in floating-point operations per second, a
    /// multiply-add counted as two: the best of a few tries.
    pub fn measure_peak(&self) -> f64 {
        let tasks = self.pool.threads();
        let flops = (2 * MULTIPLY_ADDS * self.kernels.path.lanes() * tasks) as f64;
        let best = |run: &(dyn Fn() -> f32 + Sync)| {
            let once = || {
                let started = Instant::now();
                self.pool.run(tasks, |_| {
                    std::hint::black_box(run());
                });
                flops / started.elapsed().as_secs_f64()
            };
            (0..8).map(|_| once()).fold(0.0, f64::max)
        };
        best(&|| self.kernels.path.run(MultiplyAdds::<4>))
            .max(best(&|| self.kernels.path.run(MultiplyAdds::<8>)))
            .max(best(&|| self.kernels.path.run(MultiplyAdds::<16>)))
    }
}

/// How long one of the measurements continues once it has made [`CALLS`] calls.
const PATIENCE: Duration = Duration::from_millis(60);
/// The smallest number of calls of a measurement: the first one touches fresh memory and wakes the cores.
const CALLS: usize = 3;

/// Measures the rates of long ops on a device's cores: a matrix product and a convolution, a weighted sum that streams
/// through memory, and a copy to the host. Takes a quarter of a second.
pub fn measure_rates(cpu: Cpu) -> Result<Rates> {
    // The layers are those of Stable Diffusion 1.5, with enough images of 32x32 for every core.
    let (wide, channels, side) = (1280, 320, 32);
    let batch = (cpu.threads() / 4).clamp(1, 16);
    let rows = batch * side * side;
    let stream = stream_bytes();
    let device = Device::new(DeviceId::CPU, cpu);
    device.reserve(2 * aligned(4 * rows * wide) + 2 * aligned(stream))?;
    let backend: &dyn Backend = device.backend();

    let bytes = |elements: usize| 0.5_f32.to_le_bytes().repeat(elements);
    let (mut x, mut y) = (device.alloc(4 * rows * wide, DType::F32)?, device.alloc(4 * rows * wide, DType::F32)?);
    backend.write(&bytes(rows * wide), &mut x)?;
    let pack = |layer: Layer| {
        device.pack(layer, Precision::F32, Values::Data { dtype: DType::F32, bytes: &bytes(layer.elements().0) }, None)
    };
    let weight = pack(Layer::Linear { out: wide, k: wide })?;
    let e = &Epilogue::default();
    let p = params::Linear { rows: rows as u32, out: wide as u32, k: wide as u32 };
    let product = fastest(|| backend.run(&Op::Linear { p, x: &x, w: &weight, e }, None, &mut y))?;
    let weight = pack(Layer::Conv2d { out: channels, channels, kernel: 3, stride: 1, extent: Extent::Small })?;
    let p = params::Conv2d {
        batch: batch as u32,
        height: side as u32,
        width: side as u32,
        channels: channels as u32,
        out: channels as u32,
        kernel: 3,
        stride: 1,
        padding: 1,
        out_height: side as u32,
        out_width: side as u32,
    };
    let convolution = fastest(|| backend.run(&Op::Conv2d { p, x: &x, w: &weight, e }, None, &mut y))?;
    let work = 2.0 * rows as f64 * (wide * wide + 9 * channels * channels) as f64;

    let elements = stream / 4;
    let (mut from, mut to) = (device.alloc(stream, DType::F32)?, device.alloc(stream, DType::F32)?);
    let mut host = bytes(elements);
    backend.write(&host, &mut from)?;
    let sum = Op::ScaleAdd { p: params::ScaleAdd { elements: elements as u32 }, terms: &[(0.5, &from, 0)] };
    let streaming = fastest(|| backend.run(&sum, None, &mut to))?;
    let copying = fastest(|| backend.read(&to, &mut host))?;

    Ok(Rates {
        flops: work / (product + convolution),
        bandwidth: 2.0 * stream as f64 / streaming,
        link: stream as f64 / copying,
    })
}

/// The shortest of a few calls, in seconds.
fn fastest(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let (begun, mut calls, mut best) = (Instant::now(), 0, f64::INFINITY);
    while calls < CALLS || begun.elapsed() < PATIENCE {
        let started = Instant::now();
        call()?;
        best = best.min(started.elapsed().as_secs_f64());
        calls += 1;
    }
    Ok(best)
}

/// Half the bytes that do not fit into the caches: the size of the last one, within limits.
fn stream_bytes() -> usize {
    const MIB: usize = 1 << 20;
    let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
    let kib: Option<usize> = size.trim().strip_suffix('K').and_then(|kib| kib.parse().ok());
    kib.map_or(32 * MIB, |kib| (kib << 10).clamp(32 * MIB, 128 * MIB))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Convolution;

    #[test]
    fn long_ops_have_rates_of_the_order_of_the_peak() {
        let cpu = || Cpu::on(vec![super::super::threads::cores()[0]], Convolution::Direct).unwrap();
        let (rates, peak) = (measure_rates(cpu()).unwrap(), cpu().measure_peak());
        println!("{rates:?}, peak {peak:.2e}");
        // Other tests run at the same time, so the limits are wide.
        assert!(rates.flops > 0.001 * peak && rates.flops < 100.0 * peak, "{rates:?}, peak {peak:e}");
        assert!(rates.bandwidth > 1e8 && rates.bandwidth < 1e12, "{rates:?}");
        assert!(rates.link > 1e8 && rates.link < 1e12, "{rates:?}");
    }
}
