// attention: out = softmax(scale * q k^T) v for each image and head, online. Milakov and Gimelshein 2018; Dao et al.
// 2022. q, out [batch, queries, heads * head_dim]; k, v [batch, keys, heads * head_dim]
// One invocation for two queries, 64 to a workgroup, all of one image and head: keys and values are the workgroup's, so
// their loads are uniform, or shared out in a subgroup. Keys are looked at KEYS at a time. A head of more than 4 MOST channels goes in slices: each
// slice of the values is summed by a workgroup of its own, with the scores over all channels.
// Parameters: struct Attention in src/backend/params.rs, same order, then where q and out, and k and v begin,
// and the fours of a slice.

struct Attention {
    batch: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    head_dim: u32,
    causal: u32,
    scale: f32,
    q_first: u32,
    k_first: u32,
    slice: u32,
}
var<immediate> p: Attention;

// Heads are whole fours of channels.
override WHOLE: bool = false;

const QUERIES = 64u;
const WIDTH = 32u;
const KEYS = 16u;
// Fours of a slice at most.
const MOST = 64u;

@group(0) @binding(2) var<storage, read_write> q: array<Four>;
@group(0) @binding(3) var<storage, read_write> k: array<Four>;
@group(0) @binding(4) var<storage, read_write> v: array<Four>;

// Which of four channels are the head's.
fn inside(d: u32) -> vec4<bool> {
    return vec4(4u * d) + vec4(0u, 1u, 2u, 3u) < vec4(p.head_dim);
}

fn q4(base: u32, d: u32) -> vec4<f32> {
    let i = base + 4u * d;
    if WHOLE {
        return wide(q[i >> 2u]);
    }
    let value = vec4(wide(q[i >> 2u])[i & 3u], wide(q[(i + 1u) >> 2u])[(i + 1u) & 3u],
        wide(q[(i + 2u) >> 2u])[(i + 2u) & 3u], wide(q[(i + 3u) >> 2u])[(i + 3u) & 3u]);
    return select(vec4(0.0), value, inside(d));
}

fn k4(base: u32, d: u32) -> vec4<f32> {
    let i = base + 4u * d;
    if WHOLE {
        return wide(k[i >> 2u]);
    }
    let value = vec4(wide(k[i >> 2u])[i & 3u], wide(k[(i + 1u) >> 2u])[(i + 1u) & 3u],
        wide(k[(i + 2u) >> 2u])[(i + 2u) & 3u], wide(k[(i + 3u) >> 2u])[(i + 3u) & 3u]);
    return select(vec4(0.0), value, inside(d));
}

fn v4(base: u32, d: u32) -> vec4<f32> {
    let i = base + 4u * d;
    if WHOLE {
        return wide(v[i >> 2u]);
    }
    let value = vec4(wide(v[i >> 2u])[i & 3u], wide(v[(i + 1u) >> 2u])[(i + 1u) & 3u],
        wide(v[(i + 2u) >> 2u])[(i + 2u) & 3u], wide(v[(i + 3u) >> 2u])[(i + 3u) & 3u]);
    return select(vec4(0.0), value, inside(d));
}

// Four more terms of a score.
fn step(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The scores of four keys from `key` on, of which those below `limit` are seen.
fn scaled(scores: vec4<f32>, key: u32, limit: u32) -> vec4<f32> {
    return select(vec4(LOWEST), scores * p.scale, vec4(key) + vec4(0u, 1u, 2u, 3u) < vec4(limit));
}

// Where the rows of those keys begin that an invocation loads, and what it has loaded.
alias Bases = array<u32, HELD>;
alias Held = array<vec4<f32>, HELD>;

// Four channels of key i and of its value. Alone they are loaded where they are used.
fn key_of(i: u32, d: u32, base: ptr<function, Bases>, held: ptr<function, Held>) -> vec4<f32> {
    if SHARE == 1u {
        return k4((*base)[i], d);
    }
    return from_lane((*held)[i / SHARE], i % SHARE);
}

fn value_of(i: u32, d: u32, base: ptr<function, Bases>, held: ptr<function, Held>) -> vec4<f32> {
    if SHARE == 1u {
        return v4((*base)[i], d);
    }
    return from_lane((*held)[i / SHARE], i % SHARE);
}

// What sixteen keys weigh, and what earlier sums are multiplied by.
struct Weights {
    weights: mat4x4<f32>,
    factor: f32,
}

// Weights against the largest score so far; what is not seen weighs exactly nothing.
fn weights(scores: mat4x4<f32>, block: u32, query: u32, largest: ptr<function, f32>, total: ptr<function, f32>) -> Weights {
    let limit = select(p.keys, min(p.keys, query + 1u), p.causal == 1u);
    let s0 = scaled(scores[0], block, limit);
    let s1 = scaled(scores[1], block + 4u, limit);
    let s2 = scaled(scores[2], block + 8u, limit);
    let s3 = scaled(scores[3], block + 12u, limit);
    let four = max(max(s0, s1), max(s2, s3));
    let most = max(*largest, max(max(four.x, four.y), max(four.z, four.w)));
    let factor = exp1(*largest - most);
    *largest = most;
    let e0 = select(exp4(s0 - most), vec4(0.0), s0 == vec4(LOWEST));
    let e1 = select(exp4(s1 - most), vec4(0.0), s1 == vec4(LOWEST));
    let e2 = select(exp4(s2 - most), vec4(0.0), s2 == vec4(LOWEST));
    let e3 = select(exp4(s3 - most), vec4(0.0), s3 == vec4(LOWEST));
    let sums = e0 + e1 + e2 + e3;
    *total = fma(*total, factor, sums.x + sums.y + sums.z + sums.w);
    return Weights(mat4x4(e0, e1, e2, e3), factor);
}

@compute @workgroup_size(WIDTH)
fn attention(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let t = index_of(lane);
    let image = group.y / p.heads;
    let offset = (group.y % p.heads) * p.head_dim;
    let width = p.heads * p.head_dim;
    // Counted at run time, so that no driver makes a long program of short loops.
    let fours = (p.head_dim + 3u) / 4u;
    let slice = group.z * p.slice;
    let first = group.x * QUERIES;
    // Queries that are not there are the last one again, kept to themselves.
    let query = min(first + t, p.queries - 1u);
    let other = min(first + WIDTH + t, p.queries - 1u);
    let at = p.q_first + (image * p.queries + query) * width + offset;
    let other_at = p.q_first + (image * p.queries + other) * width + offset;
    let end = select(p.keys, min(p.keys, first + QUERIES), p.causal == 1u);
    let rows = p.k_first + image * p.keys * width + offset;
    var acc: array<vec4<f32>, MOST>;
    var other_acc: array<vec4<f32>, MOST>;
    for (var i = 0u; i < p.slice; i += 1u) {
        acc[i] = vec4(0.0);
        other_acc[i] = vec4(0.0);
    }
    var largest = LOWEST;
    var other_largest = LOWEST;
    var total = 0.0;
    var other_total = 0.0;
    for (var block = 0u; block < end; block += KEYS) {
        // Beyond the last key, the last again.
        var base: Bases;
        for (var h = 0u; h < HELD; h += 1u) {
            base[h] = rows + min(block + h * SHARE + number_of(lane) % SHARE, p.keys - 1u) * width;
        }
        var s: mat4x4<f32>;
        var z: mat4x4<f32>;
        for (var d = 0u; d < fours; d += 1u) {
            let a = q4(at, d);
            let b = q4(other_at, d);
            var held: Held;
            if SHARE > 1u {
                for (var h = 0u; h < HELD; h += 1u) {
                    held[h] = k4(base[h], d);
                }
            }
            let key0 = key_of(0u, d, &base, &held);
            let key1 = key_of(1u, d, &base, &held);
            let key2 = key_of(2u, d, &base, &held);
            let key3 = key_of(3u, d, &base, &held);
            let key4 = key_of(4u, d, &base, &held);
            let key5 = key_of(5u, d, &base, &held);
            let key6 = key_of(6u, d, &base, &held);
            let key7 = key_of(7u, d, &base, &held);
            let key8 = key_of(8u, d, &base, &held);
            let key9 = key_of(9u, d, &base, &held);
            let key10 = key_of(10u, d, &base, &held);
            let key11 = key_of(11u, d, &base, &held);
            let key12 = key_of(12u, d, &base, &held);
            let key13 = key_of(13u, d, &base, &held);
            let key14 = key_of(14u, d, &base, &held);
            let key15 = key_of(15u, d, &base, &held);
            s[0] = vec4(step(s[0].x, a, key0), step(s[0].y, a, key1),
                step(s[0].z, a, key2), step(s[0].w, a, key3));
            s[1] = vec4(step(s[1].x, a, key4), step(s[1].y, a, key5),
                step(s[1].z, a, key6), step(s[1].w, a, key7));
            s[2] = vec4(step(s[2].x, a, key8), step(s[2].y, a, key9),
                step(s[2].z, a, key10), step(s[2].w, a, key11));
            s[3] = vec4(step(s[3].x, a, key12), step(s[3].y, a, key13),
                step(s[3].z, a, key14), step(s[3].w, a, key15));
            z[0] = vec4(step(z[0].x, b, key0), step(z[0].y, b, key1),
                step(z[0].z, b, key2), step(z[0].w, b, key3));
            z[1] = vec4(step(z[1].x, b, key4), step(z[1].y, b, key5),
                step(z[1].z, b, key6), step(z[1].w, b, key7));
            z[2] = vec4(step(z[2].x, b, key8), step(z[2].y, b, key9),
                step(z[2].z, b, key10), step(z[2].w, b, key11));
            z[3] = vec4(step(z[3].x, b, key12), step(z[3].y, b, key13),
                step(z[3].z, b, key14), step(z[3].w, b, key15));
        }
        let e = weights(s, block, query, &largest, &total);
        let f = weights(z, block, other, &other_largest, &other_total);
        for (var i = 0u; i < p.slice; i += 1u) {
            let d = min(slice + i, fours - 1u);
            var y = acc[i] * e.factor;
            var x = other_acc[i] * f.factor;
            var held: Held;
            if SHARE > 1u {
                for (var h = 0u; h < HELD; h += 1u) {
                    held[h] = v4(base[h], d);
                }
            }
            let value0 = value_of(0u, d, &base, &held);
            y = fma(vec4(e.weights[0].x), value0, y);
            x = fma(vec4(f.weights[0].x), value0, x);
            let value1 = value_of(1u, d, &base, &held);
            y = fma(vec4(e.weights[0].y), value1, y);
            x = fma(vec4(f.weights[0].y), value1, x);
            let value2 = value_of(2u, d, &base, &held);
            y = fma(vec4(e.weights[0].z), value2, y);
            x = fma(vec4(f.weights[0].z), value2, x);
            let value3 = value_of(3u, d, &base, &held);
            y = fma(vec4(e.weights[0].w), value3, y);
            x = fma(vec4(f.weights[0].w), value3, x);
            let value4 = value_of(4u, d, &base, &held);
            y = fma(vec4(e.weights[1].x), value4, y);
            x = fma(vec4(f.weights[1].x), value4, x);
            let value5 = value_of(5u, d, &base, &held);
            y = fma(vec4(e.weights[1].y), value5, y);
            x = fma(vec4(f.weights[1].y), value5, x);
            let value6 = value_of(6u, d, &base, &held);
            y = fma(vec4(e.weights[1].z), value6, y);
            x = fma(vec4(f.weights[1].z), value6, x);
            let value7 = value_of(7u, d, &base, &held);
            y = fma(vec4(e.weights[1].w), value7, y);
            x = fma(vec4(f.weights[1].w), value7, x);
            let value8 = value_of(8u, d, &base, &held);
            y = fma(vec4(e.weights[2].x), value8, y);
            x = fma(vec4(f.weights[2].x), value8, x);
            let value9 = value_of(9u, d, &base, &held);
            y = fma(vec4(e.weights[2].y), value9, y);
            x = fma(vec4(f.weights[2].y), value9, x);
            let value10 = value_of(10u, d, &base, &held);
            y = fma(vec4(e.weights[2].z), value10, y);
            x = fma(vec4(f.weights[2].z), value10, x);
            let value11 = value_of(11u, d, &base, &held);
            y = fma(vec4(e.weights[2].w), value11, y);
            x = fma(vec4(f.weights[2].w), value11, x);
            let value12 = value_of(12u, d, &base, &held);
            y = fma(vec4(e.weights[3].x), value12, y);
            x = fma(vec4(f.weights[3].x), value12, x);
            let value13 = value_of(13u, d, &base, &held);
            y = fma(vec4(e.weights[3].y), value13, y);
            x = fma(vec4(f.weights[3].y), value13, x);
            let value14 = value_of(14u, d, &base, &held);
            y = fma(vec4(e.weights[3].z), value14, y);
            x = fma(vec4(f.weights[3].z), value14, x);
            let value15 = value_of(15u, d, &base, &held);
            y = fma(vec4(e.weights[3].w), value15, y);
            x = fma(vec4(f.weights[3].w), value15, x);
            acc[i] = y;
            other_acc[i] = x;
        }
    }
    for (var i = 0u; i < min(p.slice, fours - slice); i += 1u) {
        let c = 4u * (slice + i);
        if first + t < p.queries {
            put_some(at + c, acc[i] / total, min(4u, p.head_dim - c));
        }
        if first + WIDTH + t < p.queries {
            put_some(other_at + c, other_acc[i] / other_total, min(4u, p.head_dim - c));
        }
    }
}
