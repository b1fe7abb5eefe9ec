// layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var per row. Ba et al. 2016.
// x, out [rows, channels]; weight, bias [channels]
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

const WIDTH = 64u;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> parts: array<f32, 64>;

fn sum_of(t: u32, part: f32) -> f32 {
    workgroupBarrier();
    parts[t] = part;
    workgroupBarrier();
    for (var half = WIDTH / 2u; half > 0u; half /= 2u) {
        if t < half {
            parts[t] += parts[t + half];
        }
        workgroupBarrier();
    }
    return parts[0];
}

@compute @workgroup_size(64)
fn layer_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    // A workgroup beyond the last row does the last one's work again and keeps it to itself.
    let asked = workgroup.x + workgroup.y * groups.x;
    let row = min(asked, p.rows - 1u);
    let first = row * p.channels;
    let base = x[first];
    var sum = 0.0;
    for (var c = t; c < p.channels; c += WIDTH) {
        sum += x[first + c] - base;
    }
    let mean = sum_of(t, sum) / f32(p.channels);
    sum = 0.0;
    for (var c = t; c < p.channels; c += WIDTH) {
        let deviation = (x[first + c] - base) - mean;
        sum = fma(deviation, deviation, sum);
    }
    let factor = 1.0 / sqrt(sum_of(t, sum) / f32(p.channels) + p.eps);
    if asked >= p.rows {
        return;
    }
    for (var c = t; c < p.channels; c += WIDTH) {
        var y = ((x[first + c] - base) - mean) * factor * w[c];
        if HAS_BIAS {
            y += bias[c];
        }
        out[first + c] = y;
    }
}
