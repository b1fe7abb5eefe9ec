// attention: out = softmax(scale * q k^T) v for each image and head, online. Milakov and Gimelshein 2018; Dao et al.
// 2022. q, out [batch, queries, heads * head_dim]; k, v [batch, keys, heads * head_dim]
// One invocation per query, 32 to a workgroup, all of one image and head: keys and values are the workgroup's, so their
// loads are uniform. Keys are looked at KEYS at a time. A head of more than CHANNELS channels goes in slices: each slice
// of the values is summed by a workgroup of its own, with the scores over all channels.
// Parameters: struct Attention in src/backend/params.rs, same order, then where q and out, and k and v begin.

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
}
var<immediate> p: Attention;

// Channels of a head, in fours; whether they are whole ones; fours of a slice.
override D4: u32 = 10u;
override WHOLE: bool = false;
override SLICE: u32 = 10u;

const QUERIES = 32u;
const KEYS = 16u;
// Fours of a slice at most.
const MOST = 40u;

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

@compute @workgroup_size(QUERIES)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let image = group.y / p.heads;
    let offset = (group.y % p.heads) * p.head_dim;
    let width = p.heads * p.head_dim;
    let slice = group.z * SLICE;
    let first = group.x * QUERIES;
    let query = min(first + t, p.queries - 1u);
    let at = p.q_first + (image * p.queries + query) * width + offset;
    let end = select(p.keys, min(p.keys, first + QUERIES), p.causal == 1u);
    let rows = p.k_first + image * p.keys * width + offset;
    var acc: array<vec4<f32>, MOST>;
    for (var d = 0u; d < SLICE; d += 1u) {
        acc[d] = vec4(0.0);
    }
    var largest = LOWEST;
    var total = 0.0;
    for (var block = 0u; block < end; block += KEYS) {
        // Where each key's row begins; beyond the last one, the last again.
        let r0 = rows + min(block + 0u, p.keys - 1u) * width;
        let r1 = rows + min(block + 1u, p.keys - 1u) * width;
        let r2 = rows + min(block + 2u, p.keys - 1u) * width;
        let r3 = rows + min(block + 3u, p.keys - 1u) * width;
        let r4 = rows + min(block + 4u, p.keys - 1u) * width;
        let r5 = rows + min(block + 5u, p.keys - 1u) * width;
        let r6 = rows + min(block + 6u, p.keys - 1u) * width;
        let r7 = rows + min(block + 7u, p.keys - 1u) * width;
        let r8 = rows + min(block + 8u, p.keys - 1u) * width;
        let r9 = rows + min(block + 9u, p.keys - 1u) * width;
        let r10 = rows + min(block + 10u, p.keys - 1u) * width;
        let r11 = rows + min(block + 11u, p.keys - 1u) * width;
        let r12 = rows + min(block + 12u, p.keys - 1u) * width;
        let r13 = rows + min(block + 13u, p.keys - 1u) * width;
        let r14 = rows + min(block + 14u, p.keys - 1u) * width;
        let r15 = rows + min(block + 15u, p.keys - 1u) * width;
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        var s2 = vec4<f32>();
        var s3 = vec4<f32>();
        for (var d = 0u; d < D4; d += 1u) {
            let a = q4(at, d);
            s0 = vec4(step(s0.x, a, k4(r0, d)), step(s0.y, a, k4(r1, d)), step(s0.z, a, k4(r2, d)),
                step(s0.w, a, k4(r3, d)));
            s1 = vec4(step(s1.x, a, k4(r4, d)), step(s1.y, a, k4(r5, d)), step(s1.z, a, k4(r6, d)),
                step(s1.w, a, k4(r7, d)));
            s2 = vec4(step(s2.x, a, k4(r8, d)), step(s2.y, a, k4(r9, d)), step(s2.z, a, k4(r10, d)),
                step(s2.w, a, k4(r11, d)));
            s3 = vec4(step(s3.x, a, k4(r12, d)), step(s3.y, a, k4(r13, d)), step(s3.z, a, k4(r14, d)),
                step(s3.w, a, k4(r15, d)));
        }
        let limit = select(p.keys, min(p.keys, query + 1u), p.causal == 1u);
        s0 = scaled(s0, block + 0u, limit);
        s1 = scaled(s1, block + 4u, limit);
        s2 = scaled(s2, block + 8u, limit);
        s3 = scaled(s3, block + 12u, limit);
        let four = max(max(s0, s1), max(s2, s3));
        let most = max(largest, max(max(four.x, four.y), max(four.z, four.w)));
        // Weights against the largest score so far; what is not seen weighs exactly nothing.
        let factor = exp1(largest - most);
        largest = most;
        let e0 = select(exp4(s0 - most), vec4(0.0), s0 == vec4(LOWEST));
        let e1 = select(exp4(s1 - most), vec4(0.0), s1 == vec4(LOWEST));
        let e2 = select(exp4(s2 - most), vec4(0.0), s2 == vec4(LOWEST));
        let e3 = select(exp4(s3 - most), vec4(0.0), s3 == vec4(LOWEST));
        let sums = e0 + e1 + e2 + e3;
        total = fma(total, factor, sums.x + sums.y + sums.z + sums.w);
        for (var i = 0u; i < SLICE; i += 1u) {
            let d = min(slice + i, D4 - 1u);
            var y = acc[i] * factor;
            y = fma(vec4(e0.x), v4(r0, d), y);
            y = fma(vec4(e0.y), v4(r1, d), y);
            y = fma(vec4(e0.z), v4(r2, d), y);
            y = fma(vec4(e0.w), v4(r3, d), y);
            y = fma(vec4(e1.x), v4(r4, d), y);
            y = fma(vec4(e1.y), v4(r5, d), y);
            y = fma(vec4(e1.z), v4(r6, d), y);
            y = fma(vec4(e1.w), v4(r7, d), y);
            y = fma(vec4(e2.x), v4(r8, d), y);
            y = fma(vec4(e2.y), v4(r9, d), y);
            y = fma(vec4(e2.z), v4(r10, d), y);
            y = fma(vec4(e2.w), v4(r11, d), y);
            y = fma(vec4(e3.x), v4(r12, d), y);
            y = fma(vec4(e3.y), v4(r13, d), y);
            y = fma(vec4(e3.z), v4(r14, d), y);
            y = fma(vec4(e3.w), v4(r15, d), y);
            acc[i] = y;
        }
    }
    if first + t >= p.queries {
        return;
    }
    for (var d = 0u; d < min(SLICE, D4 - slice); d += 1u) {
        let c = 4u * (slice + d);
        put_some(at + c, acc[d] / total, min(4u, p.head_dim - c));
    }
}
