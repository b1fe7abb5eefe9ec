//! Group norm and layer norm.
//!
//! Group norm reads a picture twice. The first time, chunks of [`NORM_CHUNK`] pixels give a mean and a sum of squared
//! deviations for each group, by two passes over a chunk while it is in the cache (one pass loses digits when the mean
//! is large); chunks are combined in order, in f64 (Chan et al. 1979). The second time, each element is one
//! multiply-add.

use super::{
    cost::NORM_CHUNK,
    gemm::{load_up_to, store_up_to},
    memory::Parts,
    pack::CpuWeight,
    simd::{Kernel, Path, Simd, math},
    threads::Pool,
};
use crate::backend::{
    Activation,
    params::{GroupNorm, LayerNorm},
};

/// `out = group_norm(x) * scale + shift`, followed by SiLU if `p` says so. x and out are `[batch, pixels, channels]`.
pub fn group_norm(
    path: Path,
    pool: &Pool,
    p: GroupNorm,
    x: &[f32],
    w: &CpuWeight,
    scratch: &mut [f32],
    out: &mut [f32],
) {
    let (batch, pixels, channels) = (p.batch as usize, p.pixels as usize, p.channels as usize);
    let (groups, chunks) = (p.groups as usize, pixels.div_ceil(NORM_CHUNK));
    let (statistics, rest) = scratch.split_at_mut(batch * chunks * groups * 2);
    let affine = &mut rest[..batch * channels * 2];

    let range = |task: usize| {
        let (image, chunk) = (task / chunks, task % chunks);
        let start = image * pixels + chunk * NORM_CHUNK;
        start * channels..(start + NORM_CHUNK.min(pixels - chunk * NORM_CHUNK)) * channels
    };
    let parts = Parts::new(statistics);
    pool.run(batch * chunks, |task| {
        // SAFETY: each chunk is one task's.
        let to = unsafe { parts.part(task * groups * 2, groups * 2) };
        path.run(Statistics { x: &x[range(task)], channels, to });
    });

    for image in 0..batch {
        for group in 0..groups {
            let (mut count, mut mean, mut squares) = (0f64, 0f64, 0f64);
            for chunk in 0..chunks {
                let at = ((image * chunks + chunk) * groups + group) * 2;
                let added = (NORM_CHUNK.min(pixels - chunk * NORM_CHUNK) * (channels / groups)) as f64;
                let delta = statistics[at] as f64 - mean;
                mean += delta * added / (count + added);
                squares += statistics[at + 1] as f64 + delta * delta * count * added / (count + added);
                count += added;
            }
            let factor = 1.0 / (squares / count + p.eps as f64).sqrt();
            for channel in group * (channels / groups)..(group + 1) * (channels / groups) {
                let scale = factor * w.weight.f32()[channel] as f64;
                let shift = w.bias.as_ref().map_or(0.0, |bias| bias[channel] as f64);
                affine[(image * 2) * channels + channel] = scale as f32;
                affine[(image * 2 + 1) * channels + channel] = (shift - mean * scale) as f32;
            }
        }
    }

    let out = Parts::new(out);
    pool.run(batch * chunks, |task| {
        let range = range(task);
        let (scale, shift) = affine[task / chunks * 2 * channels..][..2 * channels].split_at(channels);
        let activation = if p.silu == 1 { Activation::Silu } else { Activation::None };
        // SAFETY: each chunk is one task's.
        let out = unsafe { out.part(range.start, range.len()) };
        path.run(Scale { x: &x[range], scale, shift, activation, out });
    });
}

/// Computes the mean and the sum of squared deviations of each group over a chunk `[pixels, channels]`.
struct Statistics<'a> {
    x: &'a [f32],
    channels: usize,
    to: &'a mut [f32],
}

impl Kernel for Statistics<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (channels, groups) = (self.channels, self.to.len() / 2);
        let (size, pixels) = (channels / groups, self.x.len() / channels);
        let count = (pixels * size) as f32;
        // Pixels are summed first, for a vector of channels at a time, and then the few channels of a group.
        for (group, to) in self.to.chunks_exact_mut(2).enumerate() {
            let columns = || (group * size..(group + 1) * size).step_by(S::LANES);
            let mut sum = 0.0;
            for column in columns() {
                let width = S::LANES.min((group + 1) * size - column);
                // SAFETY: inside `Kernel::run`; slices are checked.
                sum += unsafe {
                    let mut sums = S::zero();
                    for pixel in self.x.chunks_exact(channels) {
                        sums = S::add(sums, load_up_to::<S>(&pixel[column..], width));
                    }
                    math::reduce_add::<S>(sums)
                };
            }
            let mean = sum / count;
            let mut squares = 0.0;
            for column in columns() {
                let width = S::LANES.min((group + 1) * size - column);
                // SAFETY: as above.
                squares += unsafe {
                    let mut sums = S::zero();
                    for pixel in self.x.chunks_exact(channels) {
                        let deviation = S::sub(load_up_to::<S>(&pixel[column..], width), S::splat(mean));
                        sums = S::mul_add(deviation, deviation, sums);
                    }
                    let mut lanes = [0f32; 16];
                    S::store(sums, lanes.as_mut_ptr());
                    // Lanes beyond the group contain the mean's own square.
                    lanes[width..].fill(0.0);
                    lanes.iter().sum::<f32>()
                };
            }
            to.copy_from_slice(&[mean, squares]);
        }
    }
}

/// `out = activation(x * scale + shift)`, scale and shift per channel.
struct Scale<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.scale.len();
        for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
            for column in (0..channels).step_by(S::LANES) {
                let width = S::LANES.min(channels - column);
                // SAFETY: inside `Kernel::run`; slices are checked.
                unsafe {
                    let scale = load_up_to::<S>(&self.scale[column..], width);
                    let shift = load_up_to::<S>(&self.shift[column..], width);
                    let value = S::mul_add(load_up_to::<S>(&x[column..], width), scale, shift);
                    store_up_to::<S>(math::activate::<S>(self.activation, value), out[column..].as_mut_ptr(), width);
                }
            }
        }
    }
}

/// `out = layer_norm(x) * scale + shift`, row by row.
pub fn layer_norm(path: Path, pool: &Pool, p: LayerNorm, x: &[f32], w: &CpuWeight, out: &mut [f32]) {
    const ROWS: usize = 16;
    let (rows, channels) = (p.rows as usize, p.channels as usize);
    let out = Parts::new(out);
    pool.run(rows.div_ceil(ROWS), |task| {
        let count = ROWS.min(rows - task * ROWS);
        let (start, len) = (task * ROWS * channels, count * channels);
        // SAFETY: each stretch of rows is one task's.
        let out = unsafe { out.part(start, len) };
        path.run(LayerNormRows { x: &x[start..start + len], channels, eps: p.eps, w, out });
    });
}

struct LayerNormRows<'a> {
    x: &'a [f32],
    channels: usize,
    eps: f32,
    w: &'a CpuWeight,
    out: &'a mut [f32],
}

impl Kernel for LayerNormRows<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.channels;
        let columns = || (0..channels).step_by(S::LANES).map(|column| (column, S::LANES.min(channels - column)));
        for (x, out) in self.x.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
            // SAFETY: inside `Kernel::run`; slices are checked.
            unsafe {
                let mut sums = S::zero();
                for (column, width) in columns() {
                    sums = S::add(sums, load_up_to::<S>(&x[column..], width));
                }
                let mean = math::reduce_add::<S>(sums) / channels as f32;
                let mut sums = S::zero();
                let mut tail = 0.0;
                for (column, width) in columns() {
                    if width == S::LANES {
                        let deviation = S::sub(S::load(x[column..].as_ptr()), S::splat(mean));
                        sums = S::mul_add(deviation, deviation, sums);
                    } else {
                        tail = x[column..].iter().map(|x| (x - mean) * (x - mean)).sum();
                    }
                }
                let variance = (math::reduce_add::<S>(sums) + tail) / channels as f32;
                let factor = 1.0 / (variance + self.eps).sqrt();
                for (column, width) in columns() {
                    let value = S::mul(S::sub(load_up_to::<S>(&x[column..], width), S::splat(mean)), S::splat(factor));
                    let mut value = S::mul(value, load_up_to::<S>(&self.w.weight.f32()[column..], width));
                    if let Some(bias) = &self.w.bias {
                        value = S::add(value, load_up_to::<S>(&bias[column..], width));
                    }
                    store_up_to::<S>(value, out[column..].as_mut_ptr(), width);
                }
            }
        }
    }
}
