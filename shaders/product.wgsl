// The matrix product behind linear and conv2d: out = activation(sum over taps and channels of x * w + bias + add) +
// residual. x in rows of `channels` elements, found by `row_at`; w in panels of PANEL columns, each [taps, channels,
// columns], those of gates behind those of hidden channels; out [rows, width].
// One invocation has ROWS rows and four columns in registers. Rows are the workgroup's: loads of x are uniform, those
// of w coalesced. A sum is one chain of fused multiply-adds over k in ascending order, from zero.
// Each of linear.wgsl and conv2d.wgsl has `p` and the functions that read it. A tensor or weight that cannot be bound
// at once goes in parts: rows from `p.row_first` on, columns from `p.column_first` on, x and out from an element on.

// Rows of x and of w are whole fours; a GEGLU layer.
override K4: bool = false;
override N4: bool = false;
override GEGLU: bool = false;

const WIDTH = 64u;
// Bits of `p.tail`.
const HAS_BIAS = 1u;
const HAS_ADD = 2u;
const HAS_RESIDUAL = 4u;
const ROWS = 16u;
const OUTSIDE = 0xffffffffu;
const PANEL = 32u;

@group(0) @binding(2) var<storage, read_write> x: array<Four>;
@group(0) @binding(3) var<storage, read> w: array<Four>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> add: array<Four>;
@group(0) @binding(6) var<storage, read_write> residual: array<Four>;

fn x_at(i: u32) -> f32 {
    return wide(x[i >> 2u])[i & 3u];
}

fn w_at(i: u32) -> f32 {
    return wide(w[i >> 2u])[i & 3u];
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
        value = wide(x[i >> 2u]);
    } else {
        value = part_of_x(i, channels - c);
    }
    return select(vec4(0.0), value, inside);
}

// Four columns of w at `i`; zeros beyond the last.
fn w4(i: u32, count: u32) -> vec4<f32> {
    if N4 {
        return wide(w[i >> 2u]);
    }
    return part_of_w(i, count);
}

fn bias4(column: u32, count: u32) -> vec4<f32> {
    var value = vec4<f32>();
    if (p.tail & HAS_BIAS) != 0u {
        for (var j = 0u; j < count; j += 1u) {
            value[j] = bias[column + j];
        }
    }
    return value;
}

// Where row `first + i` begins, or the last one.
fn row_in(first: u32, i: u32, tap: u32) -> u32 {
    return row_at(min(first + i, p.rows - 1u), tap);
}

// Four more terms of four sums.
fn step(sum: vec4<f32>, a: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return fma(vec4(a.w), w3, fma(vec4(a.z), w2, fma(vec4(a.y), w1, fma(vec4(a.x), w0, sum))));
}

@compute @workgroup_size(WIDTH)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let first = (group.y + group.z * groups.y) * ROWS;
    let column = (group.x * WIDTH + local.x) * 4u;
    let mine = select(p.columns, p.columns / 2u, GEGLU);
    let rows = p.rows;
    if column >= mine || first >= rows {
        return;
    }
    let channels = p.channels;
    let count = min(4u, mine - column);
    // The last panel has the columns that are left.
    let panel = column / PANEL * PANEL;
    let pitch = min(PANEL, mine - panel);
    let depth = tap_count() * channels;
    let start = panel * depth + column - panel;
    let gates = start + mine * depth;
    // What a loop counts through does not stay in registers: rows are named one by one wherever it matters.
    var acc = array<vec4<f32>, ROWS>();
    var gate = array<vec4<f32>, ROWS>();
    for (var tap = 0u; tap < tap_count(); tap += 1u) {
        let base = array<u32, ROWS>(
            row_in(first, 0u, tap), row_in(first, 1u, tap), row_in(first, 2u, tap), row_in(first, 3u, tap),
            row_in(first, 4u, tap), row_in(first, 5u, tap), row_in(first, 6u, tap), row_in(first, 7u, tap),
            row_in(first, 8u, tap), row_in(first, 9u, tap), row_in(first, 10u, tap), row_in(first, 11u, tap),
            row_in(first, 12u, tap), row_in(first, 13u, tap), row_in(first, 14u, tap), row_in(first, 15u, tap),
        );
        for (var c = 0u; c < channels; c += 4u) {
            // Beyond the last channel x is zero: any row of w does.
            let k0 = (tap * channels + c) * pitch;
            let k1 = (tap * channels + min(c + 1u, channels - 1u)) * pitch;
            let k2 = (tap * channels + min(c + 2u, channels - 1u)) * pitch;
            let k3 = (tap * channels + min(c + 3u, channels - 1u)) * pitch;
            let w0 = w4(start + k0, count);
            let w1 = w4(start + k1, count);
            let w2 = w4(start + k2, count);
            let w3 = w4(start + k3, count);
            var g0 = vec4<f32>();
            var g1 = vec4<f32>();
            var g2 = vec4<f32>();
            var g3 = vec4<f32>();
            if GEGLU {
                g0 = w4(gates + k0, count);
                g1 = w4(gates + k1, count);
                g2 = w4(gates + k2, count);
                g3 = w4(gates + k3, count);
            }
            if K4 {
                let a0 = x4(base[0], c, channels);
                acc[0] = step(acc[0], a0, w0, w1, w2, w3);
                let a1 = x4(base[1], c, channels);
                acc[1] = step(acc[1], a1, w0, w1, w2, w3);
                let a2 = x4(base[2], c, channels);
                acc[2] = step(acc[2], a2, w0, w1, w2, w3);
                let a3 = x4(base[3], c, channels);
                acc[3] = step(acc[3], a3, w0, w1, w2, w3);
                let a4 = x4(base[4], c, channels);
                acc[4] = step(acc[4], a4, w0, w1, w2, w3);
                let a5 = x4(base[5], c, channels);
                acc[5] = step(acc[5], a5, w0, w1, w2, w3);
                let a6 = x4(base[6], c, channels);
                acc[6] = step(acc[6], a6, w0, w1, w2, w3);
                let a7 = x4(base[7], c, channels);
                acc[7] = step(acc[7], a7, w0, w1, w2, w3);
                let a8 = x4(base[8], c, channels);
                acc[8] = step(acc[8], a8, w0, w1, w2, w3);
                let a9 = x4(base[9], c, channels);
                acc[9] = step(acc[9], a9, w0, w1, w2, w3);
                let a10 = x4(base[10], c, channels);
                acc[10] = step(acc[10], a10, w0, w1, w2, w3);
                let a11 = x4(base[11], c, channels);
                acc[11] = step(acc[11], a11, w0, w1, w2, w3);
                let a12 = x4(base[12], c, channels);
                acc[12] = step(acc[12], a12, w0, w1, w2, w3);
                let a13 = x4(base[13], c, channels);
                acc[13] = step(acc[13], a13, w0, w1, w2, w3);
                let a14 = x4(base[14], c, channels);
                acc[14] = step(acc[14], a14, w0, w1, w2, w3);
                let a15 = x4(base[15], c, channels);
                acc[15] = step(acc[15], a15, w0, w1, w2, w3);
                if GEGLU {
                    gate[0] = step(gate[0], a0, g0, g1, g2, g3);
                    gate[1] = step(gate[1], a1, g0, g1, g2, g3);
                    gate[2] = step(gate[2], a2, g0, g1, g2, g3);
                    gate[3] = step(gate[3], a3, g0, g1, g2, g3);
                    gate[4] = step(gate[4], a4, g0, g1, g2, g3);
                    gate[5] = step(gate[5], a5, g0, g1, g2, g3);
                    gate[6] = step(gate[6], a6, g0, g1, g2, g3);
                    gate[7] = step(gate[7], a7, g0, g1, g2, g3);
                    gate[8] = step(gate[8], a8, g0, g1, g2, g3);
                    gate[9] = step(gate[9], a9, g0, g1, g2, g3);
                    gate[10] = step(gate[10], a10, g0, g1, g2, g3);
                    gate[11] = step(gate[11], a11, g0, g1, g2, g3);
                    gate[12] = step(gate[12], a12, g0, g1, g2, g3);
                    gate[13] = step(gate[13], a13, g0, g1, g2, g3);
                    gate[14] = step(gate[14], a14, g0, g1, g2, g3);
                    gate[15] = step(gate[15], a15, g0, g1, g2, g3);
                }
            } else {
                for (var i = 0u; i < ROWS; i += 1u) {
                    let a = x4(row_in(first, i, tap), c, channels);
                    acc[i] = step(acc[i], a, w0, w1, w2, w3);
                    if GEGLU {
                        gate[i] = step(gate[i], a, g0, g1, g2, g3);
                    }
                }
            }
        }
    }
    var sums = acc;
    var gates_of = gate;
    let place = p.column_first + column;
    let plus = bias4(place, count);
    for (var i = 0u; i < ROWS; i += 1u) {
        let row = first + i;
        if row >= rows {
            break;
        }
        var y = sums[i];
        if (p.tail & HAS_BIAS) != 0u {
            y += plus;
        }
        if (p.tail & HAS_ADD) != 0u {
            let at = (p.row_first + row) / p.rows_per_add * p.width + place;
            for (var j = 0u; j < count; j += 1u) {
                y[j] += wide(add[(at + j) >> 2u])[(at + j) & 3u];
            }
        }
        if GEGLU {
            var z = gates_of[i];
            if (p.tail & HAS_BIAS) != 0u {
                z += bias4(p.width + place, count);
            }
            y *= gelu4(z);
        } else {
            y = activate4(p.activation, y);
        }
        let to = p.out_first + row * p.width + place;
        if (p.tail & HAS_RESIDUAL) != 0u {
            if N4 {
                y += wide(residual[to >> 2u]);
            } else {
                for (var j = 0u; j < count; j += 1u) {
                    y[j] += wide(residual[(to + j) >> 2u])[(to + j) & 3u];
                }
            }
        }
        if N4 {
            put4(to >> 2u, y);
        } else {
            put_some(to, y, count);
        }
    }
}
