//! How fast a GPU is, as plans see it: what long ops reach.

use std::time::{Duration, Instant};

use crate::{
    backend::{
        Backend, DType, Device, DeviceId, DeviceKind, Epilogue, Layer, Rates, Values,
        arena::aligned,
        params::{Conv2d, Linear, ScaleAdd},
    },
    error::Result,
};

/// Calls that are timed together, and how long a measurement goes on: none takes longer than a tenth of a second on a GPU
/// of a teraflop.
const PATIENCE: Duration = Duration::from_millis(40);

/// In `dtype`: a matrix product and a convolution of Stable Diffusion 1.5, a weighted sum that streams through memory,
/// and a copy to the host.
///
/// # Errors
/// If the GPU cannot be opened or fails.
pub fn measure(index: usize, dtype: DType) -> Result<Rates> {
    let (wide, channels, side, batch) = (1280, 320, 32, 4);
    let (rows, stream) = (batch * side * side, 64 << 20);
    let device = Device::new(DeviceId::new(DeviceKind::Cuda, index), super::open(index)?);
    let bytes = rows * wide * dtype.size();
    device.reserve(2 * aligned(bytes) + 2 * aligned(stream))?;
    let backend: &dyn Backend = device.backend();
    let (mut x, mut y) = (device.alloc(bytes, dtype)?, device.alloc(bytes, dtype)?);
    let (mut from, mut to) = (device.alloc(stream, DType::F32)?, device.alloc(stream, DType::F32)?);
    // Zeros of every type; how long an op takes does not depend on values.
    backend.write(&vec![0; bytes], &mut x)?;
    backend.write(&vec![0; stream], &mut from)?;
    let pack = |layer: Layer| {
        let bytes = vec![0; layer.elements().0 * dtype.size()];
        device.pack(layer, dtype, Values::Data { dtype, bytes: &bytes }, None)
    };
    // Whatever was enqueued has happened once one element is here.
    let settle = || backend.read(&x, &mut [0; 4]);

    let linear = Linear { rows: rows as u32, out: wide as u32, k: wide as u32 };
    let weight = pack(Layer::Linear { out: wide, k: wide })?;
    let product = seconds(settle, || backend.linear(linear, &x, &weight, &Epilogue::default(), &mut y))?;
    let (side, channels_u) = (side as u32, channels as u32);
    let conv2d = Conv2d {
        batch: batch as u32,
        height: side,
        width: side,
        channels: channels_u,
        out: channels_u,
        kernel: 3,
        stride: 1,
        padding: 1,
        out_height: side,
        out_width: side,
    };
    let weight = pack(Layer::Conv2d { out: channels, channels, kernel: 3 })?;
    let convolution = seconds(settle, || backend.conv2d(conv2d, &x, &weight, &Epilogue::default(), &mut y))?;
    let sum = ScaleAdd { elements: (stream / 4) as u32 };
    let streaming = seconds(settle, || backend.scale_add(sum, &[(0.5, &from, 0)], &mut to))?;
    let mut host = vec![0; stream / 4];
    let copying = seconds(settle, || backend.read(&from, &mut host))?;

    let work = 2.0 * rows as f64 * (wide * wide + 9 * channels * channels) as f64;
    Ok(Rates {
        flops: work / (product + convolution),
        bandwidth: 2.0 * stream as f64 / streaming,
        link: (stream / 4) as f64 / copying,
    })
}

/// What a call takes when several follow each other, after one that warms up.
fn seconds(settle: impl Fn() -> Result<()>, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    settle()?;
    let (mut calls, mut count) = (1, 0);
    let begun = Instant::now();
    loop {
        for _ in 0..calls {
            call()?;
        }
        settle()?;
        count += calls;
        let elapsed = begun.elapsed();
        if elapsed >= PATIENCE {
            return Ok(elapsed.as_secs_f64() / f64::from(count));
        }
        calls *= 2;
    }
}
