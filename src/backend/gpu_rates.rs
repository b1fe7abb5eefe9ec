//! Measures how fast a GPU is in long ops, for plans.

use std::time::{Duration, Instant};

use super::{
    Backend, DType, Device, Epilogue, Extent, Layer, Op, Precision, Rates, Values,
    arena::aligned,
    params::{Conv2d, Linear, ScaleAdd},
};
use crate::error::Result;

/// How long a measurement continues once its batches of calls are long enough.
const PATIENCE: Duration = Duration::from_millis(30);
/// A batch of calls that takes this many seconds shows the rate of long ops.
const LONG: f64 = 2e-3;

/// Measures a precision on a device that was opened for it: a matrix product and a convolution of Stable Diffusion 1.5, a
/// weighted sum that streams through memory, and a copy to the host, each of the smallest size that gives a stable
/// result. Takes a quarter of a second on a real GPU, and seconds on an emulated one.
///
/// # Errors
/// If the device has no room or fails.
pub fn measure(device: &Device, precision: Precision) -> Result<Rates> {
    let dtype = device.input_type(precision).expect("devices are measured in precisions that they have");
    const SIDE: u32 = 8;
    const WIDE: usize = 1280;
    const CHANNELS: usize = 320;
    const BATCHES: [u32; 3] = [1, 16, 256];
    const STREAMS: [usize; 3] = [1 << 20, 8 << 20, 64 << 20];
    let bytes = |batch: u32| (batch * SIDE * SIDE) as usize * WIDE * dtype.size();
    let (most, stream) = (bytes(BATCHES[2]), STREAMS[2]);
    device.reserve(2 * aligned(most) + 2 * aligned(stream))?;
    let backend: &dyn Backend = device.backend();
    let (mut x, mut y) = (device.alloc(most, dtype)?, device.alloc(most, dtype)?);
    let (mut from, mut to) = (device.alloc(stream, DType::F32)?, device.alloc(stream, DType::F32)?);
    let pack = |layer: Layer| {
        let bytes = vec![0; layer.elements().0 * dtype.size()];
        device.pack(layer, precision, Values::Data { dtype, bytes: &bytes }, None)
    };
    let (flat, square) = (
        pack(Layer::Linear { out: WIDE, k: WIDE })?,
        pack(Layer::Conv2d { out: CHANNELS, channels: CHANNELS, kernel: 3, stride: 1, extent: Extent::Large })?,
    );

    let mut flops = 0.0;
    for batch in BATCHES {
        // Zeros of every type: how long an op takes does not depend on values.
        backend.write(&vec![0; bytes(batch)], &mut x)?;
        // Everything that was enqueued is done once one element has been read.
        let settle = || backend.read(&x, &mut [0; 4]);
        let rows = batch * SIDE * SIDE;
        let e = &Epilogue::default();
        let p = Linear { rows, out: WIDE as u32, k: WIDE as u32 };
        let product = seconds(settle, || backend.run(&Op::Linear { p, x: &x, w: &flat, e }, None, &mut y))?;
        let channels = CHANNELS as u32;
        let p = Conv2d {
            batch,
            height: SIDE,
            width: SIDE,
            channels,
            out: channels,
            kernel: 3,
            stride: 1,
            padding: 1,
            out_height: SIDE,
            out_width: SIDE,
        };
        let convolution = seconds(settle, || backend.run(&Op::Conv2d { p, x: &x, w: &square, e }, None, &mut y))?;
        flops = 2.0 * f64::from(rows) * (WIDE * WIDE + 9 * CHANNELS * CHANNELS) as f64 / (product + convolution);
        if product + convolution > LONG {
            break;
        }
    }
    let (mut bandwidth, mut link) = (0.0, 0.0);
    for bytes in STREAMS {
        backend.write(&vec![0; bytes], &mut from)?;
        let settle = || backend.read(&from, &mut [0; 4]);
        let sum = Op::ScaleAdd { p: ScaleAdd { elements: (bytes / 4) as u32 }, terms: &[(0.5, &from, 0)] };
        let streaming = seconds(settle, || backend.run(&sum, None, &mut to))?;
        let mut host = vec![0; bytes];
        let copying = seconds(settle, || backend.read(&to, &mut host))?;
        (bandwidth, link) = (2.0 * bytes as f64 / streaming, bytes as f64 / copying);
        if streaming > LONG {
            break;
        }
    }
    Ok(Rates { flops, bandwidth, link })
}

/// The time of one call, in seconds, when several follow each other, after one call for warming up: the minimum of a
/// few tries, as other programs may use the device.
fn seconds(settle: impl Fn() -> Result<()>, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    settle()?;
    let (begun, mut calls, mut best) = (Instant::now(), 1, f64::INFINITY);
    while begun.elapsed() < PATIENCE {
        let started = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        settle()?;
        let elapsed = started.elapsed();
        best = best.min(elapsed.as_secs_f64() / f64::from(calls));
        if elapsed < PATIENCE / 4 {
            calls *= 2;
        }
    }
    Ok(best)
}
