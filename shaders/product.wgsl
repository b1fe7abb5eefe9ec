// The matrix product behind linear and conv2d: out = activation(sum over taps and channels of x * w + bias + add) +
// residual. x in rows of `channels` elements, found by `row_at`; w [taps, channels, columns]; out [rows, columns or
// half of them].
// One invocation has ROWS rows and four columns in registers. Rows are the workgroup's: loads of x are uniform, those
// of w coalesced. A sum is one chain of fused multiply-adds over k in ascending order, from zero.
// Each of linear.wgsl and conv2d.wgsl has `p`, its struct of src/backend/params.rs, and the functions that read it.

override WIDTH: u32 = 64u;
override K4: bool = false;
override N4: bool = false;
override HAS_BIAS: bool = false;
override HAS_ADD: bool = false;
override HAS_RESIDUAL: bool = false;
override GEGLU: bool = false;
override ACTIVATION: u32 = 0u;

const ROWS = 8u;
const OUTSIDE = 0xffffffffu;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> add: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

fn x_at(i: u32) -> f32 {
    return x[i >> 2u][i & 3u];
}

fn w_at(i: u32) -> f32 {
    return w[i >> 2u][i & 3u];
}

// Up to four values; zeros beyond `count`. No loop: llvmpipe ends an invocation after 65535 turns of its loops.
fn part_of_x(i: u32, count: u32) -> vec4<f32> {
    var value = vec4(x_at(i), 0.0, 0.0, 0.0);
    if count > 1u {
        value.y = x_at(i + 1u);
    }
    if count > 2u {
        value.z = x_at(i + 2u);
    }
    if count > 3u {
        value.w = x_at(i + 3u);
    }
    return value;
}

fn part_of_w(i: u32, count: u32) -> vec4<f32> {
    var value = vec4(w_at(i), 0.0, 0.0, 0.0);
    if count > 1u {
        value.y = w_at(i + 1u);
    }
    if count > 2u {
        value.z = w_at(i + 2u);
    }
    if count > 3u {
        value.w = w_at(i + 3u);
    }
    return value;
}

// Four channels of a row from channel c; zeros beyond the last and outside the picture.
fn x4(base: u32, c: u32, channels: u32) -> vec4<f32> {
    let inside = is_inside(base);
    let i = select(0u, base + c, inside);
    var value: vec4<f32>;
    if K4 {
        value = x[i >> 2u];
    } else {
        value = part_of_x(i, channels - c);
    }
    return select(vec4(0.0), value, inside);
}

// Four columns of row k of w; zeros beyond the last.
fn w4(k: u32, column: u32, columns: u32) -> vec4<f32> {
    if N4 {
        return w[(k * columns + column) >> 2u];
    }
    return part_of_w(k * columns + column, columns - column);
}

fn bias4(column: u32, count: u32) -> vec4<f32> {
    var value = vec4<f32>();
    if HAS_BIAS {
        for (var j = 0u; j < count; j += 1u) {
            value[j] = bias[column + j];
        }
    }
    return value;
}

@compute @workgroup_size(WIDTH)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let first = (group.y + group.z * groups.y) * ROWS;
    let column = (group.x * WIDTH + local.x) * 4u;
    let columns = columns_of_w();
    let width = select(columns, columns / 2u, GEGLU);
    let rows = row_count();
    if column >= width || first >= rows {
        return;
    }
    let channels = channel_count();
    var acc: array<vec4<f32>, 8>;
    var gate: array<vec4<f32>, 8>;
    for (var i = 0u; i < ROWS; i += 1u) {
        acc[i] = vec4(0.0);
        gate[i] = vec4(0.0);
    }
    for (var tap = 0u; tap < tap_count(); tap += 1u) {
        var base: array<u32, 8>;
        for (var i = 0u; i < ROWS; i += 1u) {
            base[i] = row_at(min(first + i, rows - 1u), tap);
        }
        for (var c = 0u; c < channels; c += 4u) {
            let k = tap * channels + c;
            // Beyond the last channel x is zero: any row of w does.
            let last = tap * channels + channels - 1u;
            let w0 = w4(k, column, columns);
            let w1 = w4(min(k + 1u, last), column, columns);
            let w2 = w4(min(k + 2u, last), column, columns);
            let w3 = w4(min(k + 3u, last), column, columns);
            var g0 = vec4<f32>();
            var g1 = vec4<f32>();
            var g2 = vec4<f32>();
            var g3 = vec4<f32>();
            if GEGLU {
                g0 = gate4(k, column, columns);
                g1 = gate4(min(k + 1u, last), column, columns);
                g2 = gate4(min(k + 2u, last), column, columns);
                g3 = gate4(min(k + 3u, last), column, columns);
            }
            for (var i = 0u; i < ROWS; i += 1u) {
                let a = x4(base[i], c, channels);
                acc[i] = fma(vec4(a.w), w3, fma(vec4(a.z), w2, fma(vec4(a.y), w1, fma(vec4(a.x), w0, acc[i]))));
                if GEGLU {
                    gate[i] = fma(vec4(a.w), g3, fma(vec4(a.z), g2, fma(vec4(a.y), g1, fma(vec4(a.x), g0, gate[i]))));
                }
            }
        }
    }
    let count = min(4u, width - column);
    let plus = bias4(column, count);
    for (var i = 0u; i < ROWS; i += 1u) {
        let row = first + i;
        if row >= rows {
            break;
        }
        var y = acc[i];
        if HAS_BIAS {
            y += plus;
        }
        if HAS_ADD {
            let base = add_row(row) * width + column;
            for (var j = 0u; j < count; j += 1u) {
                y[j] += add[base + j];
            }
        }
        if GEGLU {
            var z = gate[i];
            if HAS_BIAS {
                z += bias4(width + column, count);
            }
            y *= gelu4(z);
        } else {
            y = activate4(ACTIVATION, y);
        }
        let to = row * width + column;
        for (var j = 0u; j < count; j += 1u) {
            var value = y[j];
            if HAS_RESIDUAL {
                value += residual[to + j];
            }
            out[to + j] = value;
        }
    }
}

// Four columns of the gates, which stand behind the hidden channels.
fn gate4(k: u32, column: u32, columns: u32) -> vec4<f32> {
    let half = columns / 2u;
    if N4 && (half & 3u) == 0u {
        return w[(k * columns + half + column) >> 2u];
    }
    return part_of_w(k * columns + half + column, half - column);
}
