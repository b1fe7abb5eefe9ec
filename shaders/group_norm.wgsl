// group_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, then SiLU; mean and var per (image, group). Wu and He
// 2018. x, out [batch, pixels, channels]; weight, bias [channels]; scratch: mean and sum of squares [batch, chunks,
// groups, 2], then factor and offset [batch, channels, 2]
// Three passes: 64 pixels per workgroup give a mean and a sum of squared deviations for each group; one workgroup per
// (image, group) joins them in a fixed tree (Chan et al. 1979); each element is one multiply-add. All values are taken
// less the group's first, so that no digits are lost where |mean| >> std.
// Parameters: struct GroupNorm in src/backend/params.rs, same order.

struct GroupNorm {
    batch: u32,
    pixels: u32,
    channels: u32,
    groups: u32,
    eps: f32,
    silu: u32,
}
var<immediate> p: GroupNorm;

override HAS_BIAS: bool = false;

const CHUNK = 64u;
const JOIN = 64u;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

fn chunk_count() -> u32 {
    return (p.pixels + CHUNK - 1u) / CHUNK;
}

// The first value of a group of an image, from which all others are measured.
fn origin(image: u32, group: u32) -> f32 {
    return x[image * p.pixels * p.channels + group * (p.channels / p.groups)];
}

@compute @workgroup_size(32)
fn statistics(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let chunk = workgroup.x;
    let image = workgroup.y;
    let size = p.channels / p.groups;
    let pixels = min(CHUNK, p.pixels - chunk * CHUNK);
    let first = (image * p.pixels + chunk * CHUNK) * p.channels;
    for (var group = t; group < p.groups; group += 32u) {
        let base = origin(image, group);
        var sum = 0.0;
        for (var pixel = 0u; pixel < pixels; pixel += 1u) {
            let at = first + pixel * p.channels + group * size;
            for (var c = 0u; c < size; c += 1u) {
                sum += x[at + c] - base;
            }
        }
        let mean = sum / f32(pixels * size);
        var squares = 0.0;
        for (var pixel = 0u; pixel < pixels; pixel += 1u) {
            let at = first + pixel * p.channels + group * size;
            for (var c = 0u; c < size; c += 1u) {
                let deviation = (x[at + c] - base) - mean;
                squares = fma(deviation, deviation, squares);
            }
        }
        let to = ((image * chunk_count() + chunk) * p.groups + group) * 2u;
        scratch[to] = mean;
        scratch[to + 1u] = squares;
    }
}

var<workgroup> counts: array<f32, 64>;
var<workgroup> means: array<f32, 64>;
var<workgroup> squares: array<f32, 64>;

// Two parts into one; either may be empty.
fn join(a: vec3<f32>, b: vec3<f32>) -> vec3<f32> {
    if b.x == 0.0 {
        return a;
    }
    if a.x == 0.0 {
        return b;
    }
    let count = a.x + b.x;
    let delta = b.y - a.y;
    let share = b.x / count;
    return vec3(count, fma(delta, share, a.y), a.z + b.z + delta * delta * a.x * share);
}

@compute @workgroup_size(64)
fn combine(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let group = workgroup.x;
    let image = workgroup.y;
    let size = p.channels / p.groups;
    let chunks = chunk_count();
    var part = vec3<f32>();
    for (var chunk = t; chunk < chunks; chunk += JOIN) {
        let at = ((image * chunks + chunk) * p.groups + group) * 2u;
        let count = f32(min(CHUNK, p.pixels - chunk * CHUNK) * size);
        part = join(part, vec3(count, scratch[at], scratch[at + 1u]));
    }
    counts[t] = part.x;
    means[t] = part.y;
    squares[t] = part.z;
    workgroupBarrier();
    for (var half = JOIN / 2u; half > 0u; half /= 2u) {
        if t < half {
            let other = t + half;
            part = join(vec3(counts[t], means[t], squares[t]), vec3(counts[other], means[other], squares[other]));
            counts[t] = part.x;
            means[t] = part.y;
            squares[t] = part.z;
        }
        workgroupBarrier();
    }
    let mean = means[0];
    let factor = 1.0 / sqrt(squares[0] / counts[0] + p.eps);
    let affine = p.batch * chunks * p.groups * 2u + image * p.channels * 2u;
    for (var c = t; c < size; c += JOIN) {
        let channel = group * size + c;
        let scale = factor * w[channel];
        var shift = 0.0;
        if HAS_BIAS {
            shift = bias[channel];
        }
        scratch[affine + 2u * channel] = scale;
        scratch[affine + 2u * channel + 1u] = fma(-mean, scale, shift);
    }
}

@compute @workgroup_size(64)
fn scale(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = id.x + id.y * groups.x * 64u;
    if i >= p.batch * p.pixels * p.channels {
        return;
    }
    let channel = i % p.channels;
    let image = i / (p.pixels * p.channels);
    let affine = p.batch * chunk_count() * p.groups * 2u + (image * p.channels + channel) * 2u;
    let value = x[i] - origin(image, channel / (p.channels / p.groups));
    let y = fma(value, scratch[affine], scratch[affine + 1u]);
    if p.silu == 1u {
        out[i] = y * sigmoid4(vec4(y)).x;
    } else {
        out[i] = y;
    }
}
