// layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var per row. Ba et al. 2016.
// x, out [rows, channels]; weight, bias [channels], f32
// One workgroup per row. Two passes over values less the row's first: no digits are lost where |mean| >> std. Sums are
// joined in a fixed tree.
// Parameters: struct LayerNorm in src/backend/params.rs, same order.

struct LayerNorm {
    rows: u32,
    channels: u32,
    eps: f32,
}
var<immediate> p: LayerNorm;

override HAS_BIAS: bool = false;
// Rows are whole fours.
override C4: bool = false;

const WIDTH = 64u;

@group(0) @binding(2) var<storage, read_write> x: array<Four>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;

var<workgroup> parts: array<f32, 64>;

// The same tree with and without subgroups: its last levels, which only the first subgroup's first invocation finishes, go
// without workgroup memory where there are any.
fn sum_of(lane: Lane, part: f32) -> f32 {
    let t = index_of(lane);
    workgroupBarrier();
    parts[t] = part;
    workgroupBarrier();
    var half = WIDTH / 2u;
    for (; half >= heard_by(lane); half /= 2u) {
        if t < half {
            parts[t] += parts[t + half];
        }
        workgroupBarrier();
    }
    if half > 0u {
        var sum = parts[t];
        for (; half > 0u; half /= 2u) {
            sum += from_lane(vec4(sum), (number_of(lane) + half) % heard_by(lane)).x;
        }
        workgroupBarrier();
        if t == 0u {
            parts[0] = sum;
        }
        workgroupBarrier();
    }
    return parts[0];
}

// Four channels of a row from channel c on.
fn x4(first: u32, c: u32) -> vec4<f32> {
    let i = first + c;
    if C4 {
        return wide(x[i >> 2u]);
    }
    return vec4(wide(x[i >> 2u])[i & 3u], wide(x[(i + 1u) >> 2u])[(i + 1u) & 3u],
        wide(x[(i + 2u) >> 2u])[(i + 2u) & 3u], wide(x[(i + 3u) >> 2u])[(i + 3u) & 3u]);
}

// Which of four channels there are.
fn inside(c: u32) -> vec4<bool> {
    return vec4(c) + vec4(0u, 1u, 2u, 3u) < vec4(p.channels);
}

@compute @workgroup_size(64)
fn layer_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let t = index_of(lane);
    // A workgroup beyond the last row does the last one's work again and keeps it to itself.
    let asked = workgroup.x + workgroup.y * groups.x;
    let row = min(asked, p.rows - 1u);
    let first = row * p.channels;
    let base = wide(x[first >> 2u])[first & 3u];
    var sums = vec4<f32>();
    for (var c = 4u * t; c < p.channels; c += 4u * WIDTH) {
        sums += select(vec4(0.0), x4(first, c) - base, inside(c));
    }
    let mean = sum_of(lane, sums.x + sums.y + sums.z + sums.w) / f32(p.channels);
    sums = vec4<f32>();
    for (var c = 4u * t; c < p.channels; c += 4u * WIDTH) {
        let deviation = select(vec4(0.0), (x4(first, c) - base) - mean, inside(c));
        sums = fma(deviation, deviation, sums);
    }
    let variance = sum_of(lane, sums.x + sums.y + sums.z + sums.w) / f32(p.channels);
    let factor = 1.0 / sqrt(variance + p.eps);
    if asked >= p.rows {
        return;
    }
    for (var c = 4u * t; c < p.channels; c += 4u * WIDTH) {
        let count = min(4u, p.channels - c);
        var y = ((x4(first, c) - base) - mean) * factor;
        for (var j = 0u; j < count; j += 1u) {
            y[j] *= w[c + j];
            if HAS_BIAS {
                y[j] += bias[c + j];
            }
        }
        put_some(first + c, y, count);
    }
}
