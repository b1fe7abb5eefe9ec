//! Ops that read one position at a time: activations, sums, embedding, upsampling, concatenation.

use half::{bf16, f16};

use super::{
    gemm::{load_up_to, store_up_to},
    memory::Parts,
    pack::CpuWeight,
    simd::{Kernel, Path, Simd, math},
    threads::Pool,
};
use crate::backend::{
    Activation, DType,
    params::{Activate, AddChannels, Concat, Embedding, Upsample},
};

/// The number of elements that one task computes.
const TASK: usize = 1 << 14;

/// Divides `out` into rows of `width`, about [`TASK`] elements at a time, and calls `work(first row, rows)`.
fn by_rows<T: Send>(pool: &Pool, width: usize, out: &mut [T], work: impl Fn(usize, &mut [T]) + Sync) {
    let rows = out.len() / width;
    let step = (TASK / width).max(1);
    let out = Parts::new(out);
    pool.run(rows.div_ceil(step), |task| {
        let count = step.min(rows - task * step);
        // SAFETY: each stretch of rows is one task's.
        work(task * step, unsafe { out.part(task * step * width, count * width) });
    });
}

/// `out = activation(x)`; GEGLU halves the channels.
pub fn activate(path: Path, pool: &Pool, p: Activate, activation: Activation, x: &[f32], out: &mut [f32]) {
    let channels = p.channels as usize;
    by_rows(pool, channels, out, |first, out| {
        for (row, out) in out.chunks_exact_mut(channels).enumerate() {
            let row = first + row;
            let (x, gate) = match activation {
                Activation::Geglu => x[row * 2 * channels..][..2 * channels].split_at(channels),
                _ => (&x[row * channels..][..channels], &[][..]),
            };
            path.run(ActivateRow { activation, x, gate, out });
        }
    });
}

struct ActivateRow<'a> {
    activation: Activation,
    x: &'a [f32],
    gate: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for ActivateRow<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for column in (0..self.out.len()).step_by(S::LANES) {
            let width = S::LANES.min(self.out.len() - column);
            // SAFETY: inside `Kernel::run`; slices are checked.
            unsafe {
                let x = load_up_to::<S>(&self.x[column..], width);
                let value = if self.activation == Activation::Geglu {
                    S::mul(x, math::gelu::<S>(load_up_to::<S>(&self.gate[column..], width)))
                } else {
                    math::activate::<S>(self.activation, x)
                };
                store_up_to::<S>(value, self.out[column..].as_mut_ptr(), width);
            }
        }
    }
}

/// `out = x + per_channel`, where `per_channel` has one row for each image, or one row for all.
pub fn add_channels(pool: &Pool, p: AddChannels, x: &[f32], per_channel: &[f32], out: &mut [f32]) {
    let (pixels, channels) = (p.pixels as usize, p.channels as usize);
    by_rows(pool, channels, out, |first, out| {
        for (row, out) in out.chunks_exact_mut(channels).enumerate() {
            let row = first + row;
            let image = if p.per_channel_rows == 1 { 0 } else { row / pixels };
            let add = &per_channel[image * channels..][..channels];
            for ((out, x), add) in out.iter_mut().zip(&x[row * channels..]).zip(add) {
                *out = x + add;
            }
        }
    });
}

/// `out = sum of scale * term`, in the order of the terms.
pub fn scale_add(path: Path, pool: &Pool, terms: &[(f32, &[f32])], out: &mut [f32]) {
    by_rows(pool, 1, out, |first, out| {
        path.run(ScaleAddPart { terms, first, out });
    });
}

struct ScaleAddPart<'a> {
    terms: &'a [(f32, &'a [f32])],
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for ScaleAddPart<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for i in (0..self.out.len()).step_by(S::LANES) {
            let width = S::LANES.min(self.out.len() - i);
            // SAFETY: inside `Kernel::run`; slices are checked.
            unsafe {
                let mut sum = S::zero();
                for (n, (scale, x)) in self.terms.iter().enumerate() {
                    let x = load_up_to::<S>(&x[self.first + i..], width);
                    sum = if n == 0 { S::mul(S::splat(*scale), x) } else { S::mul_add(S::splat(*scale), x, sum) };
                }
                store_up_to::<S>(sum, self.out[i..].as_mut_ptr(), width);
            }
        }
    }
}

/// `out[text, token] = table[id] + positions[token]`.
pub fn embedding(pool: &Pool, p: Embedding, ids: &[u32], table: &CpuWeight, positions: &CpuWeight, out: &mut [f32]) {
    let (tokens, channels) = (p.tokens as usize, p.channels as usize);
    by_rows(pool, channels, out, |first, out| {
        let mut position = vec![0.0; channels];
        for (row, out) in out.chunks_exact_mut(channels).enumerate() {
            let row = first + row;
            table.weight.read(ids[row] as usize * channels, out);
            positions.weight.read(row % tokens * channels, &mut position);
            for (out, position) in out.iter_mut().zip(&position) {
                *out += position;
            }
        }
    });
}

/// Each output pixel is the input pixel `floor(y * height / out_height)`, likewise for x, as PyTorch's `nearest`.
pub fn upsample2x(pool: &Pool, p: Upsample, x: &[f32], out: &mut [f32]) {
    let (height, width, channels) = (p.height as usize, p.width as usize, p.channels as usize);
    let (out_height, out_width) = (p.out_height as usize, p.out_width as usize);
    by_rows(pool, channels, out, |first, out| {
        for (pixel, out) in out.chunks_exact_mut(channels).enumerate() {
            let pixel = first + pixel;
            let (image, oy, ox) = (pixel / (out_width * out_height), pixel / out_width % out_height, pixel % out_width);
            let from = (image * height + oy * height / out_height) * width + ox * width / out_width;
            out.copy_from_slice(&x[from * channels..][..channels]);
        }
    });
}

/// Concatenates two tensors along the channels.
pub fn concat_channels(pool: &Pool, p: Concat, a: &[f32], b: &[f32], out: &mut [f32]) {
    let (left, right) = (p.left as usize, p.right as usize);
    by_rows(pool, left + right, out, |first, out| {
        for (row, out) in out.chunks_exact_mut(left + right).enumerate() {
            let row = first + row;
            out[..left].copy_from_slice(&a[row * left..][..left]);
            out[left..].copy_from_slice(&b[row * right..][..right]);
        }
    });
}

/// Converts elements to f32, and then to the other type, rounded to the nearest, ties to even.
pub fn cast(from: DType, x: &[u8], to: DType, out: &mut [u8]) {
    let values = x.chunks_exact(from.size()).map(|x| match from {
        DType::F16 => f16::from_le_bytes([x[0], x[1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([x[0], x[1]]).to_f32(),
        DType::F32 | DType::U32 => f32::from_le_bytes([x[0], x[1], x[2], x[3]]),
    });
    for (value, out) in values.zip(out.chunks_exact_mut(to.size())) {
        match to {
            DType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            DType::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F32 | DType::U32 => out.copy_from_slice(&value.to_le_bytes()),
        }
    }
}
