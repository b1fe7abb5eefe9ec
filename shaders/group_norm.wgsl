// group_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, then SiLU; mean and var per (image, group). Wu and He
// 2018. x, out [batch, pixels, channels]; weight, bias [channels], f32; scratch, f32: mean and sum of squares [batch,
// chunks, groups, 2], then factor and offset [batch, channels, 2]
// Three passes: 64 pixels per workgroup give a mean and a sum of squared deviations for each group; one workgroup per
// (image, group) joins them in a fixed tree (Chan et al. 1979); each element is one multiply-add. All values are taken
// less the group's first, so that no digits are lost where |mean| >> std. A tensor that cannot be bound at once goes in
// parts of one image: `part` pixels from pixel `pixel_first` of image `image_first` on; else `images` is all of them.
// Parameters: struct GroupNorm in src/backend/params.rs, same order, then the part, and where it begins in x and out and
// where its image begins in `origins`.

struct GroupNorm {
    batch: u32,
    pixels: u32,
    channels: u32,
    groups: u32,
    eps: f32,
    silu: u32,
    image_first: u32,
    images: u32,
    pixel_first: u32,
    part: u32,
    x_first: u32,
    origin_first: u32,
}
var<immediate> p: GroupNorm;

override HAS_BIAS: bool = false;

const CHUNK = 64u;
const JOIN = 64u;

@group(0) @binding(2) var<storage, read_write> x: array<Four>;
@group(0) @binding(3) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(4) var<storage, read_write> origins: array<Four>;
@group(0) @binding(5) var<storage, read> w: array<f32>;
@group(0) @binding(6) var<storage, read> bias: array<f32>;

fn x_at(i: u32) -> f32 {
    return wide(x[i >> 2u])[i & 3u];
}

fn chunk_count() -> u32 {
    return (p.pixels + CHUNK - 1u) / CHUNK;
}

// The first value of a group of an image, from which all others are measured. Images count from the part's.
fn origin(image: u32, group: u32) -> f32 {
    let i = p.origin_first + image * p.pixels * p.channels + group * (p.channels / p.groups);
    return wide(origins[i >> 2u])[i & 3u];
}

@compute @workgroup_size(32)
fn statistics(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let image = workgroup.y;
    let size = p.channels / p.groups;
    let pixels = min(CHUNK, p.part - workgroup.x * CHUNK);
    let first = p.x_first + (image * p.pixels + workgroup.x * CHUNK) * p.channels;
    let chunk = p.pixel_first / CHUNK + workgroup.x;
    for (var group = t; group < p.groups; group += 32u) {
        let base = origin(image, group);
        var sum = 0.0;
        for (var pixel = 0u; pixel < pixels; pixel += 1u) {
            let at = first + pixel * p.channels + group * size;
            for (var c = 0u; c < size; c += 1u) {
                sum += x_at(at + c) - base;
            }
        }
        let mean = sum / f32(pixels * size);
        var squares = 0.0;
        for (var pixel = 0u; pixel < pixels; pixel += 1u) {
            let at = first + pixel * p.channels + group * size;
            for (var c = 0u; c < size; c += 1u) {
                let deviation = (x_at(at + c) - base) - mean;
                squares = fma(deviation, deviation, squares);
            }
        }
        let to = (((p.image_first + image) * chunk_count() + chunk) * p.groups + group) * 2u;
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
    lane: Lane,
) {
    let t = index_of(lane);
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
    // The same tree with and without subgroups: its last levels, which only the first subgroup's first invocation finishes,
    // go without workgroup memory where there are any.
    var half = JOIN / 2u;
    for (; half >= heard_by(lane); half /= 2u) {
        if t < half {
            let other = t + half;
            part = join(vec3(counts[t], means[t], squares[t]), vec3(counts[other], means[other], squares[other]));
            counts[t] = part.x;
            means[t] = part.y;
            squares[t] = part.z;
        }
        workgroupBarrier();
    }
    if half > 0u {
        for (; half > 0u; half /= 2u) {
            part = join(part, from_lane(vec4(part, 0.0), (number_of(lane) + half) % heard_by(lane)).xyz);
        }
        workgroupBarrier();
        if t == 0u {
            counts[0] = part.x;
            means[0] = part.y;
            squares[0] = part.z;
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
    let i = 4u * (id.x + id.y * groups.x * 64u);
    let elements = p.images * p.part * p.channels;
    if i >= elements {
        return;
    }
    let count = min(4u, elements - i);
    let size = p.channels / p.groups;
    let affine = p.batch * chunk_count() * p.groups * 2u + p.image_first * p.channels * 2u;
    var y: vec4<f32>;
    for (var j = 0u; j < count; j += 1u) {
        let channel = (i + j) % p.channels;
        let image = (i + j) / (p.pixels * p.channels);
        let at = affine + (image * p.channels + channel) * 2u;
        let value = x_at(p.x_first + i + j) - origin(image, channel / size);
        y[j] = fma(value, scratch[at], scratch[at + 1u]);
    }
    if p.silu == 1u {
        y *= sigmoid4(y);
    }
    put_some(p.x_first + i, y, count);
}
