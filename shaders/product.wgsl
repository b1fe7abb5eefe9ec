// The matrix product behind linear and conv2d: out = activation(sum over taps and channels of x * w + bias + add) +
// residual. x in rows of `channels` elements, found by `row_at`; w in panels of PANEL columns, each [taps, channels,
// columns], those of gates behind those of hidden channels; out [rows, width].
// One invocation has ROWS rows and four columns in registers. Rows are the workgroup's: loads of x are uniform, or shared
// out in a subgroup, those of w coalesced. A sum is one chain of fused multiply-adds over k in ascending order, from zero.
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
fn step(sum: vec4<f32>, a: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
    return fma(vec4(a.w), w[3], fma(vec4(a.z), w[2], fma(vec4(a.y), w[1], fma(vec4(a.x), w[0], sum))));
}

alias Sums = array<vec4<f32>, ROWS>;
// Where the rows begin that an invocation loads, and what it has loaded.
alias Bases = array<u32, HELD>;
alias Held = array<vec4<f32>, HELD>;

// Four channels of row i, from channel c on. Alone they are loaded where they are used.
fn x_of(i: u32, c: u32, base: ptr<function, Bases>, held: ptr<function, Held>) -> vec4<f32> {
    if SHARE == 1u {
        return x4((*base)[i], c, p.channels);
    }
    return from_lane((*held)[i / SHARE], i % SHARE);
}

// Four more terms of a row's sums.
fn add_terms(sums: ptr<function, Sums>, gates: ptr<function, Sums>, i: u32, x: vec4<f32>, w: mat4x4<f32>, g: mat4x4<f32>) {
    (*sums)[i] = step((*sums)[i], x, w);
    if GEGLU {
        (*gates)[i] = step((*gates)[i], x, g);
    }
}

@compute @workgroup_size(WIDTH)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let first = (group.y + group.z * groups.y) * ROWS;
    let asked = (group.x * WIDTH + index_of(lane)) * 4u;
    let mine = select(p.columns, p.columns / 2u, GEGLU);
    let rows = p.rows;
    if first >= rows || all_say(asked >= mine) {
        return;
    }
    // Who stays for the others has the last columns again, to itself.
    let column = min(asked, (mine - 1u) / 4u * 4u);
    let channels = p.channels;
    let count = min(4u, mine - column);
    // The last panel has the columns that are left.
    let panel = column / PANEL * PANEL;
    let pitch = min(PANEL, mine - panel);
    let depth = tap_count() * channels;
    let start = panel * depth + column - panel;
    let gates = start + mine * depth;
    // What a loop counts through does not stay in registers: rows are named one by one wherever it matters.
    var acc = Sums();
    var gate = Sums();
    for (var tap = 0u; tap < tap_count(); tap += 1u) {
        var base: Bases;
        for (var h = 0u; h < HELD; h += 1u) {
            base[h] = row_in(first, h * SHARE + number_of(lane) % SHARE, tap);
        }
        for (var c = 0u; c < channels; c += 4u) {
            // Beyond the last channel x is zero: any row of w does.
            let k0 = (tap * channels + c) * pitch;
            let k1 = (tap * channels + min(c + 1u, channels - 1u)) * pitch;
            let k2 = (tap * channels + min(c + 2u, channels - 1u)) * pitch;
            let k3 = (tap * channels + min(c + 3u, channels - 1u)) * pitch;
            let w = mat4x4(w4(start + k0, count), w4(start + k1, count), w4(start + k2, count), w4(start + k3, count));
            var g = mat4x4<f32>();
            if GEGLU {
                g = mat4x4(w4(gates + k0, count), w4(gates + k1, count), w4(gates + k2, count), w4(gates + k3, count));
            }
            if K4 {
                var held: Held;
                if SHARE > 1u {
                    for (var h = 0u; h < HELD; h += 1u) {
                        held[h] = x4(base[h], c, channels);
                    }
                }
                add_terms(&acc, &gate, 0u, x_of(0u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 1u, x_of(1u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 2u, x_of(2u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 3u, x_of(3u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 4u, x_of(4u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 5u, x_of(5u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 6u, x_of(6u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 7u, x_of(7u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 8u, x_of(8u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 9u, x_of(9u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 10u, x_of(10u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 11u, x_of(11u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 12u, x_of(12u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 13u, x_of(13u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 14u, x_of(14u, c, &base, &held), w, g);
                add_terms(&acc, &gate, 15u, x_of(15u, c, &base, &held), w, g);
            } else {
                for (var i = 0u; i < ROWS; i += 1u) {
                    add_terms(&acc, &gate, i, x4(row_in(first, i, tap), c, channels), w, g);
                }
            }
        }
    }
    if asked >= mine {
        return;
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
