//! What each op means, in f64, written from its definition.

use sdshard::backend::Activation::{self, *};

use super::cases::{Data, EPS, Host, HostWeight, Op, Tail};

/// The expected output of `op`.
pub fn reference(op: &Op, data: &Data) -> Vec<f64> {
    let x = &data.tensors;
    match *op {
        Op::Linear { tail, .. } => {
            let w = &data.weights[0];
            let out = w.weight.len() / x[0].shape.channels();
            let sums = rows(&x[0]).flat_map(|row| w.weight.chunks(row.len()).map(move |w| dot(row, w)));
            finish(sums.collect(), out, w, tail, x)
        }
        Op::Conv2d { out, tail, .. } => finish(conv2d(op, data), out, &data.weights[0], tail, x),
        Op::Attention { heads, causal, .. } => attention(&x[0], &x[1], &x[2], heads, causal),
        Op::GroupNorm { groups, activation, .. } => {
            let normed = group_norm(&x[0], &data.weights[0], groups);
            normed.into_iter().map(|y| apply(activation, y)).collect()
        }
        Op::LayerNorm { .. } => {
            let w = &data.weights[0];
            rows(&x[0]).flat_map(|row| affine(&normalise(row), w, 0)).collect()
        }
        Op::Embedding { channels, .. } => {
            let (table, positions) = (&data.weights[0].weight, &data.weights[1].weight);
            let token = |(position, &id): (usize, &u32)| {
                let row = |w: &[f32], row: usize| w[row * channels..][..channels].to_vec();
                let pairs = row(table, id as usize).into_iter().zip(row(positions, position));
                pairs.map(|(a, b)| f64::from(a) + f64::from(b)).collect::<Vec<_>>()
            };
            data.ids.iter().flat_map(|text| text.iter().enumerate().flat_map(token)).collect()
        }
        Op::Upsample2x { to: [height, width], .. } => {
            let (h, w, channels) = (x[0].dim(1), x[0].dim(2), x[0].dim(3));
            let mut out = Vec::new();
            for image in x[0].values.chunks(h * w * channels) {
                for y in 0..height {
                    for column in 0..width {
                        // The input pixel under the output pixel's upper left corner.
                        let from = (y as f64 * h as f64 / height as f64) as usize * w
                            + (column as f64 * w as f64 / width as f64) as usize;
                        out.extend(image[from * channels..][..channels].iter().map(|&x| f64::from(x)));
                    }
                }
            }
            out
        }
        Op::ConcatChannels { .. } => {
            let both = rows(&x[0]).zip(rows(&x[1]));
            both.flat_map(|(left, right)| left.iter().chain(right)).map(|&x| f64::from(x)).collect()
        }
        Op::Activate { activation, .. } => rows(&x[0])
            .flat_map(|row| activate(activation, &row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()))
            .collect(),
        Op::Add { .. } => sum_of(&[(1.0, &x[0].values), (1.0, &x[1].values)]),
        Op::AddChannels { .. } => {
            let wide = f64s(&x[0].values);
            plus_channels(wide, &x[1], x[0].values.len() / x[0].dim(0))
        }
        Op::ScaleAdd { shape: [rows, width], terms } => {
            let part = |(&(scale, row), x): (&(f32, usize), &'_ Host)| {
                (scale, x.values[row * width..][..rows * width].to_vec())
            };
            let parts: Vec<_> = terms.iter().zip(x).map(part).collect();
            sum_of(&parts.iter().map(|(scale, x)| (*scale, &x[..])).collect::<Vec<_>>())
        }
        Op::Stack { .. } => x.iter().flat_map(|x| f64s(&x.values)).collect(),
    }
}

/// Of one element. GEGLU looks at two: see [`activate`].
pub fn apply(activation: Activation, x: f64) -> f64 {
    match activation {
        None => x,
        Silu => x / (1.0 + (-x).exp()),
        QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Gelu => 0.5 * x * erfc(-x / 2f64.sqrt()),
        Relu => x.max(0.0),
        Geglu => unreachable!("GEGLU is not of one element"),
    }
}

/// `1 - erf(x)`: the series near zero, the continued fraction elsewhere. Abramowitz and Stegun 7.1.5, 7.1.14.
fn erfc(x: f64) -> f64 {
    if x.abs() < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    let fraction = (1..150).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (x.abs() + f));
    let tail = (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction);
    if x > 0.0 { tail } else { 2.0 - tail }
}

/// Of one row.
fn activate(activation: Activation, row: &[f64]) -> Vec<f64> {
    if activation != Geglu {
        return row.iter().map(|&x| apply(activation, x)).collect();
    }
    let (hidden, gate) = row.split_at(row.len() / 2);
    hidden.iter().zip(gate).map(|(hidden, &gate)| hidden * apply(Gelu, gate)).collect()
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn rows(x: &Host) -> impl Iterator<Item = &[f32]> {
    x.values.chunks(x.shape.channels())
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn sum_of(terms: &[(f32, &[f32])]) -> Vec<f64> {
    let element = |i: usize| terms.iter().map(|(scale, x)| f64::from(*scale) * f64::from(x[i])).sum();
    (0..terms[0].1.len()).map(element).collect()
}

/// A row of `add`, the image's own or the only one, on every row of an image of `size` elements.
fn plus_channels(mut x: Vec<f64>, add: &Host, size: usize) -> Vec<f64> {
    for (image, x) in x.chunks_mut(size).enumerate() {
        let add: Vec<_> = rows(add).nth(image % add.dim(0)).expect("a row for each image").to_vec();
        for row in x.chunks_mut(add.len()) {
            row.iter_mut().zip(&add).for_each(|(x, &add)| *x += f64::from(add));
        }
    }
    x
}

/// `activation(sums + bias + channel_add) + residual` for rows of `out` sums.
fn finish(mut sums: Vec<f64>, out: usize, w: &HostWeight, tail: Tail, x: &[Host]) -> Vec<f64> {
    let (channel_add, residual) = tail.split(&x[1..]);
    if let Some(bias) = &w.bias {
        for row in sums.chunks_mut(out) {
            row.iter_mut().zip(bias).for_each(|(x, &bias)| *x += f64::from(bias));
        }
    }
    if let Some(add) = channel_add {
        let size = sums.len() / x[0].dim(0);
        sums = plus_channels(sums, add, size);
    }
    let mut y: Vec<f64> = sums.chunks(out).flat_map(|row| activate(tail.activation, row)).collect();
    if let Some(residual) = residual {
        y.iter_mut().zip(&residual.values).for_each(|(y, &x)| *y += f64::from(x));
    }
    y
}

fn conv2d(op: &Op, data: &Data) -> Vec<f64> {
    let &Op::Conv2d { x: [_, height, width, channels], out, kernel, stride, .. } = op else { unreachable!() };
    let window = op.window().expect("a convolution has a window");
    let w = &data.weights[0].weight; // [out, channels, kernel, kernel]
    let mut sums = Vec::new();
    for image in data.tensors[0].values.chunks(height * width * channels) {
        let pixel = |y: usize, x: usize, channel: usize| {
            let inside = (window.before..window.before + height).contains(&y)
                && (window.before..window.before + width).contains(&x);
            let at = |y, x| f64::from(image[(y * width + x) * channels + channel]);
            if inside { at(y - window.before, x - window.before) } else { 0.0 }
        };
        for y in 0..window.out[0] {
            for x in 0..window.out[1] {
                for w in w.chunks(channels * kernel * kernel).take(out) {
                    let mut sum = 0.0;
                    for (i, &w) in w.iter().enumerate() {
                        let (channel, ky, kx) = (i / (kernel * kernel), i / kernel % kernel, i % kernel);
                        sum += f64::from(w) * pixel(y * stride + ky, x * stride + kx, channel);
                    }
                    sums.push(sum);
                }
            }
        }
    }
    sums
}

fn attention(q: &Host, k: &Host, v: &Host, heads: usize, causal: bool) -> Vec<f64> {
    let (queries, keys, channels) = (q.dim(1), k.dim(1), q.dim(2));
    let dim = channels / heads;
    let mut out = Vec::new();
    for image in 0..q.dim(0) {
        for query in 0..queries {
            for head in 0..heads {
                let part = |x: &'_ Host, row: usize| x.values[row * channels + head * dim..][..dim].to_vec();
                let q = part(q, image * queries + query);
                let seen = image * keys..image * keys + if causal { query + 1 } else { keys };
                let scores: Vec<f64> = seen.clone().map(|key| dot(&q, &part(k, key)) / (dim as f64).sqrt()).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; dim];
                for (key, weight) in seen.zip(&weights) {
                    sums.iter_mut().zip(part(v, key)).for_each(|(sum, v)| *sum += weight / total * f64::from(v));
                }
                out.extend(sums);
            }
        }
    }
    out
}

/// To mean 0 and variance 1.
fn normalise(x: &[f32]) -> Vec<f64> {
    let x = f64s(x);
    let count = x.len() as f64;
    let mean = x.iter().sum::<f64>() / count;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    x.iter().map(|x| (x - mean) / (variance + f64::from(EPS)).sqrt()).collect()
}

/// Scale and shift of neighbouring channels, the first of them `first`.
fn affine(x: &[f64], w: &HostWeight, first: usize) -> Vec<f64> {
    let shift = w.bias.as_ref().expect("the cases' norms have a shift");
    let channel = |(i, x): (usize, &f64)| x * f64::from(w.weight[first + i]) + f64::from(shift[first + i]);
    x.iter().enumerate().map(channel).collect()
}

fn group_norm(x: &Host, w: &HostWeight, groups: usize) -> Vec<f64> {
    let (channels, size) = (x.shape.channels(), x.shape.channels() / groups);
    let mut out = Vec::new();
    for image in x.values.chunks(x.values.len() / x.dim(0)) {
        let mut y = vec![0.0; image.len()];
        for group in 0..groups {
            let of_group = |row: &'_ [f32]| row[group * size..][..size].to_vec();
            let values: Vec<f32> = image.chunks(channels).flat_map(of_group).collect();
            for (pixel, values) in normalise(&values).chunks(size).enumerate() {
                let at = pixel * channels + group * size;
                y[at..at + size].copy_from_slice(&affine(values, w, group * size));
            }
        }
        out.extend(y);
    }
    out
}
